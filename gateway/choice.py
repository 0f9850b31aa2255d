"""One choice of a reply: the filters between the engine's tokens and the caller's events, joined.

`Detokenizer -> OutputParser -> StopMatcher`, nothing else. Sans-IO. Owned by `service`, one for each choice.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import replace

from engines.base import StepOutput, TokenLogprob, Usage
from gateway.types import (
    Event,
    Finished,
    GenerationUsage,
    StopCause,
    TextDelta,
    ThinkingDelta,
    TokenText,
    ToolCallDelta,
)
from modelfiles.detokenizer import Detokenizer
from modelfiles.outputs.parser import OutputParser
from modelfiles.outputs.stop import StopMatcher
from modelfiles.outputs.types import (
    Content,
    Segment,
    TextChunk,
    Thinking,
    TokenMark,
    ToolCallArguments,
    ToolCallStart,
)
from modelfiles.vocabulary import Vocabulary


class Choice:
    """Turns step outputs into events. `stopped` is set once a stop string was seen: the caller may cancel."""

    def __init__(
        self,
        index: int,
        vocabulary: Vocabulary,
        parser: OutputParser,
        stops: tuple[str, ...],
        *,
        with_logprobs: bool,
        prompt: tuple[int, ...],
        one_call: bool = False,
        echo: bool = False,
        silent: bool = False,
        continues: bool = False,
    ) -> None:
        """`one_call` ends the answer before a second tool call; `echo` gives the prompt back first; `silent`
        gives nothing else, for callers who only want it scored; `continues` says that the answer goes on
        from the prompt's last word, so that a first space is part of it."""
        self._index = index
        self._vocabulary = vocabulary
        self._detokenizer = Detokenizer(vocabulary, continues=continues)
        self._parser = parser
        self._matcher = StopMatcher(stops) if stops else None
        self._with_logprobs = with_logprobs
        self._prompt = prompt
        self._generated: list[int] = []
        self._calls = 0
        self._thought_tokens = 0
        self._thinking = False
        self._one_call = one_call
        self._echo = echo
        self._silent = silent
        self.stopped = False

    def push(self, output: StepOutput) -> list[Event]:
        """Events that are certain now; after the last output, `finish` gives the rest."""
        events: list[Event] = []
        logprobs = output.logprobs
        if self._echo:
            events += self._echoed(output.prompt_logprobs)
            self._echo = False
        if self._silent:
            self.stopped = True
            return events
        for position, token_id in enumerate(output.token_ids):
            self._generated.append(token_id)
            if logprobs:
                mark = TokenMark(token_id, logprobs[position].logprob, logprobs[position].top)
            else:
                mark = TokenMark(token_id)
            for chunk in self._detokenizer.push(mark):
                events += self._events(self._parser.push(chunk))
            if self._thinking and token_id not in self._vocabulary.control_token_ids:
                self._thought_tokens += 1
            if self.stopped:
                break
        return joined(events) if self._calls else events

    def finish(self, reason: StopCause, usage: Usage, load_ns: int, total_ns: int) -> list[Event]:
        """What was held back, and the end of the choice."""
        events: list[Event] = []
        if not self.stopped:
            for chunk in self._detokenizer.finish():
                events += self._events(self._parser.push(chunk))
        if not self.stopped:
            events += self._events(self._parser.finish())
        if self._matcher is not None and not self.stopped:
            events += [self._text(chunk) for chunk in self._matcher.finish()]
        if self._silent:
            reason, usage = "length", replace(usage, generated=0)
        elif self.stopped:
            reason = "stop"
        if self._calls and reason == "stop":
            reason = "tool_calls"
        counted = GenerationUsage(usage, load_ns, total_ns, self._thought_tokens)
        context = (*self._prompt, *self._generated)
        matched = self._matcher.matched if self._matcher is not None else None
        return [*events, Finished(self._index, reason, counted, matched, context)]

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompt."""
        return len(self._prompt)

    @property
    def generated(self) -> int:
        """Tokens received so far."""
        return len(self._generated)

    def _echoed(self, scored: tuple[TokenLogprob | None, ...]) -> list[Event]:
        """The prompt's text, with its log-probabilities if asked for; the first token has none."""
        detokenizer = Detokenizer(self._vocabulary)
        chunks: list[TextChunk] = []
        for position, token_id in enumerate(self._prompt):
            entry = scored[position] if position < len(scored) else None
            mark = TokenMark(token_id, entry.logprob, entry.top) if entry else TokenMark(token_id)
            chunks += [chunk for chunk in detokenizer.push(mark) if chunk.special is None]
        chunks += detokenizer.finish()
        marks = tuple(mark for chunk in chunks for mark in chunk.tokens)
        return [TextDelta(self._index, "".join(chunk.text for chunk in chunks), self._tokens(marks))]

    def _events(self, segments: Iterable[Segment]) -> list[Event]:
        events: list[Event] = []
        for segment in segments:
            if self.stopped:
                break
            self._thinking = False
            match segment:
                case Content(chunk):
                    events += self._content(chunk)
                case Thinking(chunk):
                    self._thinking = True
                    events.append(ThinkingDelta(self._index, chunk.text, self._tokens(chunk.tokens)))
                case ToolCallStart(number, name):
                    events += self._flush()
                    if self._calls and self._one_call:
                        self.stopped = True
                        break
                    self._calls += 1
                    call_id = f"call_{secrets.token_hex(6)}"
                    events.append(ToolCallDelta(self._index, number, call_id, name, ""))
                case ToolCallArguments(number, text, _):
                    events.append(ToolCallDelta(self._index, number, None, None, text))
        return events

    def _content(self, chunk: TextChunk) -> list[Event]:
        if self._matcher is None:
            return [self._text(chunk)] if chunk.text or chunk.tokens else []
        chunks = self._matcher.push(chunk)
        self.stopped = self._matcher.matched is not None
        return [self._text(kept) for kept in chunks]

    def _flush(self) -> list[Event]:
        """Text the matcher held back cannot go on in a tool call."""
        return [self._text(chunk) for chunk in self._matcher.finish()] if self._matcher is not None else []

    def _text(self, chunk: TextChunk) -> TextDelta:
        return TextDelta(self._index, chunk.text, self._tokens(chunk.tokens))

    def _tokens(self, marks: tuple[TokenMark, ...]) -> tuple[TokenText, ...]:
        if not self._with_logprobs:
            return ()
        return tuple(token_text(mark, self._vocabulary) for mark in marks)


def joined(events: list[Event]) -> list[Event]:
    """Arguments of a call that came in together as one delta: clients parse all of them again at each."""
    made: list[Event] = []
    for event in events:
        last = made[-1] if made else None
        more = isinstance(event, ToolCallDelta) and event.id is None
        if more and isinstance(last, ToolCallDelta) and last.id is None:
            made[-1] = replace(last, arguments=last.arguments + event.arguments)  # type: ignore[union-attr]
        else:
            made.append(event)
    return made


def token_text(mark: TokenMark, vocabulary: Vocabulary) -> TokenText:
    """A token as callers see it; bytes that are no whole character show as U+FFFD."""
    data = vocabulary.token_bytes[mark.token_id]
    top = []
    for token_id, logprob in mark.top:
        other = vocabulary.token_bytes[token_id]
        top.append((other.decode("utf-8", "replace"), other, logprob))
    return TokenText(data.decode("utf-8", "replace"), data, mark.logprob, tuple(top))
