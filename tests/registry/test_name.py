"""Names: Ollama's rules, defaults and shortest form; what is refused; properties over all valid names."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.errors import InvalidName
from registry.name import ModelName

ACCEPTED = {
    "mistral": ("registry.ollama.ai", "library", "mistral", "latest", "mistral:latest"),
    "mistral:7b": ("registry.ollama.ai", "library", "mistral", "7b", "mistral:7b"),
    "me/mine": ("registry.ollama.ai", "me", "mine", "latest", "me/mine:latest"),
    "h.example/me/mine:t": ("h.example", "me", "mine", "t", "h.example/me/mine:t"),
    "localhost:5000/me/mine": ("localhost:5000", "me", "mine", "latest", "localhost:5000/me/mine:latest"),
    "https://h.example/me/mine:t": ("h.example", "me", "mine", "t", "h.example/me/mine:t"),
    "hf.co/org/Repo-GGUF:Q4_K_M": ("hf.co", "org", "Repo-GGUF", "Q4_K_M", "hf.co/org/Repo-GGUF:Q4_K_M"),
    "registry.ollama.ai/library/m:latest": ("registry.ollama.ai", "library", "m", "latest", "m:latest"),
    "_a.b-c": ("registry.ollama.ai", "library", "_a.b-c", "latest", "_a.b-c:latest"),
    "00": ("registry.ollama.ai", "library", "00", "latest", "00:latest"),
    "h.example/library/m": ("h.example", "library", "m", "latest", "h.example/library/m:latest"),
}

REFUSED = [
    "", ":", "/", "a:", ":a", "a/", "/a", "a//b", "a/b/c/d", "h/n/m:", "h//m:t", ".", "..", "../a", "a/..",
    "-a", ".a", "a b", "a\nb", "a\x00b", "a\\b", "a@sha256:b", "00@", "n.s/m", "n:s/m:t", "m:t/x:", "a:b:c",
    "a\n", "é", "m:t.\u200b", "a%2e", "~", "$HOME", "a" * 81, "n" * 81 + "/m", "m:" + "t" * 81,
    "h" * 351 + "/n/m", "x" * 10_000,
]  # fmt: skip


@pytest.mark.parametrize("text", ACCEPTED)
def test_parts_defaults_and_shortest_form(text: str) -> None:
    *parts, shown = ACCEPTED[text]
    name = ModelName.parse(text)
    assert name.parts() == tuple(parts)
    assert name.display() == shown
    assert ModelName.parse(name.full()) == name


@pytest.mark.parametrize("text", REFUSED)
def test_refused(text: str) -> None:
    with pytest.raises(InvalidName, match="invalid model name"):
        ModelName.parse(text)


def test_the_lengths_at_the_limit() -> None:
    name = ModelName.parse(f"{'h' * 350}/{'n' * 80}/{'m' * 80}:{'t' * 80}")
    assert [len(part) for part in name.parts()] == [350, 80, 80, 80]


def test_fuzz_seeds_of_ollama(shared_data: Path) -> None:
    seeds = sorted((shared_data / "fuzz" / "ollama").rglob("FuzzName/*"))
    assert seeds
    for seed in seeds:
        for line in seed.read_text(encoding="utf-8").splitlines():
            if line.startswith("string("):
                text = ast.literal_eval(line[len("string(") : -1])
                with pytest.raises(InvalidName):
                    ModelName.parse(text)


WORD = "abzABZ09_"
PART = st.text(WORD + "-", max_size=79)
DOTTED = st.text(WORD + "-.", max_size=79)
FIRST = st.sampled_from(WORD)
NAMES = st.builds(
    ModelName,
    host=st.builds(str.__add__, FIRST, st.text(WORD + "-.:", max_size=349)),
    namespace=st.builds(str.__add__, FIRST, PART),
    model=st.builds(str.__add__, FIRST, DOTTED),
    tag=st.builds(str.__add__, FIRST, DOTTED),
)


@given(NAMES)
def test_every_valid_name_comes_back_from_both_its_forms(name: ModelName) -> None:
    assert ModelName.parse(name.full()) == name
    assert ModelName.parse(name.display()) == name


@given(st.text(max_size=120))
def test_any_text_is_a_safe_name_or_refused(text: str) -> None:
    try:
        name = ModelName.parse(text)
    except InvalidName:
        return
    for part in name.parts():
        assert part not in ("", ".", "..")
        assert not set(part) & set("/\\\0")
