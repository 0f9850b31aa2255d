"""The step loop on a real trained model: whole texts, mixtures, faults. In one process unless said."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from engines.base import (
    AdapterFiles,
    AdapterRoom,
    AdaptRequest,
    EncodeRequest,
    GenerateRequest,
    Grammar,
    InvalidRequest,
    Limits,
    LoadFailed,
    LoadRequest,
    OutOfMemory,
    SamplingParams,
    StepOutput,
)
from engines.client import RunnerClient
from engines.decoder import model as decoder_model
from engines.decoder.embedding import embed
from engines.decoder.engine import DecoderEngine
from engines.decoder.programs import EMBED_SIZES, Programs, Sampled, prefill_sizes, row_sizes
from engines.decoder.sampling import BAD_LOGITS
from engines.streams import merge_outputs
from modelfiles.files import ModelFile

pytestmark = pytest.mark.slow

BOS = 1
GREEDY = SamplingParams(temperature=0.0)
QUICK = {"xla_backend_optimization_level": 0}  # compiling is what these tests spend their time on
LIMITS = Limits(slots=2, context=256)


@pytest.fixture(scope="module")
def engine(stories_gguf: list[ModelFile]) -> Iterator[DecoderEngine]:
    """Slots for two, so that third requests wait; every program compiled."""
    engine = DecoderEngine(compiler_options=QUICK)
    engine.load(LoadRequest(files=tuple(stories_gguf), limits=LIMITS), lambda progress: None)
    engine._programs.wait_all()
    yield engine
    assert engine._scheduler.free_slots == LIMITS.slots
    assert not engine._active


def ask(request_id: int = 1, **kwargs: Any) -> GenerateRequest:
    options: dict[str, Any] = {"prompt_token_ids": (BOS,), "max_tokens": 40, "sampling": GREEDY}
    return GenerateRequest(request_id=request_id, **{**options, **kwargs})


class Failed(Exception):
    pass


def run(engine: DecoderEngine, requests: Sequence[GenerateRequest]) -> dict[int, Any]:
    """Each request's merged output, or the error it failed with."""
    parts: dict[int, list[StepOutput]] = {request.request_id: [] for request in requests}
    failures: dict[int, Exception] = {}
    for request in requests:
        engine.submit(request, engine.prepare(request) if request.grammar else None)
    while engine.wait_seconds() == 0:
        result = engine.step()
        for output in result.outputs:
            parts[output.request_id].append(output)
        failures |= dict(result.failures)
    whole = {request_id: merge_outputs(outputs) for request_id, outputs in parts.items() if outputs}
    return whole | failures


def one(engine: DecoderEngine, **kwargs: Any) -> StepOutput:
    (output,) = run(engine, [ask(**kwargs)]).values()
    if isinstance(output, Exception):
        raise output
    return output


@pytest.fixture(scope="module")
def compiled() -> Iterator[list[str]]:
    """Names of what XLA compiled since; appended to by JAX itself."""
    seen: list[str] = []

    def note(event: str, duration: float, **kwargs: Any) -> None:
        if "backend_compile" in event:
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(note)
    yield seen
    jax.monitoring.clear_event_listeners()


PROMPT = (BOS, 403, 407, 261, 378)


def test_greedy_text_is_the_same_alone_and_in_company(engine: DecoderEngine) -> None:
    alone = one(engine, max_tokens=100)
    assert alone.finish_reason == "length"
    assert alone.usage is not None
    assert (alone.usage.prompt, alone.usage.generated) == (1, 100)
    together = run(engine, [ask(i, max_tokens=100) for i in range(5)])
    assert {output.token_ids for output in together.values()} == {alone.token_ids}


MIXTURE = [
    {"sampling": GREEDY},
    {"sampling": SamplingParams(temperature=1.0, seed=5)},
    {"sampling": SamplingParams(temperature=0.7, top_k=5, top_p=0.9, min_p=0.01, seed=6)},
    {"sampling": SamplingParams(typical_p=0.4, seed=7, repeat_penalty=1.3)},
    {"sampling": SamplingParams(temperature=1.3, presence_penalty=0.5, frequency_penalty=0.5, seed=8)},
    {"sampling": SamplingParams(seed=9, logit_bias=((400, 2.0),)), "top_logprobs": 5},
    {"sampling": SamplingParams(seed=10), "grammar": Grammar("regex", "[a-z ]{1,30}[.]")},
    {"sampling": GREEDY, "prompt_logprobs": True, "top_logprobs": 2, "prompt_token_ids": PROMPT * 20},
    {"sampling": SamplingParams(seed=11), "prompt_token_ids": PROMPT * 40, "max_tokens": 56},
    {"sampling": GREEDY, "prompt_token_ids": PROMPT * 30, "max_tokens": 3},
]


def test_a_request_gives_the_same_tokens_whatever_its_batch_mates_and_nothing_compiles(
    engine: DecoderEngine, compiled: list[str]
) -> None:
    run(engine, [ask()])
    compiled.clear()
    alone = {i: one(engine, request_id=i, **kwargs).token_ids for i, kwargs in enumerate(MIXTURE)}
    together = run(engine, [ask(i, **kwargs) for i, kwargs in enumerate(MIXTURE)])
    backwards = run(engine, [ask(i, **MIXTURE[i]) for i in reversed(range(len(MIXTURE)))])
    assert {i: output.token_ids for i, output in together.items()} == alone
    assert {i: output.token_ids for i, output in backwards.items()} == alone
    assert compiled == []
    assert engine.status().compiled_programs == engine._programs.total <= 24


def test_no_seed_means_another_text_each_time(engine: DecoderEngine) -> None:
    texts = {one(engine, sampling=SamplingParams(temperature=1.0)).token_ids for _ in range(3)}
    assert len(texts) == 3


def test_a_stop_token_ends_without_being_shown(engine: DecoderEngine) -> None:
    plain = one(engine).token_ids
    stopped = one(engine, stop_token_ids=(plain[7],))
    assert stopped.finish_reason == "stop"
    assert stopped.token_ids == plain[: plain.index(plain[7])]
    assert one(engine, stop_token_ids=(plain[7],), ignore_eos=True).token_ids == plain


def test_the_context_ends_a_text(engine: DecoderEngine) -> None:
    output = one(engine, prompt_token_ids=PROMPT * 50, max_tokens=1000)
    assert output.finish_reason == "length"
    assert len(output.token_ids) == 256 - 250


def test_no_tokens_wanted_is_a_prompt_computed(engine: DecoderEngine) -> None:
    output = one(engine, prompt_token_ids=PROMPT, max_tokens=0, prompt_logprobs=True, top_logprobs=0)
    assert (output.token_ids, output.finish_reason) == ((), "length")
    assert len(output.prompt_logprobs) == len(PROMPT)


def test_log_probabilities_are_those_of_a_whole_forward_pass(engine: DecoderEngine) -> None:
    prompt = PROMPT * 30  # three chunks of the scoring size
    output = one(engine, prompt_token_ids=prompt, max_tokens=4, prompt_logprobs=True, top_logprobs=3)
    tokens = np.array(prompt + output.token_ids, np.int32)[None]
    programs = engine._programs
    positions = np.arange(tokens.shape[1], dtype=np.int32)[None]
    hidden = decoder_model.encode(programs.config, programs.params, tokens, positions)
    scores = jax.nn.log_softmax(decoder_model.logits(programs.config, programs.params, hidden))[0]
    entries = [*output.prompt_logprobs, *output.logprobs]
    assert entries[0] is None
    for at, entry in enumerate(entries[1:], start=1):
        assert entry is not None
        assert entry.token_id == tokens[0, at]
        assert entry.logprob == pytest.approx(float(scores[at - 1, entry.token_id]), abs=2e-3)
        assert [token for token, _ in entry.top] == np.argsort(-scores[at - 1])[:3].tolist()


def test_a_prefix_computed_once_is_not_computed_again_and_gives_the_same_text(engine: DecoderEngine) -> None:
    prompt = PROMPT * 25
    cold = one(engine, prompt_token_ids=prompt, cache_salt="a")
    warm = one(engine, prompt_token_ids=prompt, cache_salt="a")
    other = one(engine, prompt_token_ids=prompt, cache_salt="b")
    assert [each.usage.cached for each in (cold, warm, other) if each.usage] == [0, 124, 0]
    assert cold.token_ids == warm.token_ids == other.token_ids
    longer = (*prompt, *cold.token_ids, *PROMPT)
    turn = one(engine, prompt_token_ids=longer, cache_salt="a")
    fresh = one(engine, prompt_token_ids=longer, cache_salt="c")
    assert turn.usage is not None
    assert turn.usage.cached == len(prompt) + len(cold.token_ids) - 1
    assert turn.token_ids == fresh.token_ids


def test_requests_in_flight_share_a_prefix_by_copying_it(engine: DecoderEngine) -> None:
    shared = PROMPT * 20
    requests = [ask(i, prompt_token_ids=(*shared, 300 + i), cache_salt="d") for i in range(3)]
    outputs = run(engine, requests)
    assert sorted(output.usage.cached for output in outputs.values()) == [0, 100, 100]
    for request in requests:
        alone = one(engine, prompt_token_ids=request.prompt_token_ids, cache_salt="e")
        assert outputs[request.request_id].token_ids == alone.token_ids


def test_a_grammar_is_obeyed_to_its_end(engine: DecoderEngine, stories: Any) -> None:
    choices = ["the big dog ran", "a red ball", "no"]
    for seed in range(4):
        output = one(
            engine,
            grammar=Grammar("choice", json.dumps(choices)),
            sampling=SamplingParams(temperature=1.5, seed=seed),
            stop_token_ids=(2,),
        )
        assert output.finish_reason == "stop"
        assert stories.text(list(output.token_ids)) in choices


def test_a_grammar_no_token_can_obey_ends_its_request_alone(engine: DecoderEngine) -> None:
    banned = SamplingParams(temperature=0.0, logit_bias=tuple((token, float("-inf")) for token in range(256)))
    outputs = run(engine, [ask(1), ask(2, grammar=Grammar("regex", "[\\x01]+"), sampling=banned)])
    assert outputs[1].finish_reason == "length"
    assert isinstance(outputs[2], Exception) or outputs[2].finish_reason in ("error", "length")


def test_vectors_are_those_of_the_whole_sequence_beside_running_streams(engine: DecoderEngine) -> None:
    prompts = [PROMPT, PROMPT * 14, PROMPT]
    engine.submit(ask(50, max_tokens=20), None)
    for i, prompt in enumerate(prompts):
        engine.submit_embedding(EncodeRequest(i, prompt))
    outputs, tokens = {}, 0
    while engine.wait_seconds() is not None:
        result = engine.step()
        outputs |= {output.request_id: output for output in result.embedded}
        tokens += sum(len(output.token_ids) for output in result.outputs)
    assert tokens == 20
    programs = engine._programs
    for i, prompt in enumerate(prompts):
        exact = embed(programs.config, programs.params, np.array([prompt], np.int32))[0]
        vector = np.frombuffer(outputs[i].vector, "<f4")
        np.testing.assert_allclose(vector, exact, atol=1e-5)
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
        assert outputs[i].usage.prompt == len(prompt)
    for wrong, words in (((), "no tokens"), ((9999,), "vocabulary"), ((5,) * 257, "257 tokens")):
        with pytest.raises(InvalidRequest, match=words):
            engine.submit_embedding(EncodeRequest(1, wrong))


def test_cancelling_frees_the_slot_within_a_step(engine: DecoderEngine) -> None:
    for request_id in (1, 2, 3):
        engine.submit(ask(request_id, max_tokens=200), None)
    for _ in range(5):
        engine.step()
    assert (engine.status().running, engine.status().waiting) == (2, 1)
    engine.cancel(1)
    result = engine.step()
    assert [output.finish_reason for output in result.outputs if output.request_id == 1] == ["cancelled"]
    assert (engine.status().running, engine.status().waiting) == (2, 0)
    engine.cancel(2)
    engine.cancel(3)
    engine.cancel(77)
    while engine.wait_seconds() == 0:
        engine.step()


def test_damaged_numbers_end_their_request_alone(
    engine: DecoderEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = Programs.sample

    def damage(self: Programs, logits: jax.Array, slots: Any, *rest: Any) -> Sampled:
        sampled = sample(self, logits, slots, *rest)
        packed = np.array(sampled.packed)
        packed[[row for row, slot in enumerate(slots) if slot == 1], 1] = BAD_LOGITS
        return replace(sampled, packed=packed)

    monkeypatch.setattr(Programs, "sample", damage)
    outputs = run(engine, [ask(1), ask(2)])
    reasons = sorted(output.finish_reason for output in outputs.values())
    assert reasons == ["error", "length"]
    assert any("not finite" in (output.error or "") for output in outputs.values())


def test_a_device_without_room_fails_one_request_and_goes_on(
    engine: DecoderEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefill = Programs.prefill

    def refuse(self: Programs, tokens: Any, *rest: Any) -> Any:
        if 333 in tokens:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8589934592 bytes.")
        return prefill(self, tokens, *rest)

    monkeypatch.setattr(Programs, "prefill", refuse)
    outputs = run(engine, [ask(1), ask(2, prompt_token_ids=(BOS, 333)), ask(3)])
    assert isinstance(outputs[2], OutOfMemory)
    assert outputs[1].token_ids == outputs[3].token_ids


def test_a_lost_cache_fails_all_that_ran_and_the_next_request_works(
    engine: DecoderEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = one(engine, cache_salt="lost").token_ids
    decode = Programs.decode
    calls = iter(range(100))

    def lose(self: Programs, *args: Any) -> Any:
        if next(calls) == 3:
            for leaf in jax.tree.leaves(self.state):
                leaf.delete()
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return decode(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(Programs, "decode", lose)
        outputs = run(engine, [ask(1), ask(2)])
    assert all(isinstance(output, OutOfMemory) for output in outputs.values())
    assert one(engine, cache_salt="lost").token_ids == before


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"prompt_token_ids": ()}, "no tokens"),
        ({"prompt_token_ids": (512,)}, "vocabulary of 512"),
        ({"prompt_token_ids": (BOS,) * 256}, "256 tokens, but the context is 256"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"top_logprobs": 21}, "at most 20"),
        ({"adapter": "x"}, "no adapter"),
        ({"sampling": SamplingParams(temperature=float("nan"))}, "temperature"),
        ({"sampling": SamplingParams(top_p=1.5)}, "top_p is 1.5"),
        ({"sampling": SamplingParams(logit_bias=((999, 1.0),))}, "vocabulary"),
        ({"sampling": SamplingParams(logit_bias=tuple((i, 1.0) for i in range(300)))}, "at most 256"),
    ],
)
def test_impossible_requests_are_refused_with_the_limit(
    engine: DecoderEngine, wrong: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words):
        engine.submit(ask(**wrong), None)
    assert engine.wait_seconds() is None


def random_model(family: str, folder: Path) -> tuple[ModelFile, ...]:
    """A tiny checkpoint by the recipe of the golden logits."""
    root = Path(__file__).resolve().parents[2]
    spec = importlib.util.spec_from_file_location("recipe", root / "parity" / "recipe.py")
    assert spec and spec.loader
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    with np.load(root / "golden" / "logits" / f"{family}.npz") as golden:
        described = json.loads(golden["model"].tobytes())
    tensors = recipe.make_tensors(described["shapes"], True)
    return tuple(recipe.write_folder(folder, described["config"], tensors))


def test_prefixes_are_right_on_sliding_windows_that_have_wrapped(tmp_path: Path) -> None:
    """Window 8, ring 640: a reused prefix must give the very text of a prompt computed afresh."""
    engine = DecoderEngine(compiler_options=QUICK)
    files = random_model("gemma3", tmp_path)
    engine.load(LoadRequest(files, Limits(1, 1024)), lambda progress: None)
    chooser = np.random.default_rng(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(chooser.integers(3, 64, count).tolist())

    def turn(prompt: tuple[int, ...], salt: str) -> StepOutput:
        return one(engine, prompt_token_ids=prompt, max_tokens=12, cache_salt=salt)

    shared = tokens(700)
    near = [(*shared, *tokens(40)) for _ in range(3)]
    far = [(*shared[:200], *tokens(700)) for _ in range(3)]
    afresh = {prompt: turn(prompt, f"fresh {i}").token_ids for i, prompt in enumerate([*near, *far])}
    for prompts, expected in ((near, [0, 700, 700]), (far, [0, 0, 200])):
        outputs = [turn(prompt, f"warm {len(prompts[0])}") for prompt in prompts]
        assert [output.usage.cached for output in outputs if output.usage] == expected
        assert [output.token_ids for output in outputs] == [afresh[prompt] for prompt in prompts]
    engine._programs.stop_compiling()


def test_an_encoder_only_embeds(tmp_path: Path) -> None:
    engine = DecoderEngine(compiler_options=QUICK)
    files = random_model("embedding_gemma", tmp_path)
    ready = engine.load(LoadRequest(files, Limits(1, 64)), lambda progress: None)
    assert ready.capabilities == ("embed",)
    with pytest.raises(InvalidRequest, match="embeds only"):
        engine.submit(ask(), None)
    engine.submit_embedding(EncodeRequest(1, (3, 4, 5)))
    (output,) = engine.step().embedded
    assert np.linalg.norm(np.frombuffer(output.vector, "<f4")) == pytest.approx(1, abs=1e-5)
    assert engine.status().compiled_programs == engine._programs.total == 1
    engine._programs.stop_compiling()


def test_a_step_updates_the_cache_in_place(engine: DecoderEngine) -> None:
    programs = engine._programs
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(programs.state))
    for kind, size in (("decode", 2), ("prefill", 64), ("copy", 1)):
        memory = programs._compiled[kind, size].memory_analysis()
        assert memory.alias_size_in_bytes >= held, kind


def lora(folder: Path, seed: int, to_safetensors: Any, rank: int = 4) -> tuple[ModelFile, ...]:
    """A PEFT adapter of one matrix."""
    folder.mkdir()
    chooser = np.random.default_rng(seed)
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_"
    tensors = {
        f"{name}A.weight": chooser.standard_normal((rank, 64)).astype(np.float32),
        f"{name}B.weight": chooser.standard_normal((172, rank)).astype(np.float32),
    }
    (folder / "adapter_model.safetensors").write_bytes(to_safetensors(tensors))
    (folder / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 8}')
    return tuple(
        ModelFile("adapter", path.name, str(path), "sha256:" + "0" * 64, path.stat().st_size)
        for path in sorted(folder.iterdir())
    )


def place(engine: DecoderEngine, slot: int, name: str, files: tuple[ModelFile, ...]) -> None:
    adapter = AdapterFiles(name, files)
    engine.adapt(AdaptRequest(0, slot, adapter), engine.read_adapter(adapter))


def test_adapters_come_and_go_in_slots_without_compiling(
    stories_folder: list[ModelFile], to_safetensors: Any, tmp_path: Path, compiled: list[str]
) -> None:
    first, second, wide = (
        lora(tmp_path / str(i), i, to_safetensors, rank) for i, rank in ((1, 4), (2, 3), (3, 40))
    )
    engine = DecoderEngine(compiler_options=QUICK)
    room = AdapterRoom(1, 8, ("up",))
    engine.load(LoadRequest(tuple(stories_folder), Limits(2, 64), adapter_room=room), lambda progress: None)
    engine._programs.wait_all()
    place(engine, 1, "first", first)
    compiled.clear()
    plain = one(engine, max_tokens=20)
    outputs = run(engine, [ask(1, max_tokens=20), ask(2, max_tokens=20, adapter="first")])
    assert outputs[1].token_ids == plain.token_ids != outputs[2].token_ids

    engine.submit(ask(3, adapter="first"), None)
    with pytest.raises(InvalidRequest, match="slot 1 is in use"):
        place(engine, 1, "second", second)
    engine.cancel(3)
    engine.step()
    place(engine, 1, "second", second)
    other = one(engine, max_tokens=20, adapter="second")
    assert other.token_ids not in (plain.token_ids, outputs[2].token_ids)
    with pytest.raises(InvalidRequest, match="loaded: second"):
        engine.submit(ask(adapter="first"), None)

    place(engine, 1, "first", first)
    assert one(engine, max_tokens=20, adapter="first").token_ids == outputs[2].token_ids
    assert one(engine, max_tokens=20).token_ids == plain.token_ids
    with pytest.raises(LoadFailed, match="rank 40 on up; there is room for rank 8"):
        place(engine, 1, "wide", wide)
    with pytest.raises(InvalidRequest, match="no adapter slot 2"):
        place(engine, 2, "second", second)

    for request in (EncodeRequest(1, (BOS, 400, 401)), EncodeRequest(2, (BOS, 400, 401), "first")):
        engine.submit_embedding(request)
    vectors: dict[int, bytes] = {}
    while len(vectors) < 2:
        vectors |= {each.request_id: each.vector for each in engine.step().embedded}
    usual, changed = (np.frombuffer(vectors[key], "<f4") for key in (1, 2))
    assert abs(float(usual @ usual) - 1) < 1e-5
    assert float(usual @ changed) < 0.999
    assert compiled == []


def test_sizes_of_programs_stay_few() -> None:
    for slots in (1, 2, 3, 8, 16, 64, 256):
        rows = row_sizes(slots)
        assert rows[0] == 1
        assert rows[-1] == slots
        assert 3 * len(rows) + len(prefill_sizes(100_000)) + len(EMBED_SIZES) + 2 <= 24
    assert prefill_sizes(20) == (16, 64)
    assert prefill_sizes(200) == (16, 64, 256)
    assert prefill_sizes(100) == (16, 64)  # the cache has 128 positions
    assert prefill_sizes(300) == (16, 64, 256)
    assert prefill_sizes(385) == (16, 64, 256, 512)


def test_the_published_text_comes_out_of_a_runner_alone_and_eight_times_at_once(
    stories_folder: list[ModelFile], stories: Any, shared_data: Path, tmp_path: Path
) -> None:
    """Through a process of its own, frames and all."""
    card = (shared_data / "models" / "stories260K" / "UPSTREAM-stories260K.md").read_text()
    published = card.split("-t 0.0\n", 1)[1].split("\n```", 1)[0].strip()
    load = LoadRequest(tuple(stories_folder), Limits(8, 512), compile_cache=str(tmp_path / "cache"))

    async def check() -> None:
        client = await RunnerClient.start(load)
        try:
            request = ask(max_tokens=256, stop_token_ids=(BOS,))
            outputs = [await collect(client, request)]
            outputs += await asyncio.gather(*(collect(client, request) for _ in range(8)))
            assert {stories.text(list(output.token_ids)).strip() for output in outputs} == {published}
            status = await client.status()
            assert status.generated_total == sum(len(output.token_ids) for output in outputs)
        finally:
            await client.close()

    asyncio.run(asyncio.wait_for(check(), 100))
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
    assert any((tmp_path / "cache").iterdir())


async def collect(client: RunnerClient, request: GenerateRequest) -> StepOutput:
    async with aclosing(await client.generate(request)) as outputs:
        return merge_outputs([output async for output in outputs])
