"""The parameter table: Modelfile texts, JSON options, merging, and the text of `show`."""

from __future__ import annotations

from typing import Any

import pytest

from modelfiles.parameters import (
    DEFAULTS,
    PARAMETERS,
    ParameterError,
    UnknownParameter,
    check_option,
    merge_parameters,
    parse_parameter,
    render_parameters,
)


def test_defaults_have_their_own_type() -> None:
    for name, value in DEFAULTS.items():
        assert check_option(name, list(value) if isinstance(value, tuple) else value) == value
    assert DEFAULTS["repeat_penalty"] == 1.0
    assert {name for name, row in PARAMETERS.items() if row.scope == "load" and not row.deprecated} == {
        "num_ctx",
        "num_batch",
        "num_gpu",
        "main_gpu",
        "use_mmap",
        "num_thread",
        "draft_num_predict",
    }


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("num_ctx", "8192", 8192),
        ("seed", "-1", -1),
        ("seed", "+7", 7),
        ("temperature", ".75", 0.75),
        ("temperature", "1", 1.0),
        ("top_p", "9e-1", 0.9),
        ("use_mmap", "T", True),
        ("use_mmap", "0", False),
        ("stop", "<|end|>", ("<|end|>",)),
        ("stop", "", ("",)),
        ("mirostat", "anything", None),
    ],
)
def test_modelfile_texts(name: str, text: str, value: Any) -> None:
    parsed = parse_parameter(name, text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("num_ctx", "1.5", "invalid int value [1.5]"),
        ("num_ctx", "9" * 19, "invalid int value [" + "9" * 19 + "]"),
        ("num_ctx", "９", "invalid int value [９]"),
        ("num_ctx", "1_000", "invalid int value [1_000]"),
        ("top_p", "nan", "invalid float value [nan]"),
        ("top_p", "1e39", "invalid float value [1e39]"),
        ("use_mmap", "yes", "invalid bool value [yes]"),
        ("numa", "true", "unknown parameter 'numa'"),
    ],
)
def test_bad_modelfile_texts(name: str, text: str, message: str) -> None:
    with pytest.raises(ParameterError) as caught:
        parse_parameter(name, text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("name", "value", "checked"),
    [
        ("num_ctx", 4096, 4096),
        ("num_ctx", 4096.0, 4096),
        ("temperature", 0, 0.0),
        ("use_mmap", True, True),
        ("stop", ["a", "b"], ("a", "b")),
        ("stop", [], ()),
        ("seed", None, None),
        ("low_vram", "junk", None),
    ],
)
def test_options(name: str, value: Any, checked: Any) -> None:
    assert check_option(name, value) == checked


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("temperature", "x", 'option "temperature" must be of type float32, not string'),
        ("temperature", True, 'option "temperature" must be of type float32, not boolean'),
        ("temperature", float("nan"), 'option "temperature" must be of type float32, not the number nan'),
        ("num_ctx", 0.5, 'option "num_ctx" must be of type integer, not the number 0.5'),
        ("num_ctx", True, 'option "num_ctx" must be of type integer, not boolean'),
        ("num_ctx", 1 << 63, f'option "num_ctx" must be of type integer, not the number {1 << 63}'),
        ("num_ctx", {}, 'option "num_ctx" must be of type integer, not object'),
        ("use_mmap", 1, 'option "use_mmap" must be of type boolean, not the number 1'),
        ("stop", "x", 'option "stop" must be of type array, not string'),
        ("stop", ["x", 1], 'option "stop" must be of type array, not an array with other items than strings'),
    ],
)
def test_bad_options(name: str, value: Any, message: str) -> None:
    with pytest.raises(ParameterError) as caught:
        check_option(name, value)
    assert str(caught.value) == message


def test_unknown_option_is_its_own_error() -> None:
    with pytest.raises(UnknownParameter):
        check_option("heat", 1)


def test_stops_add_up_and_the_last_of_others_wins() -> None:
    lines = [("stop", "a"), ("top_k", "1"), ("stop", "b"), ("top_k", "2"), ("mirostat", "1")]
    assert merge_parameters(lines) == {"stop": ("a", "b"), "top_k": 2}


def test_show_prints_as_go_does() -> None:
    parameters = {
        "temperature": 0.7,
        "top_k": 64,
        "num_ctx": 1048576,
        "num_predict": 131072,
        "min_p": 0.00001,
        "top_p": 1.0,
        "presence_penalty": 0,
        "seed": -1,
        "use_mmap": True,
        "stop": ("<|end|>", 'say "hi"\n', "é\u200b\x01\U000e0001", "a\\b\x7f"),
    }
    assert render_parameters(parameters).split("\n") == [
        "temperature                    0.7",
        "top_k                          64",
        "num_ctx                        1.048576e+06",
        "num_predict                    131072",
        "min_p                          1e-05",
        "top_p                          1",
        "presence_penalty               0",
        "seed                           -1",
        "use_mmap                       true",
        'stop                           "<|end|>"',
        'stop                           "say \\"hi\\"\\n"',
        'stop                           "é\\u200b\\x01\\U000e0001"',
        'stop                           "a\\\\b\\x7f"',
    ]
