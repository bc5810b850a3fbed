"""Keep a model's convolutions within a norm while it is trained: a projection every so many steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from convsv.clipping import ClipOptions, Kernel, clip_layer
from convsv.differentiable._bound import eager
from convsv.differentiable._certified import certified_upper, shown_within, without_borders
from convsv.differentiable._layers import ModuleLayer, canonical, convolutions
from convsv.errors import ComputationError, UsageError, error_context
from convsv.execution import Execution
from convsv.layer import ConvLayer
from convsv.results import Interval
from convsv.rounding import DOUBLE, above, gamma

__all__ = ["METHODS", "SpectralClip"]

METHODS = ("scale", "nearest")
"""How to get within the norm: by a factor, or to the nearest kernel."""
_ATTEMPTS = 60
_SHARP = 1e-3
"""The same where the nearest kernel is asked for."""
_WIDTH = 4e-2
"""Relative width of the certified intervals: a layer ends at most so much below the norm that is allowed."""


class SpectralClip:
    """Projects the convolutions of a model onto a norm ball, every so many steps.

    Call :meth:`step` after ``optimizer.step()``. Between clips it counts and does nothing else. All it remembers is the
    count; what a clip does depends on the weights alone, in float64, on one thread and without a limit of time, so that
    equal ranks of a distributed group stay equal.

    Args:
        model: a module with ``nn.Conv1d`` to ``nn.ConvTranspose3d`` in it. Weights under a parametrisation are written
            through it.
        max_norm: largest norm allowed.
        every: steps from one clip to the next.
        method: ``"scale"`` multiplies a kernel that is outside by a factor; ``"nearest"`` moves it as little as
            possible, in many times the time.
        include: globs on module paths; all convolutions when empty.
        exclude: globs on module paths to leave out.

    Raises:
        UsageError: a number or the method makes no sense, or a weight is computed by a hook of the old kind.

    Guarantee:
        After a clip the norm of every layer, with its stride, groups and padding, of every input size, is certified to
        be at most ``max_norm``, for the weights as they are in their dtype.
    """

    def __init__(
        self,
        model: nn.Module,
        max_norm: float,
        every: int = 100,
        *,
        method: str = "scale",
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
    ) -> None:
        if not 0 < max_norm < math.inf:
            raise UsageError("the largest norm must be a positive number", found=str(max_norm))
        if every < 1:
            raise UsageError("a clip every so many steps: at least 1", found=str(every))
        if method not in METHODS:
            raise UsageError("unknown method", found=method, advice=f"use one of {', '.join(METHODS)}")
        self.max_norm, self.every, self.method = max_norm, every, method
        self._model, self._include, self._exclude = model, tuple(include), tuple(exclude)
        self._steps = 0
        for layer in convolutions(model, include, exclude):
            _refuse_hooks(layer)

    def step(self) -> bool:
        """Count a step of the optimizer, and clip if it is time.

        Returns:
            Whether it clipped.

        Raises:
            ComputationError: a weight is NaN or infinite, or a layer could not be brought within the norm.
        """
        self._steps += 1
        if self._steps % self.every:
            return False
        self.clip()
        return True

    @eager
    def clip(self) -> dict[str, float]:
        """Project all layers now.

        Returns:
            By module path the certified upper bound of the norm, at most ``max_norm``.

        Raises:
            ComputationError: a weight is NaN or infinite, or a layer could not be brought within the norm.
        """
        found: dict[str, float] = {}
        with torch.no_grad():
            for tied in _ties(convolutions(self._model, self._include, self._exclude)):
                found.update(self._together(tied))
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return what to store beside the optimizer's state."""
        return {"steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up counting where :meth:`state_dict` left off."""
        self._steps = int(state["steps"])

    def _together(self, tied: list[ModuleLayer]) -> dict[str, float]:
        """Project layers that share one weight until it suits all of them.

        Raises:
            ComputationError: it never does.
        """
        found: dict[str, float] = {}
        for attempt in range(_ATTEMPTS):
            moved = False
            for layer in tied:
                with error_context(tensor=layer.name):
                    # Only factors are repeated: each takes all of the layers down.
                    found[layer.name], touched = self._project(layer, self.method if attempt == 0 else METHODS[0])
                moved |= touched
            if len(tied) == 1 or not moved:
                return found
        raise ComputationError("no weight within the norm was found for tied layers", tensor=tied[0].name)

    def _project(self, layer: ModuleLayer, method: str) -> tuple[float, bool]:
        """Bring one layer within the norm; return its certified upper bound, and whether anything was changed.

        Raises:
            ComputationError: the parametrisation does not take the weight, or rounding does not let it.
        """
        weight, geometry = layer.weight.detach(), layer.geometry
        shown = shown_within(weight, geometry, self.max_norm)
        if shown is not None:
            return shown, False
        execution = Execution(device=str(weight.device), jobs=1)
        before = certified_upper(canonical(weight, geometry.groups), geometry, _WIDTH, execution)
        if before <= self.max_norm:
            return before, False
        if method == "nearest":
            wanted, after = _nearest(layer, self.max_norm, execution)
        else:
            wanted, after = _scaled(weight, layer, before, self.max_norm)
        _write(layer, wanted)
        if torch.equal(layer.weight.detach(), wanted):
            return after, True
        after = certified_upper(canonical(layer.weight.detach(), geometry.groups), geometry, _WIDTH, execution)
        if after > self.max_norm:
            found = f"norm {after:.6g}"
            raise ComputationError("its parametrisation does not keep a weight as it is given", found=found)
        return after, True


def _scaled(weight: Tensor, layer: ModuleLayer, upper: float, radius: float) -> tuple[Tensor, float]:
    """Return the weight times a factor, rounded to its dtype, and a certified upper bound of its norm.

    With W' = f W + E the norm is at most f ||W|| + ||E||, and the symbol of E has norm at most sqrt(P) ||E||_F, P being
    the number of taps. So what rounding does is measured, not certified a second time.

    Raises:
        ComputationError: it never came within the radius.
    """
    wide = weight.to(torch.float64)
    copies = without_borders(layer.geometry, tuple(weight.shape[2:]))[1]
    spread = math.sqrt(math.prod(weight.shape[2:])) * copies * (1 + gamma(weight.numel() + 16))
    length = float(torch.linalg.vector_norm(wide))
    unit = float(torch.finfo(weight.dtype).eps) / 2
    factor, margin = radius / (upper + unit * spread * length), 2.0**-50
    for _ in range(_ATTEMPTS):
        factor *= 1 - margin
        stored = (wide * factor).to(weight.dtype)
        wrong = float(torch.linalg.vector_norm(stored.to(torch.float64) - wide * factor))
        # The product and the difference err by a unit of float64 each, relative to the entries; squares may vanish.
        wrong += 4 * DOUBLE * factor * length + weight.numel() * 1e-150
        after = above(factor * upper + spread * wrong, 8)
        if after <= radius:
            return stored, after
        margin = min(0.25, max(2 * margin, 2 * (after / radius - 1)))
    raise ComputationError("no weight within the norm was found in its dtype", found=f"norm {after:.6g}")


def _nearest(layer: ModuleLayer, radius: float, execution: Execution) -> tuple[Tensor, float]:
    """Return the nearest weight within the radius, in its dtype, and a certified upper bound of its norm."""
    weight = layer.weight.detach()
    dtype = str(weight.dtype).removeprefix("torch.")
    stored = weight.to("cpu", torch.float64).numpy()
    made = ConvLayer(layer.name, layer.name, stored.shape, dtype, "OIK", layer.geometry, lambda: stored)

    def judge(kernel: Kernel) -> Interval:
        tensor = torch.from_numpy(np.ascontiguousarray(kernel))
        return Interval(0.0, certified_upper(tensor, layer.geometry, _SHARP, execution))

    found = clip_layer(made, ClipOptions(radius), judge, as_stored=made.as_stored, execution=execution)
    wanted = torch.from_numpy(found.kernel.reshape(stored.shape)).to(weight)
    return wanted, found.after.upper


def _write(layer: ModuleLayer, weight: Tensor) -> None:
    module = layer.module
    if parametrize.is_parametrized(module, "weight"):
        module.weight = weight
    else:
        layer.weight.copy_(weight)


def _refuse_hooks(layer: ModuleLayer) -> None:
    """Refuse weights that are recomputed before every forward pass from something else.

    Raises:
        UsageError: this is one.
    """
    if "weight" in layer.module._parameters or parametrize.is_parametrized(layer.module, "weight"):
        return
    raise UsageError(
        "its weight is computed by a hook, and cannot be written",
        tensor=layer.name,
        advice="use torch.nn.utils.parametrizations",
    )


def _ties(layers: Iterable[ModuleLayer]) -> list[list[ModuleLayer]]:
    """Return the layers, those together that share one weight."""
    ties: dict[int, list[ModuleLayer]] = {}
    for layer in layers:
        parameter = layer.module._parameters.get("weight")
        ties.setdefault(id(layer.module if parameter is None else parameter), []).append(layer)
    return list(ties.values())
