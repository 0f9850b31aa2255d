"""bud's tokenizer: a SentencePiece BPE model with byte fallback and Gemma's control tokens.

Trains one and turns texts and conversations into token ids. Called by `batches` and `__main__`.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from engines.decoder.bud.chat import Turn, mentions

VOCABULARY_SIZE = 4096
PAD, EOS, BOS, UNKNOWN, START_OF_TURN, END_OF_TURN = range(6)
"""The control tokens' ids; the names below are Gemma's."""

EMPHASISED = 2
"""So many mentions of the noun asked for weigh more: later ones can be copied from the story itself."""

CONTROL_TOKENS = ("<start_of_turn>", "<end_of_turn>")


def train_tokenizer(texts: Iterable[str], path: Path) -> None:
    """Train on `texts` and write a SentencePiece model. Line breaks are left to the byte pieces."""
    lines = [line for text in texts for line in text.split("\n") if line]
    # The role names open every turn; enough copies make each of them one piece.
    lines += ["user", "model"] * 2000
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCABULARY_SIZE,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        split_digits=True,
        pad_id=PAD,
        eos_id=EOS,
        bos_id=BOS,
        unk_id=UNKNOWN,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        unk_piece="<unk>",
        control_symbols=list(CONTROL_TOKENS),
        num_threads=2,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())


class Tokenizer:
    """Texts and turns to token ids and back."""

    def __init__(self, path: Path) -> None:
        self.processor = sentencepiece.SentencePieceProcessor(model_file=str(path))

    def encode(self, text: str) -> list[int]:
        return list(self.processor.encode(text))

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.processor.decode(list(ids)))

    def document(self, text: str) -> tuple[list[int], list[float]]:
        """`<bos>text<eos>` and the weight of each of these tokens in the loss."""
        ids = [BOS, *self.encode(text), EOS]
        return ids, [1.0] * len(ids)

    def conversation(self, turns: Sequence[Turn], noun_weight: float = 1.0) -> tuple[list[int], list[float]]:
        """Gemma's turn format; only what the model says has weight, the nouns asked for `noun_weight`."""
        ids, weights = [BOS], [0.0]
        for turn in turns:
            header = [START_OF_TURN, *self.encode(f"{turn.role}\n")]
            body = [*self.encode(turn.text), END_OF_TURN]
            ids += [*header, *body, *self.encode("\n")]
            weights += [0.0] * len(header) + self._weights(turn, body, noun_weight) + [0.0]
        return ids, weights

    def _weights(self, turn: Turn, body: list[int], noun_weight: float) -> list[float]:
        if turn.role != "model":
            return [0.0] * len(body)
        weights = [1.0] * len(body)
        spans = mentions(turn.text, turn.emphasis)[:EMPHASISED] if turn.emphasis else []
        if not spans:
            return weights
        # Texts are ASCII and not normalised: a piece is as long as its text, a byte piece one character.
        lengths = [1 if self.processor.is_byte(i) else len(self.processor.id_to_piece(i)) for i in body[:-1]]
        ends = np.cumsum(lengths)
        for start, end in spans:
            first, last = np.searchsorted(ends, [start, end - 1], side="right")
            # The token after the noun weighs as much, or the model learns to go on with it for ever.
            stop = min(int(last) + 2, len(weights))
            weights[first:stop] = [noun_weight] * (stop - int(first))
        return weights

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        """The conversation so far and the header of the model's next turn."""
        return [*self.conversation(turns)[0], START_OF_TURN, *self.encode("model\n")]
