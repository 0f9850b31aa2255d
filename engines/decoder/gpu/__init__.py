"""What the engine does differently on a GPU, in plain JAX: packing, products, attention, XLA's options.

No kernels of its own: every form is an XLA program that runs on any card from compute capability 8.0, written
so that XLA fuses it into one kernel without copying weights or cache. `forms.register_all` offers them to
`engines.decoder.ops`; the generic forms of `quant` and `attention` stay the oracle. Empty on import: `flags`
must be readable without JAX.
"""
