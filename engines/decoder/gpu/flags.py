"""XLA's options for programs on a GPU: which are set, and which wait for a card to be tried on. No JAX.

XLA's defaults serve until a measurement says otherwise: its Triton products are autotuned, and steps are
recorded as CUDA graphs (command buffers) already. `make bench-gpu` times eight streams with each candidate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Option:
    """One of XLA's options: its value, and why it may pay."""

    name: str
    value: str | bool | int
    reason: str


CANDIDATES: Final = (
    Option(
        "xla_gpu_experimental_enable_subchannel_dequantisation_fusion",
        True,
        "unpacks weights inside the product (seen in compiled programs): one byte moved instead of five",
    ),
    Option(
        "xla_gpu_enable_command_buffer",
        "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,CONDITIONAL,WHILE",
        "sampling has six conditions, and each makes the host wait for the device; needs CUDA 12.4",
    ),
    Option(
        "xla_gpu_graph_min_graph_size",
        1,
        "records short runs of kernels too, such as those between two products",
    ),
)
