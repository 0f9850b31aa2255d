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

from engines.base import EncodeRequest, GenerateRequest, Usage
from gateway.adapters import adapter_name
from gateway.catalog import Catalog, ServedModel
from gateway.choice import Choice
from gateway.errors import BadRequest, ContextOverflow
from gateway.manager import Lease, ModelManager
from gateway.metrics import Metrics
from gateway.options import max_tokens
from gateway.planning import Planner
from gateway.preparing import Job, Preparer, after_thinking
from gateway.running import Events, Running, start_all
from gateway.sandbox import Sandbox
from gateway.sandbox_calls import DecodeImage, Detokenize, Tokenize
from gateway.types import (
    ChatRequest,
    Classified,
    ClassifyRequest,
    CompletionRequest,
    EmbedRequest,
    Event,
    GenerationOptions,
    Rendered,
)
from modelfiles.outputs.parser import make_parser


@dataclass(frozen=True, slots=True)
class Embeddings:
    """One little-endian float32 vector for each input, L2-normalised, and the tokens they cost."""

    vectors: tuple[bytes, ...]
    usage: Usage
    load_ns: int


IMAGE_SIGNS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM")
"""How files of images begin."""


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
        self._preparer = Preparer(catalog, sandbox, planner)

    # -- generating -----------------------------------------------------------------------------------

    async def chat(self, request: ChatRequest) -> AsyncIterator[Event]:
        """Returns once the model has taken the request; closing the iterator cancels it.

        The iterator ends after a `Finished` for each choice, or after one `Failed`.
        """
        return await self._run(await self._preparer.job(request))

    async def complete(self, request: CompletionRequest) -> AsyncIterator[Event]:
        """As `chat`, for a text to continue."""
        return await self._run(await self._preparer.job(request))

    async def render(self, request: ChatRequest | CompletionRequest) -> Rendered:
        """The exact prompt the request would become; nothing is loaded."""
        job = await self._preparer.job(request)
        return Rendered(job.prompt.text, job.prompt.token_ids)

    async def load(self, name: str, options: GenerationOptions) -> int:
        """Has the model loaded, without a prompt; nanoseconds it took."""
        model = await self.catalog.get(name)
        with await self._lease(model, options, 1) as lease:
            return lease.load_ns

    async def unload(self, name: str) -> None:
        """Takes the model out of memory once its running requests are done."""
        model = await self.catalog.get(name)
        await self.manager.unload(model.weights_digest, model.name)

    async def _lease(self, model: ServedModel, options: GenerationOptions, weight: int) -> Lease:
        plan = await self._planner.plan(model, options.num_ctx, options.keep_alive)
        return await self.manager.lease(plan, weight)

    async def _run(self, job: Job) -> AsyncIterator[Event]:
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

    def _engine_request(self, job: Job, index: int, room: int) -> GenerateRequest:
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

    def _choice(self, job: Job, index: int) -> Choice:
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

    async def classify(self, request: ClassifyRequest) -> Classified:
        """What each image shows. Raises `BadRequest` for a model of text or for what is no image."""
        model = await self.catalog.get(request.model)
        if "classification" not in model.capabilities:
            raise BadRequest(f'"{request.model}" does not classify images', param="model")
        info, kind = model.description.model_info, model.description.architecture
        labels, side = tuple(info[f"{kind}.labels"]), int(info[f"{kind}.side"])
        planes = [await self._planes(image, side) for image in request.images]
        with await self._lease(model, GenerationOptions(keep_alive=request.keep_alive), 1) as lease:
            return Classified(labels, tuple([await lease.runner.score(image) for image in planes]))

    async def _planes(self, image: bytes, side: int) -> bytes:
        """The image as frames carry it; one of exactly that size is taken to be so already."""
        if len(image) == 3 * side * side and not image.startswith(IMAGE_SIGNS):
            return image
        return await self._sandbox.call(DecodeImage(image, side), bytes)

    async def tokenize(
        self, model: ServedModel, text: str, *, bos: bool = True, special: bool = False
    ) -> tuple[int, ...]:
        """Token ids of a text; names of control tokens stay plain text unless `special`."""
        if not model.vocabulary.token_bytes:
            raise BadRequest(f'"{model.name}" reads no text', param="model")
        call = Tokenize(model.files, model.weights_digest, text, bos and model.vocabulary.add_bos, special)
        return tuple(await self._sandbox.call(call, list[int]))

    async def detokenize(self, model: ServedModel, token_ids: tuple[int, ...]) -> str:
        """The text of token ids."""
        return await self._sandbox.call(Detokenize(model.files, model.weights_digest, token_ids), str)


def shortened(vector: bytes, dimensions: int | None) -> bytes:
    """The first `dimensions` numbers of a float32 vector, brought back to length 1."""
    if dimensions is None or dimensions * 4 >= len(vector):
        return vector
    numbers = array("f")
    numbers.frombytes(vector[: dimensions * 4])
    norm = math.sqrt(math.fsum(number * number for number in numbers)) or 1.0
    return array("f", (number / norm for number in numbers)).tobytes()
