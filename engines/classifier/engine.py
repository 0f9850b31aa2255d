"""Serves an image classifier inside a runner: one image in, one label or all probabilities out.

Images are 3 planes of bytes, as the frames carry them. Everything a text model does is refused by name.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import jax
import numpy as np
import numpy.typing as npt

from engines.base import (
    EncodeRequest,
    EngineError,
    GenerateRequest,
    InvalidRequest,
    LabelScore,
    Limits,
    LoadFailed,
    LoadProgress,
    LoadRequest,
    Ready,
    RunnerStatus,
)
from engines.classifier import storage
from engines.classifier.config import ClassifierConfig
from engines.classifier.model import Params, planes_to_images, scores
from engines.serving import StepResult
from modelfiles.safetensors import SafetensorsError

Bytes = npt.NDArray[np.uint8]
Vector = npt.NDArray[np.float32]


class ClassifierEngine:
    """The engine behind `python -m engines.runner --engine classifier`."""

    def __init__(self) -> None:
        self._config: ClassifierConfig | None = None
        self._params: Params = {}
        self._run: Callable[[Params, Bytes], jax.Array] | None = None
        self._classified = 0

    def load(self, request: LoadRequest, progress: Callable[[LoadProgress], None]) -> Ready:
        """Reads and compiles; raises `LoadFailed` with the tensor or field that is wrong."""
        started = time.monotonic_ns()
        progress(LoadProgress("reading", 0, 1))
        try:
            config, tensors = storage.load(request.files)
        except (ValueError, SafetensorsError, OSError) as error:
            raise LoadFailed(f"this image classifier cannot be served: {error}") from error
        self._params = jax.device_put(tensors)
        self._config = config
        progress(LoadProgress("compiling", 0, 1))
        self._run = jax.jit(partial(_probabilities, config)).lower(self._params, _blank(config)).compile()
        self._probabilities(bytes(config.image_bytes))
        return Ready(
            limits=Limits(1, 1),
            capabilities=("classify",),
            memory_bytes=sum(tensor.nbytes for tensor in tensors.values()),
            device=str(jax.devices()[0]),
            load_ns=time.monotonic_ns() - started,
            kernels="xla",
        )

    def score(self, image: bytes) -> list[LabelScore]:
        """Labels of an image in planes R, G, B; raises `InvalidRequest` for a wrong length."""
        config = self._loaded()
        if len(image) != config.image_bytes:
            raise InvalidRequest(
                f"an image is {config.image_bytes} bytes here, three planes of {config.side} x "
                f"{config.side} pixels; this one has {len(image)}"
            )
        self._classified += 1
        found = self._probabilities(image)
        return [(config.labels[index], float(found[index])) for index in np.argsort(-found, kind="stable")]

    def _probabilities(self, image: bytes) -> Vector:
        assert self._run is not None
        found: Vector = np.asarray(self._run(self._params, np.frombuffer(image, np.uint8)[None]))[0]
        return found

    def _loaded(self) -> ClassifierConfig:
        if self._config is None:
            raise EngineError("nothing is loaded here")
        return self._config

    def prepare(self, request: GenerateRequest) -> object:
        raise _no_text()

    def submit(self, request: GenerateRequest, prepared: object | None) -> None:
        raise _no_text()

    def submit_embedding(self, request: EncodeRequest) -> None:
        raise _no_text()

    def cancel(self, request_id: int) -> None:
        """Nothing runs longer than its own call."""

    def status(self) -> RunnerStatus:
        return RunnerStatus(0, 0, 0, 0, self._classified, 0, 0, 1)

    def step(self) -> StepResult:
        return StepResult()

    def wait_seconds(self) -> float | None:
        return None


def _probabilities(config: ClassifierConfig, params: Params, planes: jax.Array) -> jax.Array:
    return jax.nn.softmax(scores(config, params, planes_to_images(planes, config.side)))


def _blank(config: ClassifierConfig) -> Bytes:
    return np.zeros((1, config.image_bytes), np.uint8)


def _no_text() -> InvalidRequest:
    return InvalidRequest("this model classifies images; it neither generates nor embeds text")
