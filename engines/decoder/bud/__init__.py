"""bud, the small bundled model: its data, tokenizer, training, export and evaluation.

Run `python -m engines.decoder.bud --texts FOLDER` (or `make bud`) to make it again from the texts named in
`corpus.py`. Nothing that serves requests imports this package.
"""
