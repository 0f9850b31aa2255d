"""Our Jinja rendering against transformers' own `render_jinja_template`, over every published template."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from modelfiles.templates.jinja import render_jinja
from tests.modelfiles.templates.conversations import CONVERSATIONS, TOOLS, as_variables

pytestmark = pytest.mark.parity


def test_prompts_are_those_of_transformers(shared_data: Path) -> None:
    utilities = pytest.importorskip("transformers.utils.chat_template_utils")
    found = sorted((shared_data / "templates" / "jinja").glob("*.jinja"))
    assert len(found) >= 39
    compared = 0
    for path, messages, tools, think in itertools.product(
        found,
        CONVERSATIONS.values(),
        ((), TOOLS),
        ({}, {"enable_thinking": True}, {"enable_thinking": False}),
    ):
        text = path.read_text(encoding="utf-8")
        variables = as_variables(messages, tools) | think | {"bos_token": "<bos>", "eos_token": "</s>"}
        turns, functions = variables.pop("messages"), variables.pop("tools")
        try:
            rendered, _ = utilities.render_jinja_template(
                [turns], tools=functions, chat_template=text, add_generation_prompt=True, **variables
            )
            expected = rendered[0]
        except Exception:
            continue  # where transformers fails ours may be lenient
        ours = {"messages": turns, "tools": functions, "documents": None, "add_generation_prompt": True}
        assert render_jinja(text, {**ours, **variables}) == expected, path.name
        compared += 1
    assert compared > 4000
