"""The rules of outbound requests: certificates, proxies, addresses, waiting times."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Iterator
from pathlib import Path

import pytest

import registry.transport
from registry.addresses import origin_of
from registry.errors import AddressRefused, SourceError, Unavailable
from registry.transport import ClientSettings, Transport, parse_retry_after, proxy_for
from tests.registry.fakehub import FakeHub, Fault
from tests.registry.proxy import TunnelProxy
from tests.registry.tls import make_authority


def get(url: str, settings: ClientSettings) -> tuple[int, bytes]:
    """Status and body."""

    async def run() -> tuple[int, bytes]:
        transport = Transport(settings)
        try:
            async with transport.request("GET", url) as reply:
                return reply.status, await reply.read()
        finally:
            await transport.close()

    return asyncio.run(run())


def test_certificates_are_checked_and_ssl_cert_file_is_honoured(tmp_path: Path) -> None:
    authority, context = make_authority(tmp_path, "localhost")
    with FakeHub(tls=context) as hub:
        hub.files["/files/a"] = b"hello"
        url = f"https://localhost:{hub.port}"
        with pytest.raises(Unavailable, match=r"(?i)certificate.verify.failed"):
            get(f"{url}/files/a", ClientSettings())
        trusting = ClientSettings(environment={"SSL_CERT_FILE": str(authority)})
        assert get(f"{url}/files/a", trusting) == (200, b"hello")
        with pytest.raises(Unavailable, match=r"(?i)certificate.verify.failed"):
            get(f"{hub.url}/files/a", trusting)  # the same address under a name it has no certificate for
        hub.always["/files/a"] = Fault(location=f"http://{hub.netloc}/files/a")
        with pytest.raises(AddressRefused, match="from https to http"):
            get(f"{url}/files/a", trusting)
    with pytest.raises(SourceError, match="SSL_CERT_FILE"):
        get("https://127.0.0.1:1/", ClientSettings(environment={"SSL_CERT_FILE": "/nonexistent"}))


def test_an_address_named_by_an_answer_keeps_the_rules_of_a_redirect() -> None:
    async def ask(url: str, named_by: str) -> None:
        transport = Transport(ClientSettings())
        try:
            async with transport.request("GET", url, named_by=named_by):
                pass
        finally:
            await transport.close()

    with pytest.raises(AddressRefused, match="from https to http"):
        asyncio.run(ask("http://127.0.0.1:9/token", "https://127.0.0.1:9/v2/"))
    with pytest.raises(AddressRefused, match="private address"):
        asyncio.run(ask("http://127.0.0.1:9/token", "http://8.8.8.8/v2/"))


HOST = "models.example"


@pytest.fixture
def behind_a_proxy(tmp_path: Path) -> Iterator[tuple[FakeHub, TunnelProxy, dict[str, str]]]:
    """A hub called `models.example` that only a proxy leads to, and the variables that say so."""
    authority, context = make_authority(tmp_path, HOST, "cdn.example", "localhost")
    with FakeHub(tls=context) as hub, TunnelProxy(hub.port, "me:secret") as proxy:
        hub.files["/files/a"] = b"hello"
        variables = {
            "HTTPS_PROXY": f"http://me:secret@127.0.0.1:{proxy.port}",
            "SSL_CERT_FILE": str(authority),
        }
        yield hub, proxy, variables


def test_https_goes_through_the_tunnel_of_a_proxy(
    behind_a_proxy: tuple[FakeHub, TunnelProxy, dict[str, str]],
) -> None:
    hub, proxy, variables = behind_a_proxy
    settings = ClientSettings(environment=variables, allow_private=False)
    assert get(f"https://{HOST}/files/a", settings) == (200, b"hello")
    assert proxy.tunnels == [f"{HOST}:443"]
    (request,) = hub.requests
    assert request.headers["host"] == HOST
    assert "proxy-authorization" not in request.headers  # what is for the proxy stays with it
    with pytest.raises(Unavailable, match=r"(?i)certificate.verify.failed"):
        get("https://other.example/files/a", settings)  # a proxy cannot stand in for another host


def test_no_proxy_names_what_is_reached_directly(
    behind_a_proxy: tuple[FakeHub, TunnelProxy, dict[str, str]],
) -> None:
    hub, proxy, variables = behind_a_proxy
    direct = ClientSettings(environment=variables | {"NO_PROXY": "localhost,.internal"})
    assert get(f"https://localhost:{hub.port}/files/a", direct) == (200, b"hello")
    assert proxy.tunnels == []


def test_redirects_keep_their_rules_behind_a_proxy(
    behind_a_proxy: tuple[FakeHub, TunnelProxy, dict[str, str]],
) -> None:
    hub, proxy, variables = behind_a_proxy
    settings = ClientSettings(environment=variables)
    hub.faults["/files/a"] = [Fault(location="https://cdn.example/files/a")]
    assert get(f"https://{HOST}/files/a", settings) == (200, b"hello")
    assert proxy.tunnels == [f"{HOST}:443", "cdn.example:443"]
    for location in (
        "http://127.0.0.1:9/x",
        "https://10.0.0.1/x",
        "https://169.254.169.254/x",
        "https://localhost/x",
    ):
        hub.always["/files/a"] = Fault(location=location)
        with pytest.raises(AddressRefused):
            get(f"https://{HOST}/files/a", settings)


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"HTTPS_PROXY": "http://127.0.0.1:{port}"}, "through the proxy"),
        ({"HTTPS_PROXY": "http://127.0.0.1:9"}, "cannot be"),
    ],
)
def test_a_proxy_that_refuses_is_named_as_the_cause(
    behind_a_proxy: tuple[FakeHub, TunnelProxy, dict[str, str]], variables: dict[str, str], reason: str
) -> None:
    _, proxy, trusted = behind_a_proxy
    filled = {name: value.format(port=proxy.port) for name, value in variables.items()}
    with pytest.raises(Unavailable, match=reason):
        get(f"https://{HOST}/files/a", ClientSettings(environment=trusted | filled))


def test_a_body_compressed_unasked_or_too_long_is_refused() -> None:
    with FakeHub() as hub:
        hub.files["/files/a"] = b"x" * 100
        hub.always["/files/a"] = Fault(headers={"Content-Encoding": "gzip"})
        with pytest.raises(SourceError, match="compression"):
            get(f"{hub.url}/files/a", ClientSettings())

        async def bounded() -> None:
            transport = Transport(ClientSettings())
            try:
                async with transport.request("GET", f"{hub.url}/files/a") as reply:
                    await reply.read(limit=99)
            finally:
                await transport.close()

        hub.always.clear()
        with pytest.raises(SourceError, match="more than the 99 bytes"):
            asyncio.run(bounded())


@pytest.mark.parametrize(
    ("url", "environment", "proxy"),
    [
        ("https://h.example/x", {"HTTPS_PROXY": "http://p:1"}, "http://p:1"),
        ("https://h.example/x", {"https_proxy": "http://low:1", "HTTPS_PROXY": "http://p:1"}, "http://low:1"),
        ("http://h.example/x", {"HTTPS_PROXY": "http://p:1"}, ""),
        ("http://h.example/x", {"ALL_PROXY": "http://p:1"}, "http://p:1"),
        ("https://h.example/x", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "example"}, ""),
        ("https://h.example/x", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": ".example"}, ""),
        ("https://h.example/x", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "ample"}, "http://p:1"),
        ("https://h.example/x", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "*"}, ""),
        ("http://10.1.2.3/x", {"HTTP_PROXY": "http://p:1", "NO_PROXY": "a, 10.0.0.0/8"}, ""),
        ("http://11.1.2.3/x", {"HTTP_PROXY": "http://p:1", "NO_PROXY": "10.0.0.0/8"}, "http://p:1"),
        ("https://h.example/x", {}, ""),
    ],
)
def test_which_proxy(url: str, environment: dict[str, str], proxy: str) -> None:
    assert proxy_for(url, environment) == proxy


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0.0), ("120", 120.0), ("-1", 0.0), ("", None), ("soon", None), ("1e9", None), ("9" * 40, None),
     ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0)],
)  # fmt: skip
def test_retry_after(text: str, seconds: float | None) -> None:
    assert parse_retry_after(text) == seconds


def test_origins_are_compared_without_case_path_and_default_port() -> None:
    assert origin_of("HTTPS://H.example:443/a?b") == origin_of("https://h.example/c") == "https://h.example"
    assert origin_of("http://h.example:443/") != origin_of("https://h.example/")
    assert origin_of("https://h.example:8443") == "https://h.example:8443"
    assert origin_of("http://[::1]:80/") == "http://[::1]"


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1",
        "127.0.0.1",
        "169.254.169.254",
        "192.168.1.1",
        "[::1]",
        "[fe80::1]",
        "0.0.0.0",
        "100.64.0.1",
    ],
)
def test_private_addresses_are_not_connected_to_for_strangers(address: str) -> None:
    with pytest.raises(AddressRefused, match="only the operator"):
        get(f"http://{address}:9/", ClientSettings(allow_private=False))


def test_a_host_that_does_not_exist() -> None:
    with pytest.raises(Unavailable, match="cannot find the host"):
        get("http://no-such-host.invalid/", ClientSettings())


def test_an_address_where_nobody_listens_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    async def two_addresses(host: str, port: int) -> list[object]:
        return [ipaddress.ip_address("127.0.0.3"), ipaddress.ip_address("127.0.0.1")]

    monkeypatch.setattr(registry.transport, "_resolve", two_addresses)
    with FakeHub() as hub:
        hub.files["/files/a"] = b"hello"
        assert get(f"http://h.example:{hub.port}/files/a", ClientSettings()) == (200, b"hello")
