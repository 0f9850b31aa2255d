"""From a request to a job: tools chosen, prompt rendered and measured, grammar checked, options merged.

All that can be refused is refused here, before any model is loaded. Work on strangers' bytes is the
sandbox's. Knows no runner. Called by `service`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from engines.base import Grammar
from engines.json_schema import without_annotations
from gateway.catalog import Catalog, ServedModel
from gateway.errors import BadRequest, SandboxFailure
from gateway.options import check_biases, resolve
from gateway.planning import Planner
from gateway.sandbox import Sandbox, SandboxError
from gateway.sandbox_calls import (
    CheckGrammar,
    PrepareChat,
    PrepareCompletion,
    Prepared,
    Tokenize,
    Turn,
)
from gateway.types import (
    ChatRequest,
    CompletionRequest,
    GenerationOptions,
    ResolvedOptions,
    ToolChoice,
)
from modelfiles.messages import MediaPart, Message, ToolSpec
from modelfiles.outputs.parser import CONVENTIONS
from modelfiles.templates.source import TemplateSource

GRAMMAR_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Job:
    """A request that was checked, rendered and merged: all that is left is to run it."""

    model: ServedModel
    prompt: Prepared
    options: GenerationOptions
    resolved: ResolvedOptions
    tools: tuple[ToolSpec, ...] = ()
    parallel_tool_calls: bool = True
    grammar: Grammar | None = None
    echo: bool = False
    parse: bool = True
    thinks: bool = False
    continues: bool = False


class Preparer:
    """Makes jobs of requests. Raises `BadRequest`, `ModelNotFound` and what the sandbox refused."""

    def __init__(self, catalog: Catalog, sandbox: Sandbox, planner: Planner) -> None:
        self._catalog = catalog
        self._sandbox = sandbox
        self._planner = planner

    async def job(self, request: ChatRequest | CompletionRequest) -> Job:
        """The request, ready to run."""
        if isinstance(request, ChatRequest):
            return await self._chat_job(request)
        return await self._completion_job(request)

    async def _chat_job(self, request: ChatRequest) -> Job:
        model = await self._catalog.get(request.model)
        _require(model, "completion", request.model, "chat")
        _refuse_media(request.messages, request.model)
        tools = offered_tools(request.tools, request.tool_choice)
        if tools:
            _require(model, "tools", request.model, "tools")
        if request.think:
            _require(model, "thinking", request.model, "thinking")
        grammar = await self._grammar(
            model, request.format, tools, request.tool_choice, request.parallel_tool_calls
        )
        messages = with_model_turns(model, request.messages)
        think = wanted_thinking(model, request)
        continues = bool(messages) and messages[-1].role == "assistant" and not messages[-1].tool_calls
        call = PrepareChat(
            files=model.files,
            digest=model.weights_digest,
            template=_template(model, request.template),
            turns=tuple(map(Turn.of, messages)),
            tools=tools,
            think=think,
            continue_final=continues,
            kwargs=request.template_kwargs,
        )
        prompt = await self._fitting(model, call, request.options)
        resolved = self._resolve(model, request.options)
        return Job(
            model,
            prompt,
            request.options,
            resolved,
            tools,
            request.parallel_tool_calls,
            grammar,
            thinks=bool(think),
            continues=continues,
        )

    async def _completion_job(self, request: CompletionRequest) -> Job:
        model = await self._catalog.get(request.model)
        _require(model, "completion", request.model, "generate")
        if request.think:
            _require(model, "thinking", request.model, "thinking")
        grammar = await self._grammar(model, request.format, (), ToolChoice("none"), True)
        prompt = await self._completion_prompt(model, request)
        resolved = self._resolve(model, request.options)
        return Job(
            model,
            prompt,
            request.options,
            resolved,
            grammar=grammar,
            echo=request.echo,
            parse=not request.raw,
            thinks=not request.raw and bool(wanted_thinking(model, request)),
            continues=goes_on(request, prompt),
        )

    async def _completion_prompt(self, model: ServedModel, request: CompletionRequest) -> Prepared:
        if isinstance(request.prompt, tuple):
            size = len(model.vocabulary.token_bytes)
            wrong = next((token_id for token_id in request.prompt if not 0 <= token_id < size), None)
            if wrong is not None:
                raise BadRequest(
                    f"token id {wrong} is not in the vocabulary of {size} tokens", param="prompt"
                )
            return Prepared("", request.prompt)
        if request.suffix:
            _require(model, "insert", request.model, "insert")
        if request.raw and not request.suffix:
            call = Tokenize(
                model.files, model.weights_digest, request.prompt, model.vocabulary.add_bos, special=True
            )
            return Prepared(request.prompt, tuple(await self._sandbox.call(call, list[int])))
        template = _template(model, request.template)
        if request.context or model.messages:
            return await self._continued(model, request, template)
        system = request.system if request.system is not None else model.system
        question = PrepareCompletion(
            files=model.files,
            digest=model.weights_digest,
            template=template,
            prompt=str(request.prompt),
            system=system or "",
            suffix=request.suffix or "",
            think=wanted_thinking(model, request),
        )
        return await self._sandbox.call(question, Prepared)

    async def _continued(
        self, model: ServedModel, request: CompletionRequest, template: TemplateSource
    ) -> Prepared:
        """A prompt after the model's MESSAGEs, or after the token ids of an exchange before."""
        turns = [] if request.context else list(model.messages)
        system = request.system if request.system is not None else model.system
        if system and not request.context:
            turns.insert(0, Message.of("system", system))
        turns.append(Message.of("user", str(request.prompt)))
        call = PrepareChat(
            model.files,
            model.weights_digest,
            template,
            tuple(map(Turn.of, turns)),
            think=wanted_thinking(model, request),
        )
        prepared = await self._sandbox.call(call, Prepared)
        if not request.context:
            return prepared
        bos = model.vocabulary.bos_token_id
        fresh = prepared.token_ids[1:] if prepared.token_ids[:1] == (bos,) else prepared.token_ids
        return Prepared(prepared.text, (*request.context, *fresh))

    async def _fitting(self, model: ServedModel, call: PrepareChat, options: GenerationOptions) -> Prepared:
        """The prompt; with `truncate`, less the oldest turns (not the system's or the last) if too long."""
        prepared = await self._sandbox.call(call, Prepared)
        if not options.truncate:
            return prepared
        context = await self._planner.context(model, options.num_ctx)
        while len(prepared.token_ids) >= context:
            droppable = [
                i for i, turn in enumerate(call.turns[:-1]) if turn.role not in ("system", "developer")
            ]
            if not droppable:
                return prepared
            excess = len(prepared.token_ids) - context + 1
            count = max(1, len(droppable) * excess // (2 * len(prepared.token_ids)))
            dropped = set(droppable[:count])
            kept = tuple(turn for i, turn in enumerate(call.turns) if i not in dropped)
            call = replace(call, turns=kept)
            prepared = await self._sandbox.call(call, Prepared)
        return prepared

    async def _grammar(
        self,
        model: ServedModel,
        asked: Grammar | None,
        tools: tuple[ToolSpec, ...],
        choice: ToolChoice,
        parallel: bool,
    ) -> Grammar | None:
        """The constraint of a request, compiled once in a sandbox worker so that a bad one is a plain 400."""
        forced = choice.mode in ("required", "named")
        if asked is not None and forced:
            raise BadRequest(
                "response_format and a required tool call exclude each other", param="response_format"
            )
        checked = asked
        if forced:
            checked, asked = _call_grammars(model, tools, parallel)
        if checked is not None and model.engine == "decoder":
            await self._check_grammar(checked, tools if forced else ())
        return asked

    async def _check_grammar(self, grammar: Grammar, tools: tuple[ToolSpec, ...]) -> None:
        """Raises `BadRequest` for a grammar that cannot be compiled, or not soon enough; says whose it is."""
        try:
            await self._sandbox.call(CheckGrammar(grammar), bool, GRAMMAR_SECONDS)
        except SandboxFailure:
            raise BadRequest(
                f"the schema or grammar takes more than {GRAMMAR_SECONDS:g} seconds, or too much memory, to "
                "compile; make it smaller",
                param="tools" if tools else "response_format",
            ) from None
        except SandboxError as error:
            for tool in tools:
                await self._check_parameters(tool)
            error.param = "tools" if tools else "response_format"
            raise

    async def _check_parameters(self, tool: ToolSpec) -> None:
        schema = Grammar("json_schema", json.dumps(tool.parameters))
        try:
            await self._sandbox.call(CheckGrammar(schema), bool, GRAMMAR_SECONDS)
        except (SandboxError, SandboxFailure) as error:
            raise BadRequest(f"the parameters of {tool.name!r}: {error.message}", param="tools") from error

    def _resolve(self, model: ServedModel, options: GenerationOptions) -> ResolvedOptions:
        resolved = resolve(options, model.parameters, model.description.generation_defaults)
        check_biases(resolved.sampling.logit_bias, len(model.vocabulary.token_bytes))
        return resolved


def goes_on(request: CompletionRequest, prompt: Prepared) -> bool:
    """Whether the answer goes on from the caller's own text rather than beginning a turn.

    True as well where the template adds nothing after that text, as those of base models.
    """
    text = request.prompt
    return bool(text) and (request.raw or bool(request.suffix) or prompt.text.endswith(str(text)))


def offered_tools(tools: tuple[ToolSpec, ...], choice: ToolChoice) -> tuple[ToolSpec, ...]:
    """The tools the model gets to see: none, all, or those the choice names."""
    if choice.mode == "none":
        return ()
    return tuple(tool for tool in tools if tool.name in choice.names) if choice.names else tools


def _call_grammars(
    model: ServedModel, tools: tuple[ToolSpec, ...], parallel: bool
) -> tuple[Grammar, Grammar]:
    """What forces a call: with the markers as text, for the check, and as tokens, to be run."""
    from modelfiles.outputs.toolcall_grammar import tool_grammar

    tools = tuple(replace(tool, parameters=without_annotations(tool.parameters)) for tool in tools)
    as_text = tool_grammar(model.convention, tools, required=True, parallel=parallel)
    as_tokens = tool_grammar(
        model.convention, tools, required=True, parallel=parallel, token_ids=model.vocabulary.names
    )
    return Grammar("lark", as_text[1]), Grammar("lark", as_tokens[1])


def wanted_thinking(model: ServedModel, request: ChatRequest | CompletionRequest) -> bool | str | None:
    """Whether, or how hard, the model is to think; None leaves it to its template.

    Models made for Ollama (a Go template, a RENDERER) think unless told not to, as they do there; not where
    the answer's form is fixed, which would have to wait for the end of a reasoning that may never begin.
    """
    if "thinking" not in model.capabilities:
        return None
    for_ollama = model.template.kind == "go" or bool(model.model and model.model.config.renderer)
    calls = isinstance(request, ChatRequest) and request.tool_choice.mode in ("required", "named")
    fixed = request.format is not None or calls
    return True if request.think is None and for_ollama and not fixed else request.think


def after_thinking(grammar: Grammar | None, model: ServedModel, prompt: str, thinks: bool) -> Grammar | None:
    """The grammar, told to wait for the end of the reasoning when there will be some.

    There will when the caller asked for it, or when the template opened the block itself.
    """
    syntax = CONVENTIONS[model.convention].thinking
    if grammar is None or syntax is None:
        return grammar
    opened = any(prompt.rstrip().endswith(marker) for marker in syntax.pairs)
    names = model.vocabulary.names
    ends = tuple(names[marker] for marker in syntax.pairs.values() if marker in names)
    return replace(grammar, after_token_ids=ends) if ends and (thinks or opened) else grammar


def with_model_turns(model: ServedModel, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The conversation after the model's own MESSAGEs, and its SYSTEM unless the caller brings one."""
    turns = (*model.messages, *messages)
    has_system = bool(turns) and turns[0].role in ("system", "developer")
    return (Message.of("system", model.system), *turns) if model.system and not has_system else turns


def _template(model: ServedModel, override: str | None) -> TemplateSource:
    return TemplateSource("go", override) if override else model.template


def _require(model: ServedModel, capability: str, name: str, what: str) -> None:
    if capability not in model.capabilities:
        raise BadRequest(f'"{name}" does not support {what}', param="model")


def _refuse_media(messages: tuple[Message, ...], name: str) -> None:
    for position, message in enumerate(messages):
        for part in message.parts:
            if isinstance(part, MediaPart):
                raise BadRequest(
                    f'"{name}" does not support {part.kind} input; send text only',
                    param=f"messages.{position}.content",
                )
