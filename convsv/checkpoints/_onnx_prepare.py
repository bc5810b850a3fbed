"""Shape inference for a stripped ONNX model, without onnx in this process."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from convsv.checkpoints._child import Child, folders_of
from convsv.checkpoints._file import AnonymousFile
from convsv.errors import CheckpointError

__all__ = ["prepare", "require_onnx"]

SECONDS = 3.0
"""Processor time for the shapes of a model."""
MAX_ANSWER = 1 << 27
_CHILD = Path(__file__).with_name("_onnx_child.py")


def require_onnx() -> None:
    """Say what to install where it is missing.

    Raises:
        CheckpointError: onnx is not installed.
    """
    if importlib.util.find_spec("onnx") is None:
        raise CheckpointError("is an ONNX model, and onnx is not installed", advice="pip install 'convsv[onnx]'")


def prepare(model: bytes, *, whole: bool = False) -> AnonymousFile:
    """Return a model with its functions inlined, its constants folded and the shapes of its values.

    Args:
        model: a ``ModelProto`` without weights.
        whole: the shapes of all values, for a batch of one; else of those that convolutions take.

    Raises:
        CheckpointError: onnx cannot do it: the model is damaged, or takes too much time or memory.
    """
    child = _Preparation(AnonymousFile("model", model))
    try:
        return AnonymousFile("model", bytes(child.ask_message({"whole": whole}, MAX_ANSWER)))
    finally:
        child.close()


class _Preparation(Child):
    """The child of one model."""

    library = module = "onnx"
    purpose = "infer the shapes of"

    def __init__(self, file: AnonymousFile) -> None:
        super().__init__(SECONDS, SECONDS)
        self._file = file

    def command(self) -> tuple[list[str], tuple[int, ...]]:
        """Return the program with its arguments, and the descriptor it inherits."""
        span = [str(self._file.fileno()), str(self._file.size)]
        return [str(_CHILD), *span, *folders_of("onnx", "numpy", "ml_dtypes")], (self._file.fileno(),)
