"""The key this machine signs with when a registry asks who it is: ed25519 in OpenSSH's format.

The wire form of the signature is the Ollama registry's. Made on first use, 0600, beside the models.
"""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from registry.disk import Disk
from registry.errors import SourceError


class Identity:
    """An ed25519 key pair."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @staticmethod
    def load_or_create(path: Path, disk: Disk) -> Identity:
        """The key in this file, made when there is none; raises SourceError for one of another kind."""
        if not path.exists():
            with contextlib.suppress(FileExistsError):  # another process was first: then its key is ours
                _write_new(path, disk)
        try:
            key = serialization.load_ssh_private_key(path.read_bytes(), None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise SourceError(f"{path.name} is no OpenSSH key without a passphrase; move it away") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise SourceError(f"{path.name} is no ed25519 key; move it away")
        return Identity(key)

    def public(self) -> str:
        """The public key as in the second column of `authorized_keys`."""
        public = self._key.public_key()
        line = public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        return line.split()[1].decode()

    def sign(self, data: bytes) -> str:
        """`<public key>:<signature>`, both base64: what the registry wants as `Authorization`."""
        return f"{self.public()}:{base64.b64encode(self._key.sign(data)).decode()}"


def _write_new(path: Path, disk: Disk) -> None:
    data = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    disk.make_folder(path.parent)
    staged = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    descriptor = disk.create(staged)
    try:
        disk.write(descriptor, data)
        disk.sync(descriptor)
        if not disk.link(staged, path):  # unlike a rename, a link never replaces the key of another process
            disk.rename(staged, path)
    finally:
        disk.unlink(staged)
        os.close(descriptor)
    disk.sync_folder(path.parent)
