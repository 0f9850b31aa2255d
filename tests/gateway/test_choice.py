"""The joined filters of one choice, byte by byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.base import StepOutput, Usage
from engines.scripted import CONTROL_IDS, VOCABULARY, encode_text
from gateway.choice import Choice
from gateway.types import Event, Finished, TextDelta, ThinkingDelta, ToolCallDelta
from modelfiles.messages import ToolSpec
from modelfiles.outputs.parser import make_parser
from modelfiles.tokenizer import load_tokenizer
from tests.engines.decoder.llama2c import Llama2c, list_files, write_llama2c_tokenizer

TOOLS = (ToolSpec("f"), ToolSpec("g"))


def choice(stops: tuple[str, ...] = (), **options: bool) -> Choice:
    parser = make_parser("qwen", names=VOCABULARY.names, tools=TOOLS, prompt="")
    return Choice(0, VOCABULARY, parser, stops, with_logprobs=False, prompt=(1, 2), **options)


def tokens(*parts: str) -> list[int]:
    """Ids of texts, and of control tokens by name."""
    found: list[int] = []
    for part in parts:
        found += [CONTROL_IDS[part]] if part in CONTROL_IDS else list(encode_text(part))
    return found


def play(made: Choice, ids: list[int], size: int = 1, reason: str = "stop") -> list[Event]:
    """All events of `ids` arriving `size` at a time."""
    events: list[Event] = []
    for start in range(0, len(ids), size):
        events += made.push(StepOutput(0, tuple(ids[start : start + size])))
        if made.stopped:
            break
    return events + made.finish(reason, Usage(2, 0, made.generated), 0, 0)  # type: ignore[arg-type]


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def end_of(events: list[Event]) -> Finished:
    assert isinstance(events[-1], Finished)
    return events[-1]


def test_any_cut_gives_the_same_answer() -> None:
    ids = tokens(
        "<think>",
        "hm é",
        "</think>",
        "yes 👍 ",
        "<tool_call>",
        '{"name":"f","arguments":{"a":1}}',
        "</tool_call>",
    )
    wholes = []
    for size in (1, 2, 3, 7, 1000):
        events = play(choice(("STOP",)), ids, size)
        thinking = "".join(event.text for event in events if isinstance(event, ThinkingDelta))
        calls = [event for event in events if isinstance(event, ToolCallDelta)]
        assert calls[0].id is not None
        arguments = "".join(event.arguments for event in calls)
        wholes.append((text_of(events).strip(), thinking, calls[0].name, arguments, end_of(events).reason))
    assert set(wholes) == {("yes 👍", "hm é", "f", '{"a":1}', "tool_calls")}


def test_a_stop_string_ends_the_answer_and_is_named() -> None:
    made = choice(("END", "E"))
    events = play(made, tokens("one END two"))
    assert made.stopped
    assert text_of(events) == "one "
    assert end_of(events).stop_string == "E"


def test_text_held_for_a_stop_string_comes_out_at_the_end() -> None:
    events = play(choice(("END",)), tokens("one EN"), reason="length")
    assert text_of(events) == "one EN"
    assert end_of(events).reason == "length"


def test_one_call_means_one() -> None:
    call = '{"name":"f","arguments":{}}'
    ids = tokens("<tool_call>", call, "</tool_call>", "<tool_call>", call, "</tool_call>")
    both = [event for event in play(choice(), ids) if isinstance(event, ToolCallDelta) and event.id]
    one = play(choice(one_call=True), ids)
    assert len(both) == 2
    assert len([event for event in one if isinstance(event, ToolCallDelta) and event.id]) == 1
    assert end_of(one).reason == "tool_calls"


def test_a_call_of_no_known_function_is_text() -> None:
    events = play(choice(), tokens("<tool_call>", '{"name":"h","arguments":{}}', "</tool_call>"))
    assert '"h"' in text_of(events)
    assert end_of(events).reason == "stop"


def test_the_whole_exchange_is_kept_for_continuation() -> None:
    ids = tokens("ok")
    assert end_of(play(choice(), ids)).context == (1, 2, *ids)


@pytest.mark.parametrize(("continues", "shown"), [(True, " upon a time"), (False, "upon a time")])
def test_an_answer_that_goes_on_keeps_its_first_space(
    shared_data: Path, tmp_path: Path, continues: bool, shown: str
) -> None:
    model = Llama2c(shared_data / "models" / "stories260K", "stories260K")
    write_llama2c_tokenizer(model, tmp_path / "tokenizer.model")
    tokenizer = load_tokenizer(list_files(tmp_path))
    vocabulary = tokenizer.vocabulary()
    prompt, whole = tokenizer.encode("Once"), tokenizer.encode("Once upon a time")
    assert whole[: len(prompt)] == prompt
    assert vocabulary.strip_leading_space
    parser = make_parser("plain", names=vocabulary.names, tools=(), prompt="Once")
    made = Choice(
        0,
        vocabulary,
        parser,
        (),
        with_logprobs=False,
        prompt=tuple(prompt),
        echo=True,
        continues=continues,
    )
    assert text_of(play(made, list(whole[len(prompt) :]))) == "Once" + shown
