"""What a pull says before the first byte: sizes, disk, memory, the quantization that fits."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from engines.decoder.params import memory_needed
from modelfiles.files import ModelFile
from modelfiles.gguf import GgufError
from modelfiles.safetensors import SafetensorsFile
from registry.blobs import parse_digest
from registry.disk import Disk
from registry.errors import DiskFull, HeadersCut, UnsupportedFormat
from registry.plan import Fit, Measure, Plan
from registry.progress import Progress
from registry.pull import Puller
from registry.store import Store
from tests.registry.conftest import describe, gguf_bytes, safetensors_bytes
from tests.registry.fakehub import FakeHub, Fault
from tests.registry.hubs import BIG, MIB, cancel_at, clean, pull, repo, settings

BUD = (Path(__file__).resolve().parents[2] / "registry" / "bundled" / "bud.gguf").read_bytes()


def sizes_of(files: Sequence[ModelFile]) -> int:
    """A measure for files whose headers are too small to be models: what they weigh."""
    return sum(file.size for file in files if file.role == "weights")


def within(budget: int) -> Measure:
    """A measure by weight alone."""

    async def measure(files: Sequence[ModelFile]) -> Fit:
        return Fit(sizes_of(files), budget, 8192)

    return measure


async def measure_decoder(files: Sequence[ModelFile]) -> Fit:
    """The engine's own arithmetic on the headers."""
    try:
        return Fit(memory_needed(files, 1, 2048), 1 << 40, 2048)
    except GgufError as error:
        raise HeadersCut(str(error)) from error


def plan_of(store: Store, hub: FakeHub, reference: str, measure: Measure | None = None) -> Plan:
    async def run() -> Plan:
        made = Puller(store, settings(hub), describe, measure=measure)
        try:
            return await made.plan(reference)
        finally:
            await made.close()

    return asyncio.run(run())


def staged(store: Store) -> list[Path]:
    return list(store.blobs.staging.iterdir())


@pytest.mark.parametrize("token", ["", "s3cret"])
def test_memory_is_told_from_the_header_alone(store: Store, hub: FakeHub, tmp_path: Path, token: str) -> None:
    hub.token = token
    name = hub.add_oci("me/bud", [("model", BUD + bytes(20 * MIB))])
    plan = plan_of(store, hub, name, measure_decoder)
    whole = tmp_path / "bud.gguf"
    whole.write_bytes(BUD)
    file = ModelFile("weights", whole.name, str(whole), "", len(BUD))
    assert plan.fit == Fit(memory_needed([file], 1, 2048), 1 << 40, 2048)
    assert hub.sent("/blobs/") == MIB
    assert staged(store) == []
    clean(store)


def test_a_header_longer_than_the_first_look_is_read_on(store: Store, hub: FakeHub) -> None:
    name = hub.add_oci("me/fox", [("model", gguf_bytes(1, 20 * MIB))])
    looks: list[int] = []

    async def measure(files: Sequence[ModelFile]) -> Fit:
        assert files[0].size == len(gguf_bytes(1, 20 * MIB))
        looks.append(hub.sent("/blobs/"))
        if len(looks) < 3:
            raise HeadersCut("more")
        return Fit(1, 2, 3)

    assert plan_of(store, hub, name, measure).fit == Fit(1, 2, 3)
    assert looks == [1 * MIB, 8 * MIB, len(gguf_bytes(1, 20 * MIB))]  # nothing is fetched twice


def test_the_largest_quantization_that_fits(store: Store, hub: FakeHub) -> None:
    sizes = {"Q2_K": 100, "Q4_K_M": 200, "Q8_0": 300, "F16": 400}
    hub.repos["org/fox"] = {
        f"fox-{name}.gguf": gguf_bytes(index, size) for index, (name, size) in enumerate(sizes.items())
    }
    weights = {name: len(gguf_bytes(0, size)) for name, size in sizes.items()}
    found = {
        budget: plan_of(store, hub, "hf.co/org/fox", within(budget)) for budget in (50, *weights.values())
    }
    assert {plan.chosen for plan in found.values()} == {"Q4_K_M"}
    assert [plan.best for plan in found.values()] == ["", "Q2_K", "Q4_K_M", "Q8_0", "F16"]
    fits = [plan.fit.fits for plan in found.values() if plan.fit]
    assert fits == [False, False, True, True, True]
    assert found[weights["F16"]].choices == weights


def test_safetensors_are_measured_by_headers_and_config(store: Store, hub: FakeHub) -> None:
    shards = {f"model-0000{part}-of-00002.safetensors": safetensors_bytes(part, 3 * MIB) for part in (1, 2)}
    config = json.dumps({"model_type": "x", "padding": "y" * 200}).encode()
    hub.repos["org/fox"] = {**shards, "config.json": config, "tokenizer.json": b"{" + b" " * MIB}
    seen: dict[str, ModelFile] = {}
    headers: list[set[str]] = []

    async def measure(files: Sequence[ModelFile]) -> Fit:
        seen.update({file.name: file for file in files})
        await asyncio.to_thread(read)
        return Fit(1, 1, 1)

    def read() -> None:
        assert Path(seen["config.json"].path).read_bytes() == config
        headers.extend(set(SafetensorsFile.open(seen[name].path).tensors) for name in shards)

    assert plan_of(store, hub, "hf.co/org/fox", measure).fit
    assert sorted(seen) == ["config.json", *sorted(shards)]
    assert headers == [{"w"}, {"w"}]
    assert hub.sent("/tokenizer.json") == 0
    assert hub.sent(".safetensors") <= 2 * MIB


def test_what_would_not_be_served_is_told_before(store: Store, hub: FakeHub) -> None:
    name = hub.add_oci("me/fox", [("model", gguf_bytes(1, 5000))])

    async def refuse(files: Sequence[ModelFile]) -> Fit:
        raise UnsupportedFormat("architecture 'fox' is not known")

    plan = plan_of(store, hub, name, refuse)
    assert (plan.fit, plan.obstacle) == (None, "architecture 'fox' is not known")


def test_a_source_that_falters_only_leaves_the_memory_open(store: Store, hub: FakeHub) -> None:
    name = hub.add_oci("me/fox", [("model", gguf_bytes(1, 5000))])
    hub.faults["/blobs/"] = [Fault(status=503)] * 3
    plan = plan_of(store, hub, name, within(1))
    assert (plan.fit, plan.obstacle) == (None, "")
    hub.faults["/blobs/"] = [Fault(status=503), Fault(ignore_range=True)]
    plan = plan_of(store, hub, name, within(1))
    assert plan.fit is not None


def test_what_is_here_is_measured_without_the_network(store: Store, hub: FakeHub) -> None:
    data = gguf_bytes(1, 5000)
    name = hub.add_oci("me/fox", [("model", data)])
    with store.lease_empty() as lease:
        store.blobs.put_bytes(data, lease)
        plan = plan_of(store, hub, name, within(1 << 30))
    assert plan.fit == Fit(len(data), 1 << 30, 8192)
    assert plan.download_bytes == plan.total_bytes - len(data)
    assert hub.sent("/blobs/") == 0


def test_a_download_that_was_interrupted_counts_as_what_is_left_of_it(store: Store, hub: FakeHub) -> None:
    name = hub.add_oci("me/big", [("model", BIG)])
    hub.always[hashlib.sha256(BIG).hexdigest()] = Fault(hang_at=MIB * 3 // 2)

    async def interrupted() -> int:
        made = Puller(store, settings(hub, stall_timeout=30), describe)
        try:
            return await cancel_at(made, name, 0.5)
        finally:
            await made.close()

    had = asyncio.run(interrupted())
    plan = plan_of(store, hub, name)
    assert had <= plan.total_bytes - plan.download_bytes < len(BIG)


class SmallDisk(Disk):
    """A disk that says it has hardly any room."""

    def free_bytes(self, folder: Path) -> int:
        return 1000


def test_all_files_together_must_have_room(tmp_path: Path, hub: FakeHub) -> None:
    small = Store.open(tmp_path / "small", disk=SmallDisk())
    layers = [("model", gguf_bytes(1, 500)), ("projector", gguf_bytes(2, 500))]
    name = hub.add_oci("me/fox", layers)
    total = sum(len(data) for _, data in layers) + len(b"{}")
    lines: list[Progress] = []

    async def run() -> None:
        made = Puller(small, settings(hub), describe)
        try:
            async for line in made.pull(name):
                lines.append(line)
        finally:
            await made.close()

    with pytest.raises(DiskFull, match=f"need {total:,} bytes, have 1,000"):
        asyncio.run(run())
    assert hub.sent("/blobs/") == 0
    assert [line.plan.has_room for line in lines if line.plan] == [False]


def test_a_pull_tells_its_plan_once_before_the_first_byte(store: Store, hub: FakeHub) -> None:
    name = hub.add_oci("me/fox", [("model", gguf_bytes(1, 5000))])

    async def run() -> list[Progress]:
        made = Puller(store, settings(hub), describe, measure=within(1 << 30))
        try:
            return [line async for line in made.pull(name)]
        finally:
            await made.close()

    lines = asyncio.run(run())
    assert [line.status for line in lines[:2]] == ["pulling manifest", "pulling manifest"]
    assert [bool(line.plan) for line in lines].index(True) == 1
    assert lines[1].plan
    assert lines[1].plan.fit == Fit(len(gguf_bytes(1, 5000)), 1 << 30, 8192)
    assert replace(lines[1], plan=None) == lines[0]
    assert parse_digest(f"sha256:{hashlib.sha256(gguf_bytes(1, 5000)).hexdigest()}") in set(
        store.blobs.digests()
    )
    clean(store)


def test_sizes_and_choices_without_a_byte_of_the_files(store: Store, hub: FakeHub) -> None:
    hub.repos["org/fox"] = repo("Q4_0", "Q8_0")
    plan = plan_of(store, hub, "hf.co/org/fox")
    size = len(hub.repos["org/fox"]["fox-Q4_0.gguf"])
    assert (plan.total_bytes, plan.download_bytes, plan.has_room, plan.complete) == (size, size, True, True)
    assert (plan.chosen, plan.choices) == ("Q4_0", {"Q4_0": size, "Q8_0": size})
    assert hub.sent("/resolve/") == 0
    pull(store, hub, "hf.co/org/fox")
    assert plan_of(store, hub, "hf.co/org/fox").download_bytes == 0
