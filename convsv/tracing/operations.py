"""What PyTorch's functions mean to the rules of a network: kind, settings and constants of one call.

A function is one entry of :data:`FUNCTIONS`: the names of its parameters in order, and what translates a call of it.
What has no entry is ``unknown`` to the rules, and the network has no bound: nothing is guessed. Nor is it where a
call has an argument that its entry does not name, unless the names end with a star.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from convsv.tracing.recorder import axes_of

__all__ = ["FUNCTIONS", "Call", "Told", "bound_arguments"]


@dataclass(frozen=True)
class Told:
    """What a call means.

    Attributes:
        kind: which rule is about it.
        settings: numbers and words, by the rule's names.
        constants: tensors that do not depend on the input, by the rule's names.
        takes: parameters whose values count; all when None.
    """

    kind: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    takes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Call:
    """A call of a function.

    Attributes:
        values: the arguments by the names of its parameters; what has no name under ``more``.
        result: the first tensor of its result.
        depends: tells whether a tensor depends on the network's input.
        shape: of the first input that does, before the call.
    """

    values: Mapping[str, Any]
    result: Tensor
    depends: Callable[[Any], bool]
    shape: tuple[int, ...]

    def number(self, name: str, default: float) -> float:
        """Return an argument that is a number."""
        return float(self.values.get(name, default))

    def only(self, *names: str) -> bool:
        """Tell whether nothing but these arguments depends on the input."""
        return not any(self.depends(item) for name, item in self.flat() if name not in names)

    def flat(self) -> Iterable[tuple[str, Any]]:
        """Yield (parameter, argument); lists and tuples are looked into."""
        for name, value in self.values.items():
            yield from ((name, item) for item in _leaves(value))

    def constants(self, **names: str) -> dict[str, Tensor]:
        """Return the arguments that are tensors: the rule's name -> that of the parameter."""
        found = {name: self.values.get(parameter) for name, parameter in names.items()}
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}


_HARMLESS = frozenset({"inplace", "dtype", "_stacklevel", "keepdim", "memory_format", "return_indices"})
_ALIASES = {"self": "input", "x": "input", "axis": "dim", "keepdims": "keepdim", "destination": "source"}


def bound_arguments(parameters: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the arguments of a call by the names of parameters; None where one has no name among them."""
    names = parameters.split()
    takes_any = names[-1] == "*"
    names = names[:-1] if takes_any else names
    values = dict(zip(names, args, strict=False))
    more = args[len(names) :]
    values |= {_ALIASES.get(key, key): value for key, value in kwargs.items()}
    if takes_any:
        return {**values, "more": more}
    return None if more or values.keys() - {*names, *_HARMLESS} else values


Translate: TypeAlias = Callable[[Call], Told]


def _leaves(value: Any) -> Iterable[Any]:
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


_SAME_IN_SINGLE = 20.0
"""Where softplus and the identity are the same in single precision: PyTorch's default threshold."""


def _kind(kind: str, **settings: tuple[str, float]) -> Translate:
    """Return a translation of a function of one value, with numbers: the rule's name -> (parameter, default)."""

    def translate(call: Call) -> Told:
        if not call.only("input"):
            return Told("computed_weight")
        return Told(kind, {name: call.number(*told) for name, told in settings.items()})

    return translate


def _gelu(call: Call) -> Told:
    return Told("gelu_tanh" if call.values.get("approximate", "none") == "tanh" else "gelu")


def _softplus(call: Call) -> Told:
    # Beyond its threshold PyTorch returns the input itself: at the default of 20 that is rounding (2e-9 / beta), below
    # it a jump.
    if call.number("threshold", _SAME_IN_SINGLE) < _SAME_IN_SINGLE:
        return Told("switched")
    return _kind("softplus", beta=("beta", 1.0))(call)


def _rrelu(call: Call) -> Told:
    if call.values.get("training", False):
        return Told("random")
    slope = (call.number("lower", 1 / 8) + call.number("upper", 1 / 3)) / 2
    return Told("leaky_relu", {"negative_slope": math.nextafter(slope, math.inf)})


def _reversed_subtraction(call: Call) -> Told:
    alpha = call.values.get("alpha", 1)
    both = call.depends(call.values["input"]) and call.depends(call.values["other"])
    if not isinstance(alpha, (int, float)) or both:
        return Told("unknown")
    return Told("add", {"weights": (float(alpha) if call.depends(call.values["input"]) else 1.0,)})


# ------------------------------------------------------------------------------------------------- weights and scales


def _prelu(call: Call) -> Told:
    return Told("prelu", constants=call.constants(weight="weight")) if call.only("input") else Told("computed_weight")


def _linear(call: Call) -> Told:
    if not call.only("input", "bias"):
        return Told("computed_weight")
    return Told("linear" if call.only("input") else "unknown", constants=call.constants(weight="weight"))


def _matmul(call: Call) -> Told:
    left, right = call.values["input"], call.values["other"]
    if call.depends(left) and call.depends(right):
        return Told("product")
    return Told("linear", {"transposed": True}, {"weight": right if call.depends(left) else left})


def _batch_norm(call: Call) -> Told:
    if not call.only("input"):
        return Told("computed_weight")
    if call.values.get("training", False) or call.values.get("running_var") is None:
        return Told("own_statistics")
    constants = call.constants(variance="running_var", scale="weight")
    return Told("batch_norm", {"epsilon": call.number("eps", 1e-5)}, constants)


def _centred(call: Call) -> Told:
    if not call.only("input"):
        return Told("computed_weight")
    return Told("centred_norm", {"epsilon": call.number("eps", 1e-5)}, call.constants(scale="weight"))


def _rms_norm(call: Call) -> Told:
    # Its Jacobian is that of a centred one without the projection: (1 - z z^T / n) / sqrt(mean square + epsilon).
    return Told("unknown") if call.values.get("eps") is None else _centred(call)


def _instance_norm(call: Call) -> Told:
    return _centred(call) if call.values.get("use_input_stats", True) else _batch_norm(call)


# ---------------------------------------------------------------------------------------------------- two at one time


def _add(call: Call, sign: float = 1.0) -> Told:
    left, right = call.values.get("input"), call.values.get("other")
    alpha = call.values.get("alpha", 1)
    if not isinstance(alpha, (int, float)):
        return Told("unknown")
    if call.depends(left) and call.depends(right):
        return Told("add", {"weights": (1.0, sign * float(alpha))})
    weight = 1.0 if call.depends(left) else float(alpha)
    term = right if call.depends(left) else left
    if isinstance(term, Tensor):
        return Told("add", {"weights": (weight,)}, {"term": term} if sign * alpha == 1 else {})
    number = float(term or 0) * (sign * alpha if term is right else 1)
    return Told("add", {"weights": (weight,), "term": number})


def _multiply(call: Call) -> Told:
    left, right = call.values["input"], call.values["other"]
    if call.depends(left) and call.depends(right):
        return Told("product")
    other = right if call.depends(left) else left
    if isinstance(other, Tensor):
        return Told("scale", constants={"factor": other})
    return Told("scale", {"factor": float(other)}) if isinstance(other, (int, float)) else Told("unknown")


def _divide(call: Call) -> Told:
    left, right = call.values["input"], call.values["other"]
    if call.depends(right) or call.values.get("rounding_mode") is not None:
        return Told("product" if call.depends(left) else "unknown")
    if isinstance(right, Tensor):
        return Told("scale", {"divides": True}, {"factor": right})
    return Told("scale", {"divides": True}, {"factor": torch.tensor(float(right), dtype=torch.float64, device="cpu")})


def _extreme(call: Call) -> Told:
    return Told("extreme")


def _clamp(call: Call) -> Told:
    return Told("clamp") if call.only("input") else Told("unknown")


def _concat(call: Call) -> Told:
    return Told("concat")


# ----------------------------------------------------------------------------------------------------------- pooling


def _max_pool(dims: int) -> Translate:
    def translate(call: Call) -> Told:
        settings = {**_windows(call, dims), "dilation": axes_of(call.values.get("dilation", 1), dims)}
        return Told("max_pool", settings)

    return translate


def _windows(call: Call, dims: int) -> dict[str, Any]:
    kernel = axes_of(call.values["kernel_size"], dims)
    stride = call.values.get("stride")
    return {"kernel": kernel, "stride": kernel if stride in (None, [], ()) else axes_of(stride, dims)}


def _average_pool(dims: int) -> Translate:
    def translate(call: Call) -> Told:
        padding = axes_of(call.values.get("padding", 0), dims)
        return Told(
            "average_pool",
            {
                **_windows(call, dims),
                "padding": tuple((n, n) for n in padding),
                "counts_padding": bool(call.values.get("count_include_pad", True)),
                "ceil": bool(call.values.get("ceil_mode", False)),
                "divisor": call.values.get("divisor_override"),
            },
        )

    return translate


def _adaptive(kind: str, dims: int) -> Translate:
    return lambda call: Told(kind, {"dims": dims})


def _over_axes(kind: str) -> Translate:
    """Return a translation of a reduction over axes, ``dim``."""

    def translate(call: Call) -> Told:
        dim = call.values.get("dim")
        if dim is not None and not all(isinstance(n, int) for n in _leaves(dim)):
            return Told("extreme" if kind == "maximum" else "unknown")  # max(input, other)
        axes = None if dim is None or dim in ((), []) else tuple(n % len(call.shape) for n in _leaves(dim))
        return Told(kind, {"axes": axes})

    return translate


# ------------------------------------------------------------------------------------------------------------- shapes


def _moved(call: Call) -> Told:
    """Translate what moves entries and copies none, by the arguments that say where."""
    bits = any(isinstance(item, torch.dtype) for _, item in call.flat())  # view(dtype) reads the same bits otherwise
    return Told("reshape") if call.only("input") and not bits else Told("unknown")


def _like(call: Call) -> Told:
    """Translate what takes the shape of another tensor."""
    return Told("expand", takes=("input",))


def _cast(call: Call) -> Told:
    return Told("identity", takes=("input",))


def _index(call: Call) -> Told:
    index = call.values["index"]
    plain = all(item is None or item is Ellipsis or isinstance(item, (int, slice)) for item in _items(index))
    return Told("slice") if plain and not isinstance(index, bool) else Told("unknown")


def _items(index: Any) -> tuple[Any, ...]:
    items = index if isinstance(index, tuple) else (index,)
    return tuple(object() if isinstance(item, bool) else item for item in items)


def _index_select(call: Call) -> Told:
    if not call.only("input"):
        return Told("unknown")
    axis = int(call.values["dim"]) % max(len(call.shape), 1)
    return Told("gather", {"axis": axis}, call.constants(places="index"))


_MODES = {"constant": "zeros", "circular": "circular", "reflect": "reflect", "replicate": "replicate"}


def _pad(call: Call) -> Told:
    flat = [int(amount) for amount in call.values["pad"]]
    mode = _MODES.get(call.values.get("mode", "constant"))
    pairs = tuple(zip(flat[::2], flat[1::2], strict=True))[::-1]  # the last axis comes first
    pairs = ((0, 0),) * (len(call.shape) - len(pairs)) + pairs
    return Told("pad", {"mode": mode, "amounts": pairs}) if mode and call.only("input") else Told("unknown")


def _interpolate(call: Call) -> Told:
    plain = call.values.get("mode", "nearest") in ("nearest", "nearest-exact") and not call.values.get("antialias")
    sizes = zip(call.shape, call.result.shape, strict=True)
    scale = call.values.get("scale_factor")
    whole = scale is None or all(float(factor).is_integer() for factor in _leaves(scale))
    # Between whole multiples the places depend on how the scale is rounded.
    return Told("nearest") if plain and whole and all(m % n == 0 for n, m in sizes) else Told("unknown")


def _dropout(call: Call) -> Told:
    still = not call.values.get("training", True) or call.values.get("p", 0.5) == 0
    return Told("identity" if still else "random")


# -------------------------------------------------------------------------------------------------------------- table

_INPUT, _ANY = "input inplace", "input *"
_ELEMENTWISE = (
    *("relu", "relu6", "abs", "absolute", "neg", "sigmoid", "tanh", "tanhshrink", "softsign", "logsigmoid"),
    *("log_sigmoid", "sin", "cos", "atan", "arctan", "erf", "silu", "mish", "hardswish", "hardsigmoid", "selu"),
)
_ALIKE = {"absolute": "abs", "neg": "negative", "log_sigmoid": "logsigmoid", "arctan": "atan", "swish": "silu"}

FUNCTIONS: dict[str, tuple[str, Translate]] = {
    **{name: (_INPUT, _kind(_ALIKE.get(name, name))) for name in _ELEMENTWISE},
    "expit": (_INPUT, _kind("sigmoid")),
    "leaky_relu": ("input negative_slope inplace", _kind("leaky_relu", negative_slope=("negative_slope", 0.01))),
    "rrelu": ("input lower upper training inplace", _rrelu),
    "elu": ("input alpha inplace", _kind("elu", alpha=("alpha", 1.0))),
    "celu": ("input alpha inplace", lambda call: Told("celu" if call.number("alpha", 1.0) > 0 else "unknown")),
    "hardtanh": ("input min_val max_val inplace", _kind("clamp")),
    "softplus": ("input beta threshold", _softplus),
    "softshrink": ("input lambd", _kind("softshrink")),
    "softmax": ("input dim _stacklevel dtype", _kind("softmax")),
    "softmin": ("input dim _stacklevel dtype", _kind("softmax")),
    "log_softmax": ("input dim _stacklevel dtype", lambda call: Told("log_softmax", {"axis": call.values.get("dim")})),
    "logsumexp": ("input dim _stacklevel dtype", _kind("logsumexp")),
    "gelu": ("input approximate", _gelu),
    "prelu": ("input weight", _prelu),
    "linear": ("input weight bias", _linear),
    "matmul": ("input other", _matmul),
    "mm": ("input other", _matmul),
    "__matmul__": ("input other", _matmul),
    "__rmatmul__": ("other input", _matmul),
    "batch_norm": ("input running_mean running_var weight bias training momentum eps", _batch_norm),
    "instance_norm": ("input running_mean running_var weight bias use_input_stats momentum eps", _instance_norm),
    "layer_norm": ("input normalized_shape weight bias eps", _centred),
    "rms_norm": ("input normalized_shape weight eps", _rms_norm),
    "group_norm": ("input num_groups weight bias eps", _centred),
    **dict.fromkeys(("add", "__add__", "__radd__", "__iadd__"), ("input other alpha", _add)),
    **dict.fromkeys(("sub", "subtract", "__sub__", "__isub__"), ("input other alpha", lambda call: _add(call, -1.0))),
    **dict.fromkeys(("rsub", "__rsub__"), ("input other alpha", _reversed_subtraction)),
    **dict.fromkeys(("mul", "multiply", "__mul__", "__rmul__", "__imul__"), ("input other", _multiply)),
    **dict.fromkeys(
        ("div", "divide", "true_divide", "__truediv__", "__itruediv__"), ("input other rounding_mode", _divide)
    ),
    "maximum": ("input other", _extreme),
    "minimum": ("input other", _extreme),
    **dict.fromkeys(("clamp", "clip"), ("input min max", _clamp)),
    "clamp_min": ("input min", _clamp),
    "clamp_max": ("input max", _clamp),
    **dict.fromkeys(("cat", "concat", "concatenate", "stack"), ("tensors dim", _concat)),
    **{
        f"max_pool{d}d{end}": ("input kernel_size stride padding dilation ceil_mode return_indices", _max_pool(d))
        for d in (1, 2, 3)
        for end in ("", "_with_indices")
    },
    "avg_pool1d": ("input kernel_size stride padding ceil_mode count_include_pad", _average_pool(1)),
    **{
        f"avg_pool{d}d": (
            "input kernel_size stride padding ceil_mode count_include_pad divisor_override",
            _average_pool(d),
        )
        for d in (2, 3)
    },
    **{
        f"adaptive_max_pool{d}d{end}": ("input output_size return_indices", _adaptive("adaptive_max_pool", d))
        for d in (1, 2, 3)
        for end in ("", "_with_indices")
    },
    **{f"adaptive_avg_pool{d}d": ("input output_size", _adaptive("adaptive_average_pool", d)) for d in (1, 2, 3)},
    "mean": ("input dim keepdim", _over_axes("mean")),
    "sum": ("input dim keepdim", _over_axes("sum")),
    **dict.fromkeys(("amax", "amin", "max", "min"), ("input dim keepdim", _over_axes("maximum"))),
    **dict.fromkeys(("flatten", "unflatten"), (_ANY, _moved)),
    **dict.fromkeys(("reshape", "view", "permute", "squeeze", "unsqueeze", "roll", "flip"), (_ANY, _moved)),
    **dict.fromkeys(("transpose", "swapaxes", "movedim", "moveaxis", "t", "narrow", "select"), (_ANY, _moved)),
    **dict.fromkeys(("chunk", "split", "tensor_split", "unbind", "split_with_sizes"), (_ANY, _moved)),
    **dict.fromkeys(("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle"), (_ANY, _moved)),
    **dict.fromkeys(("T", "mT", "H", "mH"), (_ANY, _moved)),
    **dict.fromkeys(("contiguous", "clone", "detach", "to", "type", "type_as", "float", "double"), (_ANY, _cast)),
    **dict.fromkeys(("half", "bfloat16", "cpu", "cuda", "requires_grad", "alias", "positive"), (_ANY, _cast)),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to", "repeat", "tile", "view_as", "reshape_as"), (_ANY, _like)),
    "__getitem__": ("input index", _index),
    "index_select": ("input dim index", _index_select),
    "pad": ("input pad mode value", _pad),
    "interpolate": ("input size scale_factor mode align_corners recompute_scale_factor antialias", _interpolate),
    "dropout": ("input p training inplace", _dropout),
    **dict.fromkeys(
        ("dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"),
        ("input p training inplace", _dropout),
    ),
    "scaled_dot_product_attention": (_ANY, lambda call: Told("attention")),
    "multi_head_attention_forward": (_ANY, lambda call: Told("attention")),
    **dict.fromkeys(("bmm", "einsum", "baddbmm", "bilinear"), (_ANY, lambda call: Told("product"))),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), (_ANY, lambda call: Told("recurrence"))),
    **dict.fromkeys(
        ("exp", "expm1", "log", "log1p", "sqrt", "rsqrt", "square", "reciprocal", "tan", "sinh", "cosh"),
        (_ANY, lambda call: Told("steep")),
    ),
    "normalize": (_ANY, lambda call: Told("unit_length")),
}
"""Function -> (names of its parameters in order, what translates a call of it)."""
