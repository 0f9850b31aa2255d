"""Whom a server may be made to connect to, and by whom."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from registry.errors import AddressRefused, RegistryError
from registry.progress import Progress
from tests.gateway.scripted_model import gateway_with

PRIVATE = ("http://127.0.0.1:1/x.gguf", "http://169.254.169.254/latest/x.gguf", "http://localhost:1/x.gguf")


def pulled(folder: Path, reference: str, **environment: str) -> BaseException | None:
    """What a pull through a gateway with these settings raised."""

    async def scenario() -> BaseException | None:
        gateway = gateway_with(folder, **environment)
        try:
            lines: list[Progress] = [line async for line in gateway.puller.pull(reference)]
            assert lines
        except RegistryError as error:
            return error
        finally:
            await gateway.close()
        return None

    return asyncio.run(scenario())


@pytest.mark.parametrize("address", PRIVATE)
@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])
def test_callers_with_keys_cannot_make_the_server_ask_private_addresses(
    tmp_path: Path, address: str, host: str
) -> None:
    error = pulled(tmp_path, address, GEMMULE_HOST=host, GEMMULE_API_KEYS="secret")
    assert isinstance(error, AddressRefused)


def test_the_operator_may_name_any_address_or_allow_a_network(tmp_path: Path) -> None:
    closed = "http://127.0.0.1:1/x.gguf"
    own = pulled(tmp_path, closed)
    allowed = pulled(
        tmp_path,
        closed,
        GEMMULE_HOST="0.0.0.0",
        GEMMULE_API_KEYS="secret",
        GEMMULE_PULL_NETWORKS="127.0.0.0/8",
    )
    for error in (own, allowed):
        assert error is not None
        assert not isinstance(error, AddressRefused)
