"""The rules of outbound requests: certificates, proxies, addresses, waiting times."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import registry.transport
from registry.errors import AddressRefused, SourceError, Unavailable
from registry.transport import ClientSettings, Transport, origin_of, parse_retry_after, proxy_for
from tests.registry.fakehub import FakeHub, Fault


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a key and a certificate for localhost that nobody but its maker trusts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fake hub")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "hub.pem"
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(secret + made.public_bytes(serialization.Encoding.PEM))
    return path


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


def test_certificates_are_checked_and_ssl_cert_file_is_honoured(certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with FakeHub(tls=context) as hub:
        hub.files["/files/a"] = b"hello"
        url = f"https://localhost:{hub.port}"
        with pytest.raises(Unavailable, match=r"(?i)certificate.verify.failed"):
            get(f"{url}/files/a", ClientSettings())
        trusting = ClientSettings(environment={"SSL_CERT_FILE": str(certificate)})
        assert get(f"{url}/files/a", trusting) == (200, b"hello")
        with pytest.raises(Unavailable, match=r"(?i)certificate.verify.failed"):
            get(f"{hub.url}/files/a", trusting)  # the same address under a name it has no certificate for
        hub.always["/files/a"] = Fault(location=f"http://{hub.netloc}/files/a")
        with pytest.raises(AddressRefused, match="from https to http"):
            get(f"{url}/files/a", trusting)
    with pytest.raises(SourceError, match="SSL_CERT_FILE"):
        get("https://127.0.0.1:1/", ClientSettings(environment={"SSL_CERT_FILE": "/nonexistent"}))


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
