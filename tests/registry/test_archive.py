"""Archives of strangers: slips, links, devices and bombs; and models carried as files."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from registry.archive import Limits, open_archive
from registry.errors import DiskFull, InvalidArchive, ModelCorrupt, ModelNotFound
from registry.progress import Progress
from registry.store import Store
from registry.transfer import export_model, import_model
from tests.registry.hubs import BIG, clean
from tests.registry.test_store import add, names


def tar_of(*members: tuple[str, bytes, bytes, str], mode: str = "w") -> bytes:
    """A tar of (name, type, data, link target)."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as archive:  # type: ignore[call-overload]
        for name, kind, data, target in members:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, len(data), target
            archive.addfile(info, io.BytesIO(data))
    return packed.getvalue()


def zip_of(name: str, data: bytes, mode: int = 0) -> bytes:
    """A zip with one member."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        archive.writestr(info, data, zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def read(tmp_path: Path, data: bytes, limits: Limits | None = None) -> dict[str, bytes]:
    """Everything in the archive."""
    path = tmp_path / "archive"
    path.write_bytes(data)
    return {member.name: b"".join(member.chunks) for member in open_archive(path, lambda name: True, limits)}


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_plain_members_come_out(tmp_path: Path, mode: str) -> None:
    long = "d/" * 60 + "x" * 90
    data = tar_of(
        ("./a", tarfile.REGTYPE, b"1", ""),
        ("d", tarfile.DIRTYPE, b"", ""),
        (long, tarfile.REGTYPE, b"2", ""),
        mode=mode,
    )
    assert read(tmp_path, data) == {"a": b"1", long: b"2"}
    assert read(tmp_path, zip_of("a/b", b"3")) == {"a/b": b"3"}


HOSTILE: dict[str, Callable[[], bytes]] = {
    "dots": lambda: tar_of(("../x", tarfile.REGTYPE, b"", "")),
    "inner dots": lambda: tar_of(("a/../../x", tarfile.REGTYPE, b"", "")),
    "absolute": lambda: tar_of(("/etc/passwd", tarfile.REGTYPE, b"", "")),
    "symlink": lambda: tar_of(("a", tarfile.SYMTYPE, b"", "/etc"), ("a/x", tarfile.REGTYPE, b"", "")),
    "hardlink": lambda: tar_of(("a", tarfile.LNKTYPE, b"", "/etc/passwd")),
    "device": lambda: tar_of(("a", tarfile.CHRTYPE, b"", "")),
    "fifo": lambda: tar_of(("a", tarfile.FIFOTYPE, b"", "")),
    "longer than a path": lambda: tar_of(("x/" * 3000, tarfile.REGTYPE, b"", "")),
    "backslash": lambda: tar_of(("a\\..\\b", tarfile.REGTYPE, b"", "")),
    "truncated": lambda: tar_of(("a", tarfile.REGTYPE, b"1" * 5000, ""))[:1000],
    "no archive": lambda: b"hello" * 1000,
    "empty": lambda: b"",
    "cut gzip": lambda: gzip.compress(tar_of(("a", tarfile.REGTYPE, b"1" * 50000, "")))[:100],
    "zip dots": lambda: zip_of("../x", b""),
    "zip link": lambda: zip_of("x", b"/etc/passwd", 0o120777),
    "zip device": lambda: zip_of("x", b"", 0o020666),
    "gzip bomb": lambda: gzip.compress(tar_of(("a", tarfile.REGTYPE, bytes(40 << 20), ""))),
    "zip bomb": lambda: zip_of("a", bytes(40 << 20)),
    "header bomb": lambda: gzip.compress(tar_of(("x" * (8 << 20), tarfile.REGTYPE, b"", ""))),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archives_are_refused(tmp_path: Path, case: str) -> None:
    with pytest.raises(InvalidArchive):
        read(tmp_path, HOSTILE[case]())
    assert [path.name for path in tmp_path.iterdir()] == ["archive"]


def test_too_many_members(tmp_path: Path) -> None:
    data = tar_of(*[(f"f{number}", tarfile.REGTYPE, b"", "") for number in range(20)])
    assert len(read(tmp_path, data, Limits(members=20))) == 20
    with pytest.raises(InvalidArchive, match="more than 19 members"):
        read(tmp_path, data, Limits(members=19))


def test_a_model_travels_as_a_file(store: Store, tmp_path: Path) -> None:
    model = add(store, "me/fox:v1", BIG, system="sly", top_k=3)
    file = tmp_path / "fox.tar"
    with file.open("wb") as target:
        export_model(store, "me/fox:v1", target)
    other = Store.open(tmp_path / "other")
    assert import_model(other, file).digest == model.digest
    import_model(other, file, "wolf")
    assert names(other) == {"me/fox:v1", "wolf:latest"}
    assert other.get("wolf").system == "sly"
    clean(other)
    with pytest.raises(ModelNotFound):
        export_model(store, "ghost", io.BytesIO())


def test_a_carried_file_that_was_tampered_with(store: Store, tmp_path: Path) -> None:
    add(store, "fox", BIG)
    packed = io.BytesIO()
    export_model(store, "fox", packed)
    data = bytearray(packed.getvalue())
    data[-2_000_000] ^= 1
    (tmp_path / "flipped").write_bytes(data)
    with pytest.raises(Exception, match="digest mismatch"):
        import_model(store, tmp_path / "flipped", "other")
    (tmp_path / "short").write_bytes(packed.getvalue()[: 1 << 20])
    (tmp_path / "alien").write_bytes(tar_of(("index.json", tarfile.REGTYPE, b"{}", "")))
    for name in ("short", "alien"):
        with pytest.raises(InvalidArchive):
            import_model(store, tmp_path / name, "other")
    assert names(store) == {"fox:latest"}
    Path(store.get("fox").files[0].path).unlink()
    with pytest.raises(ModelCorrupt):
        export_model(store, "fox", io.BytesIO())


def test_an_export_tells_how_far_it_is_and_what_stops_it(store: Store) -> None:
    model = add(store, "fox", BIG)
    lines: list[Progress] = []
    export_model(store, "fox", io.BytesIO(), lines.append)
    done = [line.completed or 0 for line in lines if line.digest == model.files[0].digest]
    assert len(done) > 2
    assert (done, done[-1]) == (sorted(done), len(BIG))
    with Path("/dev/full").open("wb", buffering=0) as full, pytest.raises(DiskFull):
        export_model(store, "fox", full)
    with Path(model.files[0].path).open("r+b") as file:
        file.write(b"X")
    with pytest.raises(ModelCorrupt, match="does not hash to its name"):
        export_model(store, "fox", io.BytesIO())
