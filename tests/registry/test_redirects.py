"""Where a pull may be led: redirects, private addresses, credentials, proxies."""

from __future__ import annotations

import pytest

from registry.errors import (
    AddressRefused,
    SourceError,
    Unavailable,
)
from registry.store import Store
from tests.registry.conftest import gguf_bytes
from tests.registry.fakehub import FakeHub, Fault
from tests.registry.hubs import pull

PUBLIC = {"public_networks": ("127.0.0.1/32",)}
"""The fake hub's own address taken as public; all others of this machine stay private."""


@pytest.mark.parametrize(
    ("location", "error"),
    [
        ("http://127.0.0.2:9/x", AddressRefused),
        ("http://169.254.169.254/latest/meta-data", AddressRefused),
        ("http://[::1]:9/x", AddressRefused),
        ("http://[::ffff:10.0.0.1]/x", AddressRefused),
        ("http://10.1.2.3/x", AddressRefused),
        ("http://0.0.0.0:9/x", AddressRefused),
        ("http://[64:ff9b::a00:1]/x", AddressRefused),
        ("file:///etc/passwd", AddressRefused),
        ("gopher://127.0.0.1/x", AddressRefused),
    ],
)
def test_redirects_that_are_refused(
    store: Store, hub: FakeHub, location: str, error: type[Exception]
) -> None:
    name = hub.add_oci("me/fox", [("model", gguf_bytes())])
    hub.always["/manifests/"] = Fault(location=location)
    with pytest.raises(error):
        pull(store, hub, name, **PUBLIC)
    assert len(hub.requests) == 1


def test_eleven_hops_are_too_many(store: Store, hub: FakeHub) -> None:
    name = hub.add_oci("me/fox", [("model", gguf_bytes())])
    hub.always["/manifests/"] = Fault(location="/v2/me/fox/manifests/latest")
    with pytest.raises(SourceError, match="more than 10 times"):
        pull(store, hub, name)
    assert len(hub.requests) == 11


def test_a_private_host_only_where_the_operator_may_name_it(store: Store, hub: FakeHub) -> None:
    name = hub.add_oci("me/fox", [("model", gguf_bytes())])
    with pytest.raises(AddressRefused, match="only the operator"):
        pull(store, hub, name, allow_private=False)
    assert hub.requests == []


def test_credentials_stay_with_their_origin(store: Store, hub: FakeHub) -> None:
    with FakeHub() as cdn:
        hub.token, hub.cdn_origin = "s3cret", cdn.url
        name = hub.add_oci("me/fox", [("model", gguf_bytes())])
        cdn.blobs = hub.blobs
        pull(store, hub, name)
        assert cdn.requests
        assert all("authorization" not in request.headers for request in cdn.requests)
    assert any("authorization" in request.headers for request in hub.asked("/blobs/"))


def test_proxies_are_used_and_passed_over(store: Store, hub: FakeHub) -> None:
    name = hub.add_oci("me/fox", [("model", gguf_bytes())])
    dead = {"HTTP_PROXY": "http://127.0.0.1:9"}
    with pytest.raises(Unavailable):
        pull(store, hub, name, environment=dead)
    pull(store, hub, name, environment=dead | {"NO_PROXY": "127.0.0.0/8"})
    store.delete(name)
    with FakeHub() as proxy:
        proxy.always["/v2/"] = Fault(status=418)
        with pytest.raises(SourceError, match="418"):
            pull(store, hub, "http://models.example/me/fox", environment={"HTTP_PROXY": proxy.url})
        assert proxy.requests
