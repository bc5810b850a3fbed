"""Watching a model run: every convolution with its true input, its parameter, and what takes its output.

Calls are caught where Python hands them to torch (``TorchFunctionMode``), so it does not matter which module, if any,
makes them. Which parameter a call multiplies with is told by identity; where the weight was computed from a
parameter, it is the one of its shape that the innermost running module owns.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from convsv.checkpoints import Normalisation
from convsv.checkpoints.traced import TracedLayer
from convsv.geometry import GeometryFacts

__all__ = ["CONVOLUTIONS", "DEFAULTS", "TRANSPOSED", "ByTensor", "amounts_of", "axes_of", "eagerly", "record"]

Pairs: TypeAlias = "tuple[tuple[int, int], ...]"
T = TypeVar("T")

_FORWARD = "input weight bias stride padding dilation groups"
TRANSPOSED = "input weight bias stride padding output_padding groups dilation"
_GENERAL = "input weight bias stride padding dilation transposed output_padding groups"
CONVOLUTIONS: Mapping[Any, str] = {
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), _FORWARD),
    **dict.fromkeys((torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d), TRANSPOSED),
    **dict.fromkeys((torch.convolution, torch._convolution), _GENERAL),
}
"""The functions that convolve, and the names of their parameters in order."""
DEFAULTS: Mapping[str, Any] = {
    "bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1, "output_padding": 0, "transposed": False
}  # fmt: skip
_PAD_MODES = {"constant": "zeros", "circular": "circular", "reflect": "reflect", "replicate": "replicate"}
_PAD, _BATCH_NORM = inspect.signature(functional.pad), inspect.signature(functional.batch_norm)


def record(model: nn.Module, inputs: Sequence[torch.Tensor]) -> tuple[TracedLayer, ...]:
    """Run a model once in inference mode.

    Args:
        model: on the device of the inputs. It is put into ``eval()`` mode.
        inputs: the positional arguments of its ``forward``.

    Returns:
        One entry a parameter that convolutions multiplied with, in the order of their first call.

    Raises:
        Exception: whatever the model raises.
    """
    watcher = _Watcher(model.eval())
    with eagerly(), torch.no_grad(), watcher.modules(), watcher:
        model(*inputs)
    return watcher.layers()


@contextmanager
def eagerly() -> Iterator[None]:
    """Let compiled parts of a model run as they are written."""
    # Compiled parts would hide their calls, and compiling takes longer than running.
    set_stance = getattr(torch.compiler, "set_stance", None)
    with set_stance("force_eager") if set_stance else ExitStack():
        yield


@dataclass
class _Convolved:
    """The calls with one parameter so far."""

    path: str
    parameter: str
    shape: tuple[int, ...]
    computed: bool
    calls: list[GeometryFacts] = field(default_factory=list)
    norms: list[Normalisation | None] = field(default_factory=list)


@dataclass
class _Padded:
    """What a call of ``pad`` was given."""

    size: tuple[int, ...]
    amounts: Pairs
    mode: str
    by: nn.Module | None


@dataclass
class _Output:
    """The output of one call: whose it is, which call of it, and how often it was taken so far."""

    of: _Convolved
    call: int
    taken: int = 0


class ByTensor(Generic[T]):
    """What is known of live tensors, by identity; it keeps none of them alive."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[torch.Tensor], T]] = {}

    def __setitem__(self, tensor: torch.Tensor, value: T) -> None:
        self._known[id(tensor)] = (weakref.ref(tensor), value)

    def get(self, tensor: object) -> T | None:
        """Return what is known of a tensor."""
        reference, value = self._known.get(id(tensor), (None, None))
        return value if reference is not None and reference() is tensor else None


class _Watcher(TorchFunctionMode):
    """Sees every call of torch while it is active."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model
        self._running: list[tuple[str, nn.Module]] = []
        self._names: dict[int, list[tuple[str, str]]] = {}
        tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        for name, tensor in tensors:
            path, _, leaf = name.rpartition(".")
            self._names.setdefault(id(tensor), []).append((path, leaf))
        self._kept_alive = [tensor for _, tensor in tensors]
        self._found: dict[tuple[str, str, tuple[int, ...]], _Convolved] = {}
        self._padded: ByTensor[_Padded] = ByTensor()
        self._outputs: ByTensor[_Output] = ByTensor()

    @contextmanager
    def modules(self) -> Iterator[None]:
        """Keep account of which modules are running."""
        with ExitStack() as stack:
            for path, module in self._model.named_modules():
                if isinstance(module, torch.jit.ScriptModule):
                    continue  # runs outside Python: nothing of it is seen
                before = module.register_forward_pre_hook(self._enter(path))
                after = module.register_forward_hook(self._leave, always_call=True)
                stack.callback(before.remove)
                stack.callback(after.remove)
            yield

    def layers(self) -> tuple[TracedLayer, ...]:
        """Return what was seen."""
        return tuple(
            TracedLayer(
                found.path,
                found.parameter,
                found.shape,
                tuple(dict.fromkeys(found.calls)),
                found.norms[0] if len(set(found.norms)) == 1 else None,
                found.computed,
            )
            for found in self._found.values()
        )

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        # In-place calls change shapes: what goes in is looked at before.
        seen = self._before(func, args, given)
        result = func(*args, **given)
        seen(result)
        return result

    def _enter(self, path: str) -> Callable[[nn.Module, Any], None]:
        return lambda module, _: self._running.append((path, module))

    def _leave(self, module: nn.Module, *_: Any) -> None:
        while self._running and self._running.pop()[1] is not module:
            pass  # those that an exception ended

    def _before(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[Any], None]:
        if func in CONVOLUTIONS:
            values = {**DEFAULTS, **dict(zip(CONVOLUTIONS[func].split(), args, strict=False)), **kwargs}
            transposed = CONVOLUTIONS[func] is TRANSPOSED or bool(values["transposed"])
            self._take(values["input"])
            return self._convolution({**values, "transposed": transposed})
        if func is functional.pad:
            self._take((args, kwargs))
            return self._pad(_PAD.bind(*args, **kwargs).arguments)
        if func is functional.batch_norm:
            self._normalise(_BATCH_NORM.bind(*args, **kwargs).arguments)
            return _nothing
        # Questions about a tensor (its shape, its device) do not take it; to write into it does.
        written = func is torch.Tensor.__setitem__
        return lambda result: self._take((args, kwargs)) if written or any(True for _ in _flat(result)) else None

    # ------------------------------------------------------------------------------------------------- convolutions

    def _convolution(self, values: Mapping[str, Any]) -> Callable[[Any], None]:
        weight, given = values["weight"], values["input"]
        found = self._convolved(weight)
        found.calls.append(self._facts(given, tuple(weight.shape[2:]), values))
        found.norms.append(None)
        output = _Output(found, len(found.calls) - 1)

        def seen(result: Any) -> None:
            self._outputs[result] = output

        return seen

    def _convolved(self, weight: torch.Tensor) -> _Convolved:
        """Return the account of the parameter that a call multiplies with."""
        shape = tuple(weight.shape)
        key = self._key(weight)
        computed = key is None
        path, leaf = key or self._likely_key(shape)
        return self._found.setdefault((path, leaf, shape), _Convolved(path, leaf, shape, computed))

    def _key(self, tensor: object) -> tuple[str, str] | None:
        """Return (path, name) of a parameter or buffer; of tied ones, the one of the running module."""
        names = self._names.get(id(tensor))
        if not names:
            return None
        running = self._running[-1][0] if self._running else ""
        return next((name for name in names if name[0] == running), names[0])

    def _likely_key(self, shape: tuple[int, ...]) -> tuple[str, str]:
        """Return the parameter from which the running module may have computed its weight."""
        if not self._running:
            return "", "weight"
        path, module = self._running[-1]
        fitting = [name for name, own in module.named_parameters(recurse=False) if tuple(own.shape) == shape]
        return path, min(fitting, key=lambda name: not name.startswith("weight"), default="weight")

    def _facts(self, given: torch.Tensor, taps: tuple[int, ...], values: Mapping[str, Any]) -> GeometryFacts:
        dims = len(taps)
        size, mode = tuple(given.shape[-dims:]), "zeros"
        dilation = axes_of(values["dilation"], dims)
        padding = amounts_of(values["padding"], taps, dilation)
        folded = self._padded.get(given)
        if folded and not values["transposed"] and self._is_own(folded) and _goes_before(folded, padding):
            size, mode = folded.size[-dims:], folded.mode
            padding = tuple((a + c, b + d) for (a, b), (c, d) in zip(folded.amounts[:dims], padding, strict=True))
        return GeometryFacts(
            size=size,
            stride=axes_of(values["stride"], dims),
            padding=padding,
            padding_mode=mode,
            dilation=dilation,
            groups=int(values["groups"]),
            transposed=bool(values["transposed"]),
            output_padding=axes_of(values["output_padding"], dims),
        )

    # ------------------------------------------------------------------------------------- padding and normalisation

    def _pad(self, values: Mapping[str, Any]) -> Callable[[Any], None]:
        """Remember what a call of ``pad`` adds, if a convolution could do it itself."""
        given, flat = values["input"], [int(amount) for amount in values["pad"]]
        pairs = tuple(zip(flat[::2], flat[1::2], strict=True))[::-1]  # the last axis comes first
        mode = _PAD_MODES.get(values.get("mode", "constant"))
        spatial = given.ndim - 2
        outer, pairs = pairs[: max(len(pairs) - spatial, 0)], pairs[max(len(pairs) - spatial, 0) :]
        pairs = ((0, 0),) * (spatial - len(pairs)) + pairs
        if mode is None or values.get("value") or min(flat, default=0) < 0 or any(map(any, outer)):
            return _nothing
        padded = _Padded(tuple(given.shape), pairs, mode, self._running[-1][1] if self._running else None)

        def seen(result: Any) -> None:
            if result is not given:
                self._padded[result] = padded

        return seen

    def _is_own(self, padded: _Padded) -> bool:
        """Whether the module that convolves padded its input by itself."""
        return padded.by is not None and bool(self._running) and padded.by is self._running[-1][1]

    def _normalise(self, values: Mapping[str, Any]) -> None:
        """Note a batch normalisation that is the first to take the output of a convolution."""
        output = self._outputs.get(values["input"])
        if output is None:
            return
        first = output.taken == 0
        self._take(values["input"])
        variance, scale = self._key(values["running_var"]), self._key(values.get("weight"))
        unknown = variance is None or (scale is None and values.get("weight") is not None)
        if first and variance and not unknown and not values.get("training", False):
            output.of.norms[output.call] = Normalisation(
                variance[0], _joined(variance), _joined(scale) if scale else None, float(values.get("eps", 1e-5))
            )

    def _take(self, given: Any) -> None:
        """Count that somebody takes these outputs; what two take has no norm of its own."""
        for output in filter(None, map(self._outputs.get, _flat(given))):
            output.taken += 1
            if output.taken > 1:
                output.of.norms[output.call] = None


def _nothing(_: Any) -> None:
    pass


def _joined(key: tuple[str, str]) -> str:
    return ".".join(filter(None, key))


def _flat(value: Any) -> Iterator[Any]:
    """Yield the tensors of arguments: lists and tuples are looked into."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _flat(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _flat(item)


def axes_of(value: Any, dims: int) -> tuple[int, ...]:
    """Return an argument that is one number, or one an axis, as one an axis."""
    numbers = tuple(int(n) for n in value) if isinstance(value, (list, tuple)) else (int(value),)
    return numbers * dims if len(numbers) == 1 else numbers


def amounts_of(padding: Any, taps: tuple[int, ...], dilation: tuple[int, ...]) -> Pairs:
    """Return the padding that a convolution is called with as ``(before, after)`` an axis."""
    if padding == "same":
        reach = [d * (k - 1) for k, d in zip(taps, dilation, strict=True)]
        return tuple((total // 2, total - total // 2) for total in reach)
    return tuple((n, n) for n in axes_of(0 if padding == "valid" else padding, len(taps)))


def _goes_before(padded: _Padded, padding: Pairs) -> bool:
    """Whether a padding of its own and that of the convolution are one padding."""
    return padded.mode == "zeros" or not any(map(any, padding))
