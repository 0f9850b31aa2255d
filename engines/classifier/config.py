"""What an image classifier is: its labels, image size and widths, as its config.json says. Imports no JAX.

ValueError      the document describes no classifier of ours
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from modelfiles.description import IMAGE_CLASSIFIER

MAX_LABELS: Final = 10_000
MAX_SIDE: Final = 512
MAX_WIDTH: Final = 4_096
MAX_STAGES: Final = 8


@dataclass(frozen=True, slots=True)
class ClassifierConfig:
    """A stack of stages; each is some 3 x 3 convolutions and halves both sides of the image.

    `widths` gives the channels of every convolution, stage by stage. Pixels in [0, 1] are shifted by `mean`
    and divided by `deviation` per channel R, G, B. `side` is the height and the width in pixels.
    """

    labels: tuple[str, ...]
    side: int = 32
    widths: tuple[tuple[int, ...], ...] = ((32, 32), (64, 64), (128, 128))
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    deviation: tuple[float, float, float] = (0.25, 0.25, 0.25)
    report: dict[str, Any] = field(default_factory=dict, hash=False)
    """What training found out (accuracy, images, seconds): shown, never used."""

    @property
    def image_bytes(self) -> int:
        """Bytes of one image: planes R, G, B of `side` x `side`."""
        return 3 * self.side * self.side

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the weights file by name."""
        shapes: dict[str, tuple[int, ...]] = {}
        channels = 3
        for stage, widths in enumerate(self.widths):
            for index, width in enumerate(widths):
                shapes[f"stages.{stage}.{index}.weight"] = (3, 3, channels, width)
                shapes[f"stages.{stage}.{index}.bias"] = (width,)
                channels = width
        shapes["head.weight"] = (channels, len(self.labels))
        shapes["head.bias"] = (len(self.labels),)
        return shapes

    def to_json(self) -> str:
        """The text of a config.json that `from_json` reads again."""
        return json.dumps({"model_type": IMAGE_CLASSIFIER} | asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> ClassifierConfig:
        """Reads a config.json, every field checked; raises ValueError naming the one that is wrong."""
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"config.json is not valid JSON: {error}") from error
        if not isinstance(document, dict) or document.get("model_type") != IMAGE_CLASSIFIER:
            raise ValueError(f"config.json does not say model_type {IMAGE_CLASSIFIER!r}")
        report = document.get("report", {})
        return cls(
            labels=_labels(document.get("labels")),
            side=_side(document.get("side"), len(document.get("widths") or ())),
            widths=_widths(document.get("widths")),
            mean=_triple(document, "mean"),
            deviation=_triple(document, "deviation", above=0.0),
            report=report if isinstance(report, dict) else {},
        )


def _labels(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_LABELS:
        raise ValueError(f"labels must be a list of 1 to {MAX_LABELS} names")
    if not all(isinstance(label, str) and label for label in value) or len(set(value)) < len(value):
        raise ValueError("labels must be different names, none of them empty")
    return tuple(value)


def _side(value: Any, stages: int) -> int:
    if type(value) is not int or not 1 << stages <= value <= MAX_SIDE:
        raise ValueError(
            f"side must be {1 << stages} to {MAX_SIDE} pixels for {stages} stages, not {value!r}"
        )
    return value


def _widths(value: Any) -> tuple[tuple[int, ...], ...]:
    well_formed = (
        isinstance(value, list)
        and 1 <= len(value) <= MAX_STAGES
        and all(isinstance(stage, list) and 1 <= len(stage) <= MAX_STAGES for stage in value)
        and all(type(width) is int and 1 <= width <= MAX_WIDTH for stage in value for width in stage)
    )
    if not well_formed:
        raise ValueError(f"widths must be lists of channel counts from 1 to {MAX_WIDTH}, one list per stage")
    return tuple(tuple(stage) for stage in value)


def _triple(document: dict[str, Any], key: str, above: float = float("-inf")) -> tuple[float, float, float]:
    value = document.get(key)
    if not isinstance(value, list) or len(value) != 3:
        raise ValueError(f"{key} must be three numbers, for red, green and blue")
    if not all(type(each) in (int, float) and above < each < float("inf") for each in value):
        raise ValueError(f"{key} must be three finite numbers{' above 0' if above == 0.0 else ''}")
    red, green, blue = (float(each) for each in value)
    return red, green, blue
