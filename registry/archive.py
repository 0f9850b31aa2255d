"""The one place that opens archives: tar (plain or gzip) and zip, member by member, as streams.

Nothing is ever extracted by name: the caller gets names that are plain relative paths and the bytes, and
decides where they go. Links, devices and anything else that is no regular file end the reading.
"""

from __future__ import annotations

import gzip
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from registry.errors import InvalidArchive, InvalidManifest
from registry.manifest import safe_relative

CHUNK = 1 << 20
_BROKEN = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, NotImplementedError)
_EXTENDED = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on an archive: members, bytes unpacked, and bytes unpacked per byte of the archive."""

    members: int = 8192
    total_bytes: int = 1 << 42
    ratio: int = 100


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in an archive; `chunks` can be read once, before the next member is asked for."""

    name: str
    size: int
    chunks: Iterator[bytes]


class _Bounded:
    """A stream that refuses to give more than `limit` bytes in all."""

    def __init__(self, stream: IO[bytes], limit: int) -> None:
        self._stream = stream
        self._left = limit

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(CHUNK if size < 0 else min(size, CHUNK))
        self._left -= len(data)
        if self._left < 0:
            raise InvalidArchive("archive unpacks to more than the limits allow; it looks like a bomb")
        return data


class _CheckedInfo(tarfile.TarInfo):
    """Refuses oversized extended headers before `tarfile` reads them into memory."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _EXTENDED and self.size > CHUNK:
            raise InvalidArchive("archive has an oversized header")
        return cast(tarfile.TarInfo, super()._proc_member(archive))  # type: ignore[misc]


def open_archive(
    path: Path, expected: Callable[[str], bool], limits: Limits | None = None
) -> Iterator[Member]:
    """The members of the archive at `path` whose names are `expected`, in order; raises InvalidArchive."""
    limits = limits or Limits()
    bound = min(limits.total_bytes, limits.ratio * path.stat().st_size + CHUNK)
    try:
        with path.open("rb") as file:
            if zipfile.is_zipfile(file):
                yield from _zip_members(file, expected, limits, bound)
            else:
                file.seek(0)
                yield from _tar_members(file, expected, limits, bound)
    except _BROKEN as error:
        raise InvalidArchive(f"archive cannot be read: {error}") from error


def _tar_members(
    file: IO[bytes], expected: Callable[[str], bool], limits: Limits, bound: int
) -> Iterator[Member]:
    packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    with ExitStack() as stack:
        plain = stack.enter_context(gzip.GzipFile(fileobj=file)) if packed else file
        bounded = cast(IO[bytes], _Bounded(cast(IO[bytes], plain), bound))
        archive = stack.enter_context(tarfile.open(fileobj=bounded, mode="r|", tarinfo=_CheckedInfo))
        for count, info in enumerate(archive):
            _check_count(count, limits)
            if info.isdir():
                continue
            if not info.isreg() or info.issparse():
                raise InvalidArchive(f"archive member {info.name[:100]!r} is no regular file")
            name = _checked(info.name)
            if expected(name):
                stream = archive.extractfile(info)
                assert stream is not None  # only for members that are no regular files
                yield Member(name, info.size, _chunks(stream, info.size, name))


def _zip_members(
    file: IO[bytes], expected: Callable[[str], bool], limits: Limits, bound: int
) -> Iterator[Member]:
    with zipfile.ZipFile(file) as archive:
        for count, info in enumerate(archive.infolist()):
            _check_count(count, limits)
            kind = info.external_attr >> 16 & 0o170000
            if info.is_dir():
                continue
            if kind not in (0, 0o100000):
                raise InvalidArchive(f"archive member {info.filename[:100]!r} is no regular file")
            name = _checked(info.filename)
            if expected(name):
                bound -= info.file_size
                if bound < 0:
                    raise InvalidArchive(
                        "archive unpacks to more than the limits allow; it looks like a bomb"
                    )
                with archive.open(info) as stream:
                    yield Member(name, info.file_size, _chunks(stream, info.file_size, name))


def _check_count(count: int, limits: Limits) -> None:
    if count >= limits.members:
        raise InvalidArchive(f"archive has more than {limits.members:,} members")


def _checked(name: str) -> str:
    try:
        return safe_relative(name.removeprefix("./"))
    except InvalidManifest as error:
        raise InvalidArchive(f"archive member: {error}") from error


def _chunks(stream: IO[bytes], size: int, name: str) -> Iterator[bytes]:
    left = size
    while left > 0:
        try:
            data = stream.read(min(CHUNK, left))
        except _BROKEN as error:
            raise InvalidArchive(f"archive breaks off inside {name!r}: {error}") from error
        if not data:
            raise InvalidArchive(f"archive ends inside {name!r}")
        left -= len(data)
        yield data
