"""Turns canonical requests into events: resolve, render, lease, generate, filter.

It only joins parts: names and files are `catalog`'s, processes `manager`'s, prompts the sandbox's, text
filters `choice`'s. Knows no dialect and no HTTP. Called by the routes of every dialect.
"""

from __future__ import annotations

import asyncio
import math
import time
from array import array
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

from engines.base import EncodeRequest, GenerateRequest, Grammar, Usage
from gateway.catalog import Catalog, ServedModel
from gateway.choice import Choice
from gateway.errors import BadRequest, ContextOverflow
from gateway.manager import Lease, ModelManager
from gateway.metrics import Metrics
from gateway.options import check_biases, max_tokens, resolve
from gateway.planning import Planner, adapter_name, runner_key
from gateway.running import Events, Running, start_all
from gateway.sandbox import Sandbox
from gateway.sandbox_calls import (
    CheckGrammar,
    Detokenize,
    PrepareChat,
    PrepareCompletion,
    Prepared,
    Tokenize,
    Turn,
)
from gateway.types import (
    ChatRequest,
    CompletionRequest,
    EmbedRequest,
    Event,
    GenerationOptions,
    Rendered,
    ResolvedOptions,
    ToolChoice,
)
from modelfiles.messages import MediaPart, Message, ToolSpec
from modelfiles.outputs.parser import CONVENTIONS, make_parser
from modelfiles.templates.source import TemplateSource

GRAMMAR_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Embeddings:
    """One little-endian float32 vector for each input, L2-normalised, and the tokens they cost."""

    vectors: tuple[bytes, ...]
    usage: Usage
    load_ns: int


@dataclass(frozen=True, slots=True)
class _Job:
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


class Service:
    """See the module's text. Everything it needs is given."""

    def __init__(
        self, catalog: Catalog, manager: ModelManager, sandbox: Sandbox, planner: Planner, metrics: Metrics
    ) -> None:
        self.catalog = catalog
        self.manager = manager
        self._sandbox = sandbox
        self._planner = planner
        self._metrics = metrics

    # -- generating -----------------------------------------------------------------------------------

    async def chat(self, request: ChatRequest) -> AsyncIterator[Event]:
        """Returns once the model has taken the request; closing the iterator cancels it.

        The iterator ends after a `Finished` for each choice, or after one `Failed`.
        """
        return await self._run(await self._chat_job(request))

    async def complete(self, request: CompletionRequest) -> AsyncIterator[Event]:
        """As `chat`, for a text to continue."""
        return await self._run(await self._completion_job(request))

    async def render(self, request: ChatRequest | CompletionRequest) -> Rendered:
        """The exact prompt the request would become; nothing is loaded."""
        job = await (
            self._chat_job(request) if isinstance(request, ChatRequest) else self._completion_job(request)
        )
        return Rendered(job.prompt.text, job.prompt.token_ids)

    async def load(self, name: str, options: GenerationOptions) -> int:
        """Has the model loaded, without a prompt; nanoseconds it took."""
        model = await self.catalog.get(name)
        with await self._lease(model, options, 1) as lease:
            return lease.load_ns

    async def unload(self, name: str) -> None:
        """Takes the model out of memory once its running requests are done."""
        await self.manager.unload(runner_key(await self.catalog.get(name)))

    async def _chat_job(self, request: ChatRequest) -> _Job:
        model = await self.catalog.get(request.model)
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
        think = request.think if "thinking" in model.capabilities else None
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
        return _Job(
            model,
            prompt,
            request.options,
            resolved,
            tools,
            request.parallel_tool_calls,
            grammar,
            thinks=bool(request.think),
            continues=continues,
        )

    async def _completion_job(self, request: CompletionRequest) -> _Job:
        model = await self.catalog.get(request.model)
        _require(model, "completion", request.model, "generate")
        grammar = await self._grammar(model, request.format, (), ToolChoice("none"), True)
        prompt = await self._completion_prompt(model, request)
        resolved = self._resolve(model, request.options)
        return _Job(
            model,
            prompt,
            request.options,
            resolved,
            grammar=grammar,
            echo=request.echo,
            parse=not request.raw,
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
            think=request.think if "thinking" in model.capabilities else None,
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
            model.files, model.weights_digest, template, tuple(map(Turn.of, turns)), think=request.think
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
            await self._sandbox.call(CheckGrammar(checked), bool, GRAMMAR_SECONDS)
        return asked

    def _resolve(self, model: ServedModel, options: GenerationOptions) -> ResolvedOptions:
        resolved = resolve(options, model.parameters, model.description.generation_defaults)
        check_biases(resolved.sampling.logit_bias, len(model.vocabulary.token_bytes))
        return resolved

    async def _lease(self, model: ServedModel, options: GenerationOptions, weight: int) -> Lease:
        adapter_name(model)  # refused before anything is loaded
        plan = await self._planner.plan(model, options.num_ctx, options.keep_alive)
        return await self.manager.lease(plan, weight)

    async def _run(self, job: _Job) -> AsyncIterator[Event]:
        """Leases, starts every choice, and returns their events once all are accepted."""
        started = time.monotonic_ns()
        lease = await self._lease(job.model, job.options, job.options.n)
        try:
            room = lease.runner.ready.limits.context - len(job.prompt.token_ids)
            if room < 1:
                raise ContextOverflow(
                    len(job.prompt.token_ids), job.model.name, lease.runner.ready.limits.context
                )
            requests = [self._engine_request(job, index, room) for index in range(job.options.n)]
            streams = await start_all(lease, requests)
        except BaseException as error:
            lease.release(error)
            raise
        choices = [self._choice(job, index) for index in range(job.options.n)]
        running = Running(self._metrics, lease, streams, choices, job.model.name, started)
        return Events(running.iterate(), lease)

    def _engine_request(self, job: _Job, index: int, room: int) -> GenerateRequest:
        sampling = job.resolved.sampling
        if sampling.seed is not None and index:
            sampling = replace(sampling, seed=sampling.seed + index)
        return GenerateRequest(
            request_id=index,
            prompt_token_ids=job.prompt.token_ids,
            max_tokens=max(1, max_tokens(job.resolved.num_predict, room)),
            stop_token_ids=job.model.vocabulary.end_token_ids,
            ignore_eos=job.options.ignore_eos,
            sampling=sampling,
            grammar=after_thinking(job.grammar, job.model, job.prompt.text, job.thinks),
            top_logprobs=job.options.logprobs,
            prompt_logprobs=job.echo and job.options.logprobs >= 0,
            adapter=adapter_name(job.model),
            cache_salt=job.options.cache_salt,
            script=job.options.script if job.model.engine == "scripted" else None,
        )

    def _choice(self, job: _Job, index: int) -> Choice:
        parser = make_parser(
            job.model.convention if job.parse else "plain",
            tools=job.tools,
            names=job.model.vocabulary.names,
            prompt=job.prompt.text,
        )
        return Choice(
            index,
            job.model.vocabulary,
            parser,
            job.resolved.stop,
            with_logprobs=job.options.logprobs >= 0,
            one_call=not job.parallel_tool_calls,
            prompt=job.prompt.token_ids,
            echo=job.echo,
            silent=job.resolved.num_predict == 0,
            continues=job.continues,
        )

    # -- embedding and tokens ---------------------------------------------------------------------------

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """Vectors of the inputs, in order. Raises `ContextOverflow` for one too long unless `truncate`."""
        model = await self.catalog.get(request.model)
        options = GenerationOptions(keep_alive=request.keep_alive)
        prompts = await asyncio.gather(*(self.tokenize(model, text) for text in request.inputs))
        with await self._lease(model, options, 1) as lease:
            ready = lease.runner.ready
            if "embed" not in ready.capabilities:
                raise BadRequest(f'"{request.model}" does not support embeddings', param="model")
            if request.truncate:
                prompts = [prompt[: ready.limits.context - 1] for prompt in prompts]
            longest = max(map(len, prompts), default=0)
            if longest >= ready.limits.context:
                raise ContextOverflow(longest, model.name, ready.limits.context, "input")
            adapter = adapter_name(model)
            asked = [EncodeRequest(index, prompt, adapter) for index, prompt in enumerate(prompts)]
            outputs = await lease.runner.embed(asked) if asked else ()
            vectors = tuple(shortened(output.vector, request.dimensions) for output in outputs)
            return Embeddings(vectors, Usage(prompt=sum(map(len, prompts))), lease.load_ns)

    async def tokenize(
        self, model: ServedModel, text: str, *, bos: bool = True, special: bool = False
    ) -> tuple[int, ...]:
        """Token ids of a text; names of control tokens stay plain text unless `special`."""
        call = Tokenize(model.files, model.weights_digest, text, bos and model.vocabulary.add_bos, special)
        return tuple(await self._sandbox.call(call, list[int]))

    async def detokenize(self, model: ServedModel, token_ids: tuple[int, ...]) -> str:
        """The text of token ids."""
        return await self._sandbox.call(Detokenize(model.files, model.weights_digest, token_ids), str)


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

    as_text = tool_grammar(model.convention, tools, required=True, parallel=parallel)
    as_tokens = tool_grammar(
        model.convention, tools, required=True, parallel=parallel, token_ids=model.vocabulary.names
    )
    return Grammar("lark", as_text[1]), Grammar("lark", as_tokens[1])


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


def shortened(vector: bytes, dimensions: int | None) -> bytes:
    """The first `dimensions` numbers of a float32 vector, brought back to length 1."""
    if dimensions is None or dimensions * 4 >= len(vector):
        return vector
    numbers = array("f")
    numbers.frombytes(vector[: dimensions * 4])
    norm = math.sqrt(math.fsum(number * number for number in numbers)) or 1.0
    return array("f", (number / norm for number in numbers)).tobytes()


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
