"""Bodies: what Go's decoder would take is taken, what it would refuse is refused in one line."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.errors import BadRequest
from gateway.ollama.schema import ChatBody, CreateBody, GenerateBody, ShowBody, TransferBody, read_body


@pytest.mark.parametrize(
    ("raw", "seconds"),
    [
        (b'{"keep_alive":300}', 300.0),
        (b'{"keep_alive":1.5}', 1.5),
        (b'{"keep_alive":0}', 0.0),
        (b'{"keep_alive":-1}', -1.0),
        (b'{"keep_alive":"5m"}', 300.0),
        (b'{"keep_alive":"-1s"}', -1.0),
        (b'{"keep_alive":"-1"}', -1.0),
        (b'{"keep_alive":""}', None),
        (b'{"keep_alive":null}', None),
        (b"{}", None),
    ],
)
def test_keep_alive_in_all_its_forms(raw: bytes, seconds: float | None) -> None:
    assert read_body(GenerateBody, raw).keep_alive == seconds


def test_null_and_empty_are_absence_and_unknown_keys_are_ignored() -> None:
    body = read_body(
        ChatBody,
        b'{"model":"m","messages":null,"tools":null,"options":null,"format":"","think":"","stream":null,'
        b'"template":"","surprise":{"a":1}}',
    )
    assert (body.messages, body.tools, body.options, body.think, body.stream) == (
        None,
        None,
        None,
        None,
        None,
    )


@pytest.mark.parametrize("kind", [ShowBody, TransferBody, CreateBody])
def test_name_stands_for_model(kind: Any) -> None:
    assert read_body(kind, b'{"name":"fox"}').model == "fox"
    assert read_body(kind, b'{"model":"owl","name":"fox"}').model == "owl"
    assert read_body(kind, b'{"model":"","name":"fox"}').model == "fox"


def test_keys_that_python_could_not_name() -> None:
    assert read_body(CreateBody, b'{"from":"bud","quantization":"q8_0"}').from_ == "bud"
    assert read_body(ChatBody, b'{"_debug_render_only":true}').debug_render_only is True


@pytest.mark.parametrize(
    ("kind", "raw", "message"),
    [
        (ChatBody, b"", "missing request body"),
        (ChatBody, b"  \n", "missing request body"),
        (ChatBody, b"{", "invalid request: malformed JSON at line 1 column 2"),
        (ChatBody, b"[]", "invalid request: the body must be a JSON object"),
        (ChatBody, b'{"stream":"x"}', "stream: input should be a valid boolean"),
        (ChatBody, b'{"model":3}', "model: input should be a valid string"),
        (ChatBody, b'{"messages":[{"content":"a"}]}', "messages.0.role: field required"),
        (ChatBody, b'{"messages":[{"role":"user","content":[1]}]}', "messages.0.content: input should be"),
        (
            ChatBody,
            b'{"think":"x"}',
            'invalid think value: "x" (must be "high", "medium", "low", "max", true',
        ),
        (ChatBody, b'{"keep_alive":true}', "keep_alive: unsupported type bool"),
        (ChatBody, b'{"keep_alive":"soon"}', 'keep_alive: invalid duration "soon"'),
        (GenerateBody, b'{"context":["a"]}', "context.0: input should be a valid integer"),
        (GenerateBody, b'{"options":[]}', "options: input should be a valid dictionary"),
        (GenerateBody, b"\xff\xfe", "invalid request: the body is not UTF-8"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(kind: Any, raw: bytes, message: str) -> None:
    with pytest.raises(BadRequest) as caught:
        read_body(kind, raw)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
