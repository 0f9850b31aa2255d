"""Which card is found and chosen, with a stand-in for `nvidia-smi` on the PATH."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engines.base import Limits, LoadFailed, LoadRequest
from engines.runner import device_environment, gpu_memory_bytes
from gateway.memory import GPU_SHARE, Gpu, choose_device, find_gpus

MIB = 1 << 20
SmiWith = Callable[[str], None]

TWO_CARDS = """\
0, GPU-aaaa-1, 570.1, 8192, 8000, NVIDIA GeForce RTX 3070, Laptop
1, GPU-bbbb-2, 570.1, 143771, 143000, NVIDIA H200
"""
SHARED_MEMORY = "0, GPU-cccc-3, 580.9, [N/A], [N/A], NVIDIA GB10\n"


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmiWith:
    """Puts an `nvidia-smi` first on the PATH that prints a text, and the third field of it for `-i`."""

    def install(text: str) -> None:
        total = text.splitlines()[-1].split(",")[3].strip() if text else ""
        program = tmp_path / "nvidia-smi"
        program.write_text(
            f'#!/bin/sh\ncase "$*" in *-i\\ *) echo "{total}";; *) cat <<END\n{text}END\n;; esac\n',
            encoding="utf-8",
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    return install


def test_cards_are_read_with_their_memory(smi: SmiWith) -> None:
    smi(TWO_CARDS)
    first, second = find_gpus()
    assert (first.name, first.total_bytes) == ("NVIDIA GeForce RTX 3070, Laptop", 8192 * MIB)
    assert (second.index, second.driver, second.free_bytes) == (1, "570.1", 143000 * MIB)


def test_no_tool_means_no_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_gpus() == []


@pytest.mark.parametrize(
    ("visible", "indices"),
    [("1", [1]), ("1,0", [1, 0]), ("GPU-bbbb", [1]), ("", []), ("-1", []), ("0,7,1", [0]), ("GPU-", [])],
)
def test_cards_hidden_from_cuda_are_not_chosen(smi: SmiWith, visible: str, indices: list[int]) -> None:
    smi(TWO_CARDS)
    assert [gpu.index for gpu in find_gpus(visible)] == indices


def test_the_card_with_most_free_memory_serves_within_its_share(smi: SmiWith) -> None:
    smi(TWO_CARDS)
    device = choose_device("auto", 0, 5 * MIB, find_gpus(), cuda=True)
    assert (device.kind, device.index) == ("gpu", 1)
    assert device.budget == int(143771 * MIB * GPU_SHARE) - 5 * MIB


def test_a_card_with_the_hosts_memory_gets_a_share_of_it(smi: SmiWith) -> None:
    smi(SHARED_MEMORY)
    device = choose_device("gpu", 0, 0, find_gpus(), cuda=True)
    assert device.budget > 0
    assert gpu_memory_bytes(0) == 0


def test_a_card_without_the_cuda_build_is_a_warning_or_an_error() -> None:
    card = Gpu(0, "NVIDIA H200", "570.1", 143771 * MIB, 143000 * MIB)
    device = choose_device("auto", 0, 0, [card], cuda=False)
    assert device.kind == "cpu"
    assert "make setup" in (device.warning or "")
    with pytest.raises(ValueError, match="CUDA build of JAX is not installed"):
        choose_device("gpu", 0, 0, [card], cuda=False)


def load_on_gpu(memory_bytes: int) -> LoadRequest:
    return LoadRequest(
        files=(), limits=Limits(1, 128), device="gpu", device_index=1, memory_bytes=memory_bytes
    )


def test_a_runner_gets_one_card_and_its_part_of_the_memory(smi: SmiWith) -> None:
    smi(TWO_CARDS)
    found = device_environment(load_on_gpu(1437710 * MIB // 100), gpu_memory_bytes)
    assert found["JAX_PLATFORMS"] == "cuda"
    assert (found["CUDA_DEVICE_ORDER"], found["CUDA_VISIBLE_DEVICES"]) == ("PCI_BUS_ID", "1")
    assert found["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
    share = float(found["XLA_PYTHON_CLIENT_MEM_FRACTION"])
    assert 0 <= share * 143771 - 14377.10 < 1  # never less than asked, and less than a MiB more


@pytest.mark.parametrize("memory_bytes", [0, 1 << 30])
def test_there_is_no_part_of_an_unknown_memory(smi: SmiWith, memory_bytes: int) -> None:
    smi(SHARED_MEMORY)
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION" not in device_environment(
        load_on_gpu(memory_bytes), gpu_memory_bytes
    )


def test_a_driver_that_does_not_answer_fails_the_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LoadFailed, match="nvidia-smi does not tell the memory of GPU 1"):
        device_environment(load_on_gpu(1 << 30), gpu_memory_bytes)
