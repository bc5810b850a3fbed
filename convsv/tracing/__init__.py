"""Tracing: running the user's own model once, without its weights, to learn how its convolutions lie.

The model is built and run on the meta device, where tensors have shapes and no values: no memory, no arithmetic. What
cannot be built there is built on the CPU and moved; what cannot run there, because it asks for values, is run on the
CPU, with whatever weights it was built with. Every convolution that is called is seen with its true input, including
functional calls, layers that compute their weight, and layers that pad by themselves.

This imports and runs the user's code. Nothing else in convsv does, and this only when asked.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
from torch import nn

from convsv.checkpoints.traced import Trace, TracedLayer
from convsv.errors import UsageError
from convsv.graph import Network
from convsv.tracing.network import record_network
from convsv.tracing.recorder import record

__all__ = ["InputShape", "network_of", "trace", "trace_model", "trace_network"]

Build: TypeAlias = "Callable[[], nn.Module]"
Seen = TypeVar("Seen")

_TARGET = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_SHOWN = 200


@dataclass(frozen=True)
class InputShape:
    """One input of a model.

    Attributes:
        shape: without the batch axis, to which 1 is given.
        dtype: name of a dtype of torch; None: that of the model's parameters.
    """

    shape: tuple[int, ...]
    dtype: str | None = None


def trace(target: str, inputs: Sequence[InputShape], arguments: str | None = None) -> Trace:
    """Import, build and run a model, and return what its convolutions did.

    Modules are searched for in the current folder first. What the model prints goes to standard error.

    Args:
        target: ``package.module:callable``: a class or function that returns a ``torch.nn.Module``, or a module.
        inputs: one entry a positional input of its ``forward``.
        arguments: JSON: an object of keyword arguments, or a list of positional ones, for the callable.

    Raises:
        UsageError: the target or the arguments are malformed, or the model cannot be imported, built or run.
    """
    if not _TARGET.fullmatch(target):
        advice = "write package.module:callable, for instance mynet.models:ResNet"
        raise UsageError("--model names nothing to import", found=repr(target), advice=advice)
    args, kwargs = _arguments(arguments)
    with _current_folder_first(), contextlib.redirect_stdout(sys.stderr):
        build = _builder(target, args, kwargs)
        layers, notes = _run_somewhere(target, build, inputs, record)
    if not layers:
        notes = (*notes, f"{target}: no convolution was called")
    return Trace(target, layers, notes)


def trace_model(model: nn.Module, inputs: Sequence[torch.Tensor]) -> tuple[TracedLayer, ...]:
    """Run a model in inference mode and return what its convolutions did.

    Args:
        model: on the device of the inputs. It is put into ``eval()`` mode.
        inputs: the positional arguments of its ``forward``.

    Raises:
        Exception: whatever the model raises.
    """
    return record(model, inputs)


def network_of(model: nn.Module, inputs: Sequence[torch.Tensor | Sequence[int]]) -> Network:
    """Run a model in inference mode and return its graph, whose constants are the model's own tensors.

    Args:
        model: it is left in training or inference mode as it was.
        inputs: the positional arguments of its ``forward`` for a batch of one; a shape stands for zeros.

    Raises:
        Exception: whatever the model raises.
    """
    first = next(model.parameters(), torch.zeros(()))
    floating = first.dtype if first.dtype.is_floating_point else torch.float32
    given = [
        one if isinstance(one, torch.Tensor) else torch.zeros(tuple(one), dtype=floating, device=first.device)
        for one in inputs
    ]
    return record_network(model, given, values=True)


def trace_network(target: str, inputs: Sequence[InputShape], arguments: str | None = None) -> Network:
    """Import, build and run a model, and return its graph; its constants have keys, and no values.

    Args:
        target: as for :func:`trace`.
        inputs: one entry a positional input of its ``forward``.
        arguments: as for :func:`trace`.

    Raises:
        UsageError: the target or the arguments are malformed, or the model cannot be imported, built or run.
    """
    args, kwargs = _arguments(arguments)
    with _current_folder_first(), contextlib.redirect_stdout(sys.stderr):
        build = _builder(target, args, kwargs)
        network, notes = _run_somewhere(target, build, inputs, lambda m, given: record_network(m, given, values=False))
    return replace(network, notes=(*network.notes, *notes))


# ---------------------------------------------------------------------------------------------------------- building


def _arguments(text: str | None) -> tuple[list[Any], dict[str, Any]]:
    if text is None:
        return [], {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError("--model-args is not JSON", found=str(error)) from None
    if isinstance(value, dict):
        return [], value
    if isinstance(value, list):
        return value, {}
    raise UsageError("--model-args must be a JSON object or list", found=text[:_SHOWN])


@contextlib.contextmanager
def _current_folder_first() -> Iterator[None]:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(here)


def _builder(target: str, args: list[Any], kwargs: dict[str, Any]) -> Build:
    """Import the target and return what builds a model from it.

    Raises:
        UsageError: it cannot be imported, is not there, or is nothing to call.
    """
    module_name, _, path = target.partition(":")
    with _users_code(target, "imported"):
        found: Any = importlib.import_module(module_name)
        for name in path.split("."):
            found = getattr(found, name)
    if isinstance(found, nn.Module):
        if args or kwargs:
            raise UsageError("--model-args does not go with a finished module", found=target)
        return lambda: copy.deepcopy(found)
    if not callable(found):
        raise UsageError(f"--model {target} cannot be called", found=type(found).__name__)

    def build() -> nn.Module:
        model = found(*args, **kwargs)
        model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
        if not isinstance(model, nn.Module):
            raise TypeError(f"it returned a {type(model).__name__}, not a torch.nn.Module")
        return model

    return build


@contextlib.contextmanager
def _users_code(target: str, what: str) -> Iterator[None]:
    """Turn whatever the user's code raises into one line.

    Raises:
        UsageError: it raised.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        text = f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
        shown = text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
        raise UsageError(f"--model {target} cannot be {what}", found=shown) from error


# ----------------------------------------------------------------------------------------------------------- running


def _run_somewhere(
    target: str, build: Build, inputs: Sequence[InputShape], watch: Callable[[nn.Module, Sequence[torch.Tensor]], Seen]
) -> tuple[Seen, tuple[str, ...]]:
    model = _built_on_meta(target, build)
    try:
        return watch(model, [_given(model, one, torch.device("meta")) for one in inputs]), ()
    except Exception as error:
        if not _asks_for_values(error):
            with _users_code(target, "run"):
                raise
        why = " ".join(str(error).split())[:_SHOWN]
    with _users_code(target, "run"):
        model = build().to("cpu")
        seen = watch(model, [_given(model, one, torch.device("cpu")) for one in inputs])
    note = f"{target}: run on the CPU with random input, because it asks for values ({why}): another input may differ"
    return seen, (note,)


def _built_on_meta(target: str, build: Build) -> nn.Module:
    try:
        with torch.device("meta"):
            return build().to("meta")
    except Exception:  # noqa: BLE001 - many constructors ask a few numbers of a tensor, which has none there
        with _users_code(target, "built"):
            return build().to("meta")


def _asks_for_values(error: Exception) -> bool:
    return isinstance(error, NotImplementedError) or "meta" in str(error).lower()


def _given(model: nn.Module, wanted: InputShape, device: torch.device) -> torch.Tensor:
    """Return an input of a batch of one: random numbers from a fixed seed, zeros where they must be integers."""
    shape = (1, *wanted.shape)
    floating = (p.dtype for p in model.parameters() if p.dtype.is_floating_point)
    dtype = getattr(torch, wanted.dtype) if wanted.dtype else next(floating, torch.float32)
    if device.type == "meta":
        return torch.empty(shape, dtype=dtype, device=device)
    if not dtype.is_floating_point:
        return torch.zeros(shape, dtype=dtype)
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
