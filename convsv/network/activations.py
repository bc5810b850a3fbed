"""Functions of one number at a time, and softmax: the largest slope anywhere.

An elementwise function with slopes of at most c has ``||f(x) - f(y)|| <= c ||x - y||``. Constants that are not simple
fractions are rounded up in their last digit; the tests hold the derivatives below them with interval arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from convsv.errors import UnavailableError
from convsv.graph import Operation
from convsv.network import RULES, Compute, Rule, Step, Surroundings, rule
from convsv.rounding import above

__all__ = ["CONSTANTS", "GELU", "MISH", "SILU"]

GELU = 1.128905
"""Of x Phi(x), at sqrt(2): Phi(sqrt 2) + sqrt(2) phi(sqrt 2) = 1.1289043..."""
_GELU_TANH = 1.12900
_ERF = 1.1283792
"""2 / sqrt(pi)."""
SILU = 1.099840
"""Of x sigmoid(x): 1.0998393..., near 2.3994."""
MISH = 1.088499
"""Of x tanh(log(1 + exp(x))): 1.0884981..., near 1.4908."""
_SELU = 1.7581
"""1.0507... times 1.6732..., just left of zero."""

CONSTANTS: Mapping[str, tuple[float, str]] = {
    **dict.fromkeys(("relu", "relu6", "abs", "negative", "tanhshrink", "softshrink"), (1.0, "slopes of at most 1")),
    **dict.fromkeys(("tanh", "softsign", "sin", "cos", "atan"), (1.0, "the derivative is at most 1")),
    **dict.fromkeys(("softplus", "logsigmoid", "celu", "clamp"), (1.0, "the derivative is at most 1")),
    "sigmoid": (0.25, "s (1 - s) is at most 1/4"),
    "erf": (_ERF, "2 / sqrt(pi), at 0"),
    "gelu": (GELU, "the derivative has its largest value at sqrt(2), where its own is phi (2 - x^2)"),
    "gelu_tanh": (_GELU_TANH, "the derivative, by interval arithmetic"),
    "silu": (SILU, "the derivative, by interval arithmetic"),
    "mish": (MISH, "the derivative, by interval arithmetic"),
    "hardswish": (1.5, "x (x + 3) / 6 has slope (2 x + 3) / 6 up to x = 3"),
    "selu": (_SELU, "the product of its two constants"),
}
"""Kind -> (largest slope, why)."""


def _constant(value: float) -> Compute:
    return lambda operation, around: Step((value,))


for _kind, (_value, _why) in CONSTANTS.items():
    RULES.add(_kind, Rule(_constant(_value), f"{_value:.7g}", _why))


@rule("leaky_relu", factor="max(1, |slope|)", why="its two slopes")
def leaky_relu(operation: Operation, around: Surroundings) -> Step:
    """Bound a rectifier whose slope on the left is a setting."""
    return Step((max(1.0, abs(float(operation.settings["negative_slope"]))),))


@rule("elu", factor="max(1, |alpha|)", why="alpha exp(x) left of zero")
def elu(operation: Operation, around: Surroundings) -> Step:
    """Bound an exponential linear unit."""
    return Step((max(1.0, abs(float(operation.settings["alpha"]))),))


@rule("prelu", factor="max(1, max |slope|)", why="its slopes")
def prelu(operation: Operation, around: Surroundings) -> Step:
    """Bound a rectifier whose slopes are learned."""
    slopes = operation.constants["weight"].values()
    return Step((max(1.0, float(abs(slopes).max(initial=0.0))),))


@rule("hardsigmoid", factor="|alpha|", why="clip(alpha x + beta, 0, 1)")
def hardsigmoid(operation: Operation, around: Surroundings) -> Step:
    """Bound a piecewise linear sigmoid; 1/6 unless told."""
    return Step((above(abs(float(operation.settings.get("alpha", 1 / 6)))),))


@rule("softmax", factor="1/2", why="Gershgorin: the rows of diag(p) - p p^T sum to at most 2 p_i (1 - p_i)")
def softmax(operation: Operation, around: Surroundings) -> Step:
    """Bound softmax along an axis. Its Lipschitz constant 1 is in Gao, Pavel 2017 (arXiv 1704.00805)."""
    return Step((0.5,))


@rule("log_softmax", factor="sqrt(n)", why="I - 1 p^T is an oblique projection of norm sqrt(n) ||p||")
def log_softmax(operation: Operation, around: Surroundings) -> Step:
    """Bound the logarithm of softmax over n entries.

    Raises:
        UnavailableError: n is not known.
    """
    count = operation.settings.get("count")
    shape, axis = around.shape(operation.inputs[0]), operation.settings.get("axis")
    if count is None and shape is not None and isinstance(axis, int) and -len(shape) <= axis < len(shape):
        count = shape[axis]
    if count is None:
        raise UnavailableError("the size of the axis that log_softmax runs along is not known")
    return Step((above(math.sqrt(count)),))


@rule("logsumexp", factor="1", why="its gradient is a probability vector")
def logsumexp(operation: Operation, around: Surroundings) -> Step:
    """Bound the logarithm of a sum of exponentials."""
    return Step((1.0,))
