"""`gemmule fsck` as a user runs it, on a store of its own and without a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.cli.main import main
from registry.store import Store
from tests.registry.conftest import gguf_bytes
from tests.registry.fakehub import FakeHub
from tests.registry.hubs import pull
from tests.registry.test_store import add

Fsck = Callable[..., tuple[int, str, str]]


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "models")


@pytest.fixture
def fsck(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], hub: FakeHub
) -> Fsck:
    """Runs `gemmule fsck ...`; exit code, standard output, standard error."""
    monkeypatch.setenv("GEMMULE_MODELS", str(store.root))
    monkeypatch.setenv("GEMMULE_EXTRA_STORES", str(store.root / "none"))
    monkeypatch.setenv("HF_ENDPOINT", hub.url)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["fsck", *arguments])
        written = capsys.readouterr()
        return code, written.out, written.err

    return run


def damage(store: Store, name: str) -> str:
    """Flips bits of the model's weights; their digest."""
    (file,) = store.get(name).files
    with Path(file.path).open("r+b") as opened:
        opened.write(b"XXXX")
    return file.digest


def test_what_is_damaged_and_nothing_else_is_fetched_again(store: Store, hub: FakeHub, fsck: Fsck) -> None:
    name = hub.add_oci("me/fox", [("model", gguf_bytes(1, 5000)), ("system", b"sly")])
    hub.repos["org/owl"] = {"owl-Q4_0.gguf": gguf_bytes(2, 5000), "params": b'{"top_k":3}'}
    pull(store, hub, name)
    names = (name, "hf.co/org/owl:Q4_0")
    pull(store, hub, names[1])
    lost = {damage(store, each) for each in names}
    before = {each: store.entry(each).digest for each in names}
    hub.requests.clear()
    code, out, err = fsck("--fetch")
    assert (code, err) == (0, "")
    assert {line.split()[-1] for line in out.splitlines() if line.startswith("fetched again")} == lost
    assert len(hub.asked("/blobs/")) == len(hub.asked("/resolve/")) == 1
    assert fsck()[:2] == (0, "2 models, 6 blobs, 10 KB read: nothing wrong\n")
    again = Store.open(store.root)
    assert {each: again.entry(each).digest for each in names} == before
    assert Path(again.get(name).files[0].path).read_bytes() == gguf_bytes(1, 5000)


def test_what_nobody_else_has_stays_named(store: Store, hub: FakeHub, fsck: Fsck) -> None:
    name = add(store, f"{hub.netloc}/me/own", gguf_bytes(3)).name.full()
    damage(store, name)
    code, out, err = fsck("--fetch")
    assert code == 1
    assert "used by" in out
    assert "fetched again" not in out
    assert err == ""
