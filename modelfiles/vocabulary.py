"""What the gateway needs of a tokenizer to turn token ids back into text: a plain, sendable value.

Tokenizers of strangers are opened in a sandbox worker; the worker sends this table once per model.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """`token_bytes[i]` is the raw UTF-8 fragment of token i (control tokens: their name's bytes).

    `control_token_ids` are never shown as text; `end_token_ids` end a turn (EOS and the family's
    end-of-turn markers); `names` maps each special string to its id.
    """

    token_bytes: tuple[bytes, ...]
    control_token_ids: frozenset[int]
    end_token_ids: tuple[int, ...]
    bos_token_id: int | None
    add_bos: bool
    names: dict[str, int]
    strip_leading_space: bool = False
    """SentencePiece's dummy prefix: the first piece of a text loses one leading space when decoded."""
