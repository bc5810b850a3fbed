"""Watching a model run to learn its graph: every operation between the input and the outputs.

What a tensor depends on is told by identity: tensors that came out of an operation on the input, parameters, buffers
and what was made of them. A tensor of another origin (out of a scripted module, or of code that left torch) makes what
takes it unknown, and so does one that was changed in place behind an alias: the version that torch counts tells that.
A model that asks for values of what depends on its input may do otherwise on another input: it has no graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from convsv.geometry import GeometryFacts, resolve
from convsv.graph import Constant, Network, Operation
from convsv.layer import ConvLayer
from convsv.tracing.operations import FUNCTIONS, Call, bound_arguments
from convsv.tracing.recorder import CONVOLUTIONS, DEFAULTS, TRANSPOSED, ByTensor, amounts_of, axes_of, eagerly

__all__ = ["record_network"]

_QUESTIONS = frozenset({
    *("size", "dim", "ndimension", "numel", "nelement", "stride", "storage_offset", "element_size", "get_device"),
    *("type", "__len__", "__hash__", "__repr__", "__str__", "__format__", "__setitem__", "data_ptr", "untyped_storage"),
    *("is_floating_point", "is_complex", "is_contiguous", "is_inference", "is_signed", "is_pinned", "is_same_size"),
    *("is_shared", "is_conj", "is_neg", "broadcast_shapes", "result_type", "can_cast", "register_hook"),
})  # fmt: skip
"""Functions that return no tensor and tell nothing of a tensor's values."""


def record_network(model: nn.Module, inputs: Sequence[Tensor], *, values: bool) -> Network:
    """Run a model once in inference mode and return its graph.

    Args:
        model: on the device of the inputs; it is left as it was, in training or not.
        inputs: the positional arguments of its ``forward``, for a batch of one. Floating-point ones are the network's
            inputs.
        values: whether its tensors have values to read; else constants have keys only.

    Raises:
        Exception: whatever the model raises.
    """
    training = [module for module in model.modules() if module.training]
    watcher = _Watcher(model.eval(), values=values)
    try:
        with eagerly(), torch.no_grad(), watcher.modules(), watcher:
            return watcher.network(inputs, model(*watcher.begin(inputs)))
    finally:
        for module in training:
            module.training = True


@dataclass(frozen=True)
class _Known:
    """What is known of a tensor: the value it is, None for a constant; its version, and its key if it has one."""

    value: str | None
    version: int
    key: str = ""


@dataclass(frozen=True)
class _Seen:
    """A call of a function, and what was known of the tensors it was given before: their values and shapes."""

    func: Any
    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    taken: Mapping[int, str | None]
    shapes: Mapping[int, tuple[int, ...]]

    def depends(self, item: Any) -> bool:
        """Tell whether an argument depends on the network's input."""
        return isinstance(item, Tensor) and self.taken.get(id(item)) is not None

    @property
    def everything(self) -> tuple[str, ...]:
        """The values of all arguments that depend on the input."""
        return tuple(self.taken[id(t)] or "" for t in _tensors((self.args, self.kwargs)) if self.depends(t))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the first of them."""
        return next(self.shapes[id(t)] for t in _tensors((self.args, self.kwargs)) if self.depends(t))


class _Watcher(TorchFunctionMode):
    """Sees every call of torch while it is active."""

    def __init__(self, model: nn.Module, *, values: bool) -> None:
        super().__init__()
        self._model, self._values = model, values
        self._running: list[tuple[str, bool]] = []
        self._known: ByTensor[_Known] = ByTensor()
        self._kept_alive: list[Tensor] = []
        self._operations: list[Operation] = []
        self._names: set[str] = set()
        self._inputs: dict[str, tuple[int | None, ...] | None] = {}
        self._problem: str | None = None
        self._collect(model)

    def _collect(self, model: nn.Module) -> None:
        """Take parameters, buffers and plain tensors of modules for constants."""
        named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        for path, module in model.named_modules():
            plain = ((name, value) for name, value in vars(module).items() if isinstance(value, Tensor))
            named += [(f"{path}.{name}" if path else name, value) for name, value in plain]
            if isinstance(module, torch.jit.ScriptModule):
                self._problem = f"{path or 'the model'} is a scripted module: what runs in it is not seen"
        for name, tensor in reversed(named):
            self._kept_alive.append(tensor)
            self._known[tensor] = _Known(None, _version(tensor), name)

    @contextmanager
    def modules(self) -> Iterator[None]:
        """Keep account of which modules are running."""
        with ExitStack() as stack:
            for path, module in self._model.named_modules():
                if isinstance(module, torch.jit.ScriptModule):
                    continue
                before = module.register_forward_pre_hook(self._enter(path, not any(True for _ in module.children())))
                after = module.register_forward_hook(self._leave, always_call=True)
                stack.callback(before.remove)
                stack.callback(after.remove)
            yield

    def _enter(self, path: str, is_leaf: bool) -> Callable[[nn.Module, Any], None]:
        return lambda *_: self._running.append((path, is_leaf))

    def _leave(self, *_: Any) -> None:
        self._running.pop()

    def begin(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Return the inputs, each of which is known from now on."""
        given = [tensor.detach() for tensor in inputs]  # an alias of its own: the caller may hold a parameter
        for number, tensor in enumerate(given):
            if tensor.is_floating_point():
                name = f"input{number}" if len(given) > 1 else "input"
                self._names.add(name)
                self._inputs[name] = tuple(tensor.shape)
                self._known[tensor] = _Known(name, _version(tensor))
            else:
                self._known[tensor] = _Known(None, _version(tensor))
        self._kept_alive += given
        return given

    def network(self, inputs: Sequence[Tensor], result: Any) -> Network:
        """Return the graph up to what the model returned."""
        outputs: dict[str, str] = {}
        for name, tensor in _named(result):
            value = self._value(tensor)
            if value is not None:
                outputs[name or "output"] = value
        notes = [] if self._inputs else ["no input is of floating point"]
        return Network(self._inputs, tuple(self._operations), outputs, self._problem, tuple(notes))

    # ------------------------------------------------------------------------------------------------- one call

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        tensors = list(_tensors((args, given)))
        # In-place calls change what is known: what goes in is looked at before.
        taken = {id(tensor): self._value(tensor) for tensor in tensors}
        shapes = {id(tensor): tuple(tensor.shape) for tensor in tensors}
        result = func(*args, **given)
        if not any(taken.values()):
            self._constants(result)
            return result
        made = list(_tensors(result))
        if made:
            seen = _Seen(func, _name(func), args, given, taken, shapes)
            for tensor in made:  # an operation a tensor
                self._remember(tensor, _Known(self._add(self._translated(seen, tensor)), _version(tensor)))
        elif not _is_question(func):
            what = getattr(func, "__name__", str(func))
            self._problem = self._problem or (
                f"{self._here() or 'the model'} asks for values of what depends on its input ({what}): "
                "on another input it may do otherwise"
            )
        return result

    def _value(self, tensor: Tensor) -> str | None:
        """Return the value that a tensor is, None for a constant."""
        known = self._known.get(tensor)
        if known is not None and known.version == _version(tensor) >= 0:
            return known.value
        kind = "stranger" if known is None else "changed"
        name = self._add(Operation(self._unused(self._here() or kind), kind, (), tuple(tensor.shape)))
        self._remember(tensor, _Known(name, _version(tensor)))
        return name

    def _constants(self, result: Any) -> None:
        for tensor in _tensors(result):
            known = self._known.get(tensor)
            key = known.key if known is not None and known.version == _version(tensor) else ""
            self._remember(tensor, _Known(None, _version(tensor), key))

    def _remember(self, tensor: Tensor, known: _Known) -> None:
        self._known[tensor] = known

    def _translated(self, seen: _Seen, made: Tensor) -> Operation:
        """Return what a call did, as far as one tensor of its result is concerned."""
        label = self._unused(self._label(seen.name))
        whole = Operation(label, "unknown", seen.everything, tuple(made.shape), called=seen.name)
        if not made.is_floating_point():
            return replace(whole, kind="discrete")
        if seen.func in CONVOLUTIONS:
            return self._convolution(seen, whole)
        parameters, translate = FUNCTIONS.get(seen.name, (None, None))
        known = parameters and _is_torchs(seen.func)
        values = bound_arguments(parameters, seen.args, seen.kwargs) if parameters and known else None
        if values is None or translate is None:
            return whole
        call = Call(values, made, seen.depends, seen.shape)
        told = translate(call)
        wanted = [item for key, item in call.flat() if seen.depends(item) and (told.takes is None or key in told.takes)]
        return replace(
            whole,
            kind=told.kind,
            inputs=tuple(seen.taken[id(item)] or "" for item in wanted),
            settings=told.settings,
            constants={key: self._constant(tensor) for key, tensor in told.constants.items()},
        )

    def _convolution(self, seen: _Seen, whole: Operation) -> Operation:
        names = CONVOLUTIONS[seen.func].split()
        values = {**DEFAULTS, **dict(zip(names, seen.args, strict=False)), **seen.kwargs}
        weight, given = values["weight"], values["input"]
        if seen.depends(weight) or seen.depends(values["bias"]):
            return replace(whole, kind="computed_weight")
        taps = tuple(weight.shape[2:])
        dilation = axes_of(values["dilation"], len(taps))
        facts = GeometryFacts(
            size=tuple(given.shape[-len(taps) :]),
            stride=axes_of(values["stride"], len(taps)),
            padding=amounts_of(values["padding"], taps, dilation),
            padding_mode="zeros",
            dilation=dilation,
            groups=int(values["groups"]),
            transposed=CONVOLUTIONS[seen.func] is TRANSPOSED or bool(values["transposed"]),
            output_padding=axes_of(values["output_padding"], len(taps)),
        )
        constant, geometry = self._constant(weight), resolve(taps, [("traced", facts)])
        dtype, problem = str(weight.dtype).removeprefix("torch."), None if constant.read else constant.problem
        read = constant.read or _no_values
        key = constant.key or ".".join(filter(None, (self._here(), "weight")))  # computed: from what its module has
        layer = ConvLayer(whole.name, key, tuple(weight.shape), dtype, "OIK", geometry, read, problem=problem)
        return replace(whole, kind="conv", constants={"weight": constant}, layer=layer)

    def _constant(self, tensor: Tensor) -> Constant:
        known = self._known.get(tensor)
        key = known.key if known is not None else ""
        has_values = tensor.device.type != "meta" and (self._values or known is None)
        problem = "its values are not known" if key else "the model computes a tensor that it takes"
        kept = tensor.detach()
        return Constant(tuple(tensor.shape), (lambda: _array(kept)) if has_values else None, key, problem)

    # ---------------------------------------------------------------------------------------------------- names

    def _here(self) -> str:
        return self._running[-1][0] if self._running else ""

    def _label(self, function: str) -> str:
        """Return the path of a module that does nothing else, or that of the running one with the function."""
        path, is_leaf = self._running[-1] if self._running else ("", False)
        if is_leaf and path and path not in self._names and function != "pad":
            return path
        return f"{path}.{function}" if path else function

    def _unused(self, name: str) -> str:
        number, unused = 1, name
        while unused in self._names:
            number += 1
            unused = f"{name}#{number}"
        return unused

    def _add(self, operation: Operation) -> str:
        self._names.add(operation.name)
        self._operations.append(operation)
        return operation.name


def _name(func: Any) -> str:
    """Return the name of a function of torch, without the underscore of those that work in place."""
    name = str(getattr(func, "__name__", ""))
    if name == "__get__":
        return str(resolve_name(func) or name).removesuffix(".__get__").rpartition(".")[2]
    return name if name.startswith("__") else name.removesuffix("_")


def _is_torchs(func: Any) -> bool:
    return (getattr(func, "__module__", None) or "torch").partition(".")[0] == "torch"


def _is_question(func: Any) -> bool:
    name = str(getattr(func, "__name__", ""))
    return name == "__get__" or name in _QUESTIONS


def _version(tensor: Tensor) -> int:
    """Return how often a tensor, or one that it shares memory with, was changed in place.

    Tensors of ``torch.inference_mode`` do not count that: none of them is ever known.
    """
    return -1 if tensor.is_inference() else int(tensor._version)


def _array(tensor: Tensor) -> NDArray[Any]:
    wide = tensor.double() if tensor.is_floating_point() else tensor
    return np.asarray(wide.cpu().numpy())


def _no_values() -> NDArray[Any]:
    raise RuntimeError("a layer without values was read")


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of arguments and results: lists, tuples and mappings are looked into."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _named(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that a model returns, with their places."""
    if isinstance(value, Tensor):
        yield name, value
        return
    items: Any = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    for key, item in items:
        yield from _named(item, f"{name}.{key}" if name else str(key))
