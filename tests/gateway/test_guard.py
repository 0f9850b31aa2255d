"""What is refused before any work is done, on a live server and in process."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from gateway.app import create_app, guarded
from gateway.auth import PUBLIC_PATHS
from gateway.guard import MAX_BODY, HostPolicy, OriginPolicy
from gateway.settings import Settings
from tests.gateway.conftest import MODEL
from tests.gateway.scripted_model import gateway_with, test_settings

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}


@pytest.mark.parametrize(
    ("host", "loopback", "public"),
    [
        ("localhost:11434", True, True),
        ("127.0.0.1", True, True),
        ("[::1]:11434", True, True),
        ("192.168.1.9", True, True),
        ("evil.example", False, False),
        ("localhost.evil.example", False, False),
        ("evil.example:11434", False, False),
        ("box.local", False, True),
        ("8.8.8.8", False, True),
        ("", False, False),
        ("[::1", False, False),
    ],
)
def test_host_names_that_are_ours(host: str, loopback: bool, public: bool) -> None:
    assert HostPolicy(Settings.read({})).allows(host) is loopback
    assert HostPolicy(Settings.read({"GEMMULE_HOST": "0.0.0.0"})).allows(host) is public


def test_hosts_can_be_listed() -> None:
    settings = Settings.read({"GEMMULE_ALLOWED_HOSTS": "models.example"})
    assert HostPolicy(settings).allows("models.example:443")
    assert not HostPolicy(settings).allows("other.example")


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://localhost", True),
        ("http://localhost:3000", True),
        ("https://127.0.0.1:8443", True),
        ("http://[::1]:5173", True),
        ("app://obsidian.md", True),
        ("vscode-webview://abc", True),
        ("https://evil.example", False),
        ("http://localhost.evil.example", False),
        ("http://localhost:3000.evil.example", True),  # no browser can send it: a port has digits only
        ("null", False),
        ("https://chat.example", True),
        ("https://a.apps.example", True),
    ],
)
def test_web_origins(origin: str, allowed: bool) -> None:
    settings = Settings.read({"OLLAMA_ORIGINS": "https://chat.example,https://*.apps.example"})
    assert OriginPolicy(settings).allows(origin) is allowed


def test_a_strange_host_is_refused_in_the_dialect_of_the_path(http: httpx.Client) -> None:
    for path, shape in (("/v1/models", dict), ("/api/tags", str)):
        reply = http.get(path, headers={"host": "evil.example"})
        assert reply.status_code == 403
        assert isinstance(reply.json()["error"], shape)
    poisoned = http.get("/v1/models", headers={"host": "localhost/livez?x="})
    assert poisoned.status_code in (400, 403)


def test_a_web_page_of_someone_else_may_not_call(http: httpx.Client) -> None:
    reply = http.post("/v1/chat/completions", json=CHAT, headers={"origin": "https://evil.example"})
    assert reply.status_code == 403
    assert "access-control-allow-origin" not in reply.headers
    ours = http.post("/v1/chat/completions", json=CHAT, headers={"origin": "http://localhost:3000"})
    assert ours.status_code == 200
    assert ours.headers["access-control-allow-origin"] == "http://localhost:3000"
    asked = http.options(
        "/v1/chat/completions",
        headers={"origin": "http://localhost:3000", "access-control-request-method": "POST"},
    )
    assert asked.status_code == 204
    assert "x-stainless-retry-count" in asked.headers["access-control-allow-headers"]


def test_json_that_claims_to_be_text_is_refused(http: httpx.Client) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        reply = http.post("/v1/chat/completions", content=b"{}", headers={"content-type": kind})
        assert reply.status_code == 415, kind


def test_programs_may_forget_the_type_but_browsers_may_not(http: httpx.Client) -> None:
    body = b'{"model":"scripted","messages":[{"role":"user","content":"Hi"}]}'
    request = http.build_request("POST", "/v1/chat/completions", content=body)
    assert "content-type" not in request.headers
    assert http.send(request).status_code == 200
    browser = {"origin": "http://localhost:1"}
    assert http.post("/v1/chat/completions", content=body, headers=browser).status_code == 415


def test_bodies_are_bounded_whether_they_say_so_or_not(http: httpx.Client) -> None:
    declared = http.post("/v1/chat/completions", content=b"x" * (MAX_BODY + 1))
    assert declared.status_code == 413

    def chunks() -> Any:
        for _ in range(12):
            yield b"x" * 2**20

    with contextlib.suppress(httpx.WriteError):  # the refusal may arrive while the client still writes
        assert http.post("/v1/chat/completions", content=chunks()).status_code == 413
    assert http.get("/livez").status_code == 200


def test_many_or_large_headers_are_refused(http: httpx.Client) -> None:
    many = {f"x-{number}": "1" for number in range(120)}
    assert http.get("/livez", headers=many).status_code == 431
    assert http.get("/livez?" + "x" * 9000).status_code == 414


@pytest.mark.parametrize(
    "body",
    [b'{"model": NaN}', b'{"temperature": 1e999}', b'{"a": 1, "a": 1}', b"nothing", b"", b"[]", b'"x"',
     b'{"a":' * 10_000, b'{"model":"scripted","messages":[{"role":"user","content":"\\ud800"}]}'],
)  # fmt: skip
def test_abuse_of_json_is_a_plain_400(http: httpx.Client, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    reply = http.post("/v1/chat/completions", content=body, headers=headers)
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "invalid_json"
    native = http.post("/api/chat", content=body, headers=headers)
    assert native.status_code == 400
    assert isinstance(native.json()["error"], str)


def test_every_reply_has_a_request_id(http: httpx.Client) -> None:
    for path in ("/livez", "/v1/models", "/v1/none", "/api/none"):
        assert re.fullmatch(r"req_[0-9a-f]{24}", http.get(path).headers["x-request-id"])
    assert http.get("/livez", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    odd = http.get("/livez", headers={"x-request-id": "a b\tc"}).headers["x-request-id"]
    assert odd.startswith("req_")


def test_unknown_paths_and_methods_answer_in_their_dialect(http: httpx.Client) -> None:
    for path, status in (("/v1/nothing", 404), ("/api/nothing", 404), ("/v1/embeddings", 405)):
        reply = http.get(path)
        assert reply.status_code == status
        assert set(reply.json()) == {"error"}
        assert isinstance(reply.json()["error"], str) is path.startswith("/api")
    assert "POST" in http.get("/v1/embeddings").headers["allow"]


def in_process(
    test: Callable[[httpx.AsyncClient, Any], Awaitable[None]], folder: Path, **environment: str
) -> None:
    """Runs `test` with a client of an application that is not behind any server."""

    async def scenario() -> None:
        gateway = gateway_with(folder, **environment)
        app = create_app(gateway)
        transport = httpx.ASGITransport(guarded(app), client=("10.1.2.3", 5))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            await test(client, app)
        await gateway.close()

    asyncio.run(scenario())


def test_every_route_that_is_not_listed_public_wants_the_key(tmp_path: Path) -> None:
    async def scenario(client: httpx.AsyncClient, app: Any) -> None:
        seen = 0
        for route in _routes(app):
            path = re.sub(r"\{[^}]*\}", "x", route.path)
            for method in sorted(route.methods - {"OPTIONS"}):
                for headers in (
                    {},
                    {"authorization": "Bearer wrong"},
                    {"authorization": "Bearer SECRET"},
                    {"x-api-key": ""},
                ):
                    reply = await client.request(method, path, headers=headers)
                    public = route.path in PUBLIC_PATHS
                    assert (reply.status_code != 401) is public, (method, path, reply.status_code)
                    seen += 1
        assert seen > 40
        for path in ("//v1/models", "/v1/models/", "/v1%2fmodels", "/livez/../v1/models"):
            assert (await client.get(path)).status_code in (401, 404), path
        for headers in ({"authorization": "Bearer secret"}, {"x-api-key": "secret"}, {"api-key": "secret"}):
            assert (await client.get("/v1/models", headers=headers)).status_code == 200
        wrong = (await client.get("/v1/models", headers={"authorization": "Bearer wrong"})).json()["error"]
        assert wrong["code"] == "invalid_api_key"
        assert "incorrect api key" in wrong["message"]
        assert "wrong" not in wrong["message"]

    in_process(scenario, tmp_path, GEMMULE_API_KEYS="secret")


def _routes(app: Any) -> list[APIRoute]:
    """Every route of the application, also of the routers that it includes as a whole."""
    found: list[APIRoute] = []
    for route in app.routes:
        inner = getattr(route, "original_router", None)
        found += _routes(inner) if inner is not None else [route]
    return found


def test_a_network_without_keys_may_infer_but_not_manage(tmp_path: Path) -> None:
    async def scenario(client: httpx.AsyncClient, app: Any) -> None:
        assert (await client.get("/v1/models")).status_code == 200
        refused = await client.request("DELETE", "/api/delete", json={"model": "scripted"})
        assert refused.status_code == 401
        keyed = {"authorization": "Bearer secret"}
        allowed = await client.request("DELETE", "/api/delete", json={"model": "nobody"}, headers=keyed)
        assert allowed.status_code == 404

    in_process(scenario, tmp_path, GEMMULE_API_KEYS="secret", GEMMULE_ANONYMOUS="10.0.0.0/8")


def test_a_key_can_be_held_to_models_and_a_rate(tmp_path: Path) -> None:
    from gateway.auth import hash_key

    path = tmp_path / "keys"
    path.write_text(f"anna sha256:{hash_key('s').hex()} models=other* rate=3/h\n")

    async def scenario(client: httpx.AsyncClient, app: Any) -> None:
        keyed = {"authorization": "Bearer s"}
        assert (await client.get("/v1/models", headers=keyed)).json()["data"] == []
        refused = await client.post("/v1/chat/completions", json=CHAT, headers=keyed)
        assert refused.status_code == 403
        assert (await client.get("/v1/models/scripted", headers=keyed)).status_code == 404
        limited = await client.get("/v1/models", headers=keyed)
        assert limited.status_code == 429
        assert int(limited.headers["retry-after"]) > 60
        assert limited.json()["error"]["code"] == "rate_limit_exceeded"

    in_process(scenario, tmp_path, GEMMULE_API_KEY_FILE=str(path))


def test_aliases_serve_hard_coded_names(tmp_path: Path) -> None:
    async def scenario(client: httpx.AsyncClient, app: Any) -> None:
        reply = await client.post("/tokenize", json={"model": "gpt-4o-mini", "content": "a"})
        assert reply.json()["tokens"] == [100]
        assert (await client.post("/tokenize", json={"model": "claude", "content": "a"})).status_code == 404

    in_process(scenario, tmp_path, GEMMULE_ALIASES="gpt-*=scripted")


def test_settings_of_tests_touch_nothing_else(tmp_path: Path) -> None:
    assert test_settings(tmp_path).models.is_relative_to(tmp_path)
