"""Runs llama.cpp's own converter on Hugging Face folders without tokenizers: convert.py SOURCE FOLDER ...

SOURCE is llama.cpp's source tree; FOLDER.gguf is written beside each folder, with an empty vocabulary of the
model's size. A process of its own, because the converter needs the `gguf` package of its tree, which is newer
than the published one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def without_vocabulary(model_class: Any) -> Any:
    """The converter's class of a family, writing no tokens."""

    class WithoutVocabulary(model_class):
        model_arch = model_class.model_arch

        def set_vocab(self) -> None:
            self.gguf_writer.add_tokenizer_model("no_vocab")
            self.gguf_writer.add_vocab_size(self.hparams["vocab_size"])

    return WithoutVocabulary


def main(source: Path, *folders: Path) -> None:
    sys.path[:0] = [str(source), str(source / "gguf-py")]
    import conversion
    import gguf
    import torch

    for folder in folders:
        settings = conversion.ModelBase.load_hparams(folder, False)
        name = conversion.get_model_architecture(settings, conversion.ModelType.TEXT)
        converter = without_vocabulary(conversion.get_model_class(name, mmproj=False))
        out, dense = folder.with_name(f"{folder.name}.gguf"), (folder / "modules.json").exists()
        kind = gguf.LlamaFileType.ALL_F32
        with torch.inference_mode():
            converter(folder, kind, out, sentence_transformers_dense_modules=dense).write()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
