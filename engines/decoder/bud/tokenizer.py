"""bud's tokenizer: a SentencePiece BPE model with byte fallback and Gemma's control tokens.

Trains one and turns texts and conversations into token ids. Called by `batches` and `__main__`.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece

from engines.decoder.bud.chat import Turn

VOCABULARY_SIZE = 4096
PAD, EOS, BOS, UNKNOWN, START_OF_TURN, END_OF_TURN = range(6)
"""The control tokens' ids; the names below are Gemma's."""

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

    def document(self, text: str) -> tuple[list[int], list[bool]]:
        """`<bos>text<eos>` and which of these tokens are learnt."""
        ids = [BOS, *self.encode(text), EOS]
        return ids, [True] * len(ids)

    def conversation(self, turns: Sequence[Turn]) -> tuple[list[int], list[bool]]:
        """Gemma's turn format; only what the model says, and its end, is learnt."""
        ids, learnt = [BOS], [False]
        for turn in turns:
            header = [START_OF_TURN, *self.encode(f"{turn.role}\n")]
            body = [*self.encode(turn.text), END_OF_TURN]
            ids += [*header, *body, *self.encode("\n")]
            learnt += [False] * len(header) + [turn.role == "model"] * len(body) + [False]
        return ids, learnt

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        """The conversation so far and the header of the model's next turn."""
        return [*self.conversation(turns)[0], START_OF_TURN, *self.encode("model\n")]
