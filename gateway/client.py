"""Talks to a gemmule (or Ollama) server: whole JSON replies, streams of JSON, blob uploads.

Standard library only: `list` and `ps` must answer before a larger HTTP library would be imported, and a
request to one's own machine needs no proxy, pool or redirect. Knows paths and bodies, not what they mean.

    ClientError
    |- ServerUnreachable   nothing answers at the address
    |- ServerRefused       a reply with an error; `status` and the server's message
    |- StreamCut           the connection ended before the reply did
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

CONNECT_SECONDS = 10.0
UPLOAD_CHUNK = 1 << 20
GEMMULE_HEADER = "x-gemmule-version"


class ClientError(Exception):
    """A command could not get its answer."""


class ServerUnreachable(ClientError):
    """No program accepts connections there."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"no server answers at {url} ({reason})")
        self.url = url


class ServerRefused(ClientError):
    """The server answered with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class StreamCut(ClientError):
    """The reply broke off; what came before it is incomplete."""

    def __init__(self) -> None:
        super().__init__("the connection ended before the reply did; the server's log says why")


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Client:
    """One server; a connection per request, so that closing a stream cancels exactly that request."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        """`url` is `http://host:port[/prefix]`, the same with https, or `unix:///path/to/socket`."""
        self.url = url.rstrip("/")
        self._parts = urlsplit(self.url)
        self._prefix = "" if self._parts.scheme == "unix" else self._parts.path
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """The reply's JSON value; None when it has no body, text when it is no JSON."""
        connection, response = self._send(method, path, body)
        try:
            return _decode(response.read())
        except (OSError, http.client.HTTPException) as error:
            raise StreamCut from error
        finally:
            connection.close()

    def stream(self, path: str, body: Any) -> Generator[dict[str, Any], None, None]:
        """The objects of an NDJSON reply as they come. Raises ServerRefused for an error line too.

        Raises StreamCut unless the last object says so (`done`, or `status` success): a connection that
        ends early looks like a complete one otherwise. Closing the iterator cancels the request.
        """
        connection, response = self._send("POST", path, body)
        value: dict[str, Any] = {}
        try:
            while line := response.readline():
                value = json.loads(line)
                if message := value.get("error"):
                    raise ServerRefused(value.get("status_code", 500), str(message))
                yield value
            if not (value.get("done") or value.get("status") == "success"):
                raise StreamCut
        except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
            raise StreamCut from error
        finally:
            connection.close()

    def events(self, path: str, body: Any) -> Generator[dict[str, Any], None, None]:
        """The JSON objects of a server-sent event stream as they come, up to `[DONE]`.

        Raises ServerRefused for an error among them and StreamCut when the end is missing. Closing the
        iterator cancels the request.
        """
        connection, response = self._send("POST", path, body)
        try:
            while line := response.readline():
                if line.strip() == b"data: [DONE]":
                    return
                if line.startswith(b"data: "):
                    value: dict[str, Any] = json.loads(line[6:])
                    if error := value.get("error"):
                        raise ServerRefused(500, str(error.get("message", error)))
                    yield value
            raise StreamCut
        except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
            raise StreamCut from error
        finally:
            connection.close()

    def server_version(self) -> str | None:
        """The gemmule version that answers; None when the server is an Ollama."""
        connection, response = self._send("HEAD", "/", None)
        connection.close()
        return response.getheader(GEMMULE_HEADER)

    def has_blob(self, digest: str) -> bool:
        """Whether the server already holds the blob."""
        try:
            self.request("HEAD", f"/api/blobs/{digest}")
        except ServerRefused as error:
            if error.status == 404:
                return False
            raise
        return True

    def upload_blob(self, digest: str, file: Path) -> Iterator[int]:
        """Sends a file as a blob; yields bytes sent so far. Raises ServerRefused when the digest differs."""
        connection = self._connection()
        size = file.stat().st_size
        try:
            connection.putrequest("POST", f"{self._prefix}/api/blobs/{digest}")
            for name, value in ({"content-length": str(size)} | self._headers).items():
                connection.putheader(name, value)
            connection.endheaders()
            connection.sock.settimeout(None)
            sent = 0
            with file.open("rb") as source:
                while chunk := source.read(UPLOAD_CHUNK):
                    connection.send(chunk)
                    sent += len(chunk)
                    yield sent
            _check(connection.getresponse())
        except http.client.HTTPException as error:
            raise StreamCut from error
        except OSError as error:
            raise self._unreachable(error) from error
        finally:
            connection.close()

    def _send(
        self, method: str, path: str, body: Any
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """An open connection and its response, once the status is known to be good."""
        connection = self._connection()
        headers = {"accept": "application/x-ndjson, application/json"} | self._headers
        payload = None if body is None else json.dumps(body, ensure_ascii=False).encode()
        if payload is not None:
            headers["content-type"] = "application/json"
        try:
            connection.connect()
            connection.sock.settimeout(None)  # a model may take minutes to load or to think
            connection.request(method, self._prefix + path, payload, headers)
            response = connection.getresponse()
            _check(response)
        except BaseException as error:
            connection.close()
            if isinstance(error, OSError):
                raise self._unreachable(error) from error
            if isinstance(error, http.client.HTTPException):
                raise ServerUnreachable(self.url, "what answers there does not speak HTTP") from error
            raise
        return connection, response

    def _connection(self) -> http.client.HTTPConnection:
        scheme, host, port = self._parts.scheme, self._parts.hostname or "127.0.0.1", self._parts.port
        if scheme == "unix":
            return UnixConnection(self._parts.path, CONNECT_SECONDS)
        if scheme == "https":
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(host, port or 443, timeout=CONNECT_SECONDS, context=context)
        return http.client.HTTPConnection(host, port or 80, timeout=CONNECT_SECONDS)

    def _unreachable(self, error: OSError) -> ServerUnreachable:
        return ServerUnreachable(self.url, (error.strerror or str(error) or type(error).__name__).lower())


def _check(response: http.client.HTTPResponse) -> None:
    if response.status < 400:
        return
    value = _decode(response.read())
    message = value.get("error") if isinstance(value, Mapping) else value
    if isinstance(message, Mapping):  # an OpenAI-shaped error, from a proxy or the server's guard
        message = message.get("message")
    raise ServerRefused(response.status, str(message or f"{response.status} {response.reason}").strip())


def _decode(raw: bytes) -> Any:
    if not raw.strip():
        return None
    try:
        return json.loads(raw)
    except (json.JSONDecodeError, UnicodeDecodeError):
        return raw.decode("utf-8", "replace")
