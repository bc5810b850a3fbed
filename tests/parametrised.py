"""PyTorch's own modules with recomputed weights, a few training steps old."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils import parametrizations, prune

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "conv1d": lambda: nn.Conv1d(4, 6, 5),
    "conv2d": lambda: nn.Conv2d(3, 5, (3, 2)),
    "conv2d square": lambda: nn.Conv2d(4, 4, 3),
    "conv2d one output": lambda: nn.Conv2d(5, 1, 3),
    "conv3d": lambda: nn.Conv3d(2, 3, (3, 1, 2)),
    "grouped": lambda: nn.Conv2d(8, 6, 3, groups=2),
    "depthwise": lambda: nn.Conv2d(6, 6, 3, groups=6),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, 3),
    "transposed square": lambda: nn.ConvTranspose2d(5, 5, 3),
    "transposed 1d": lambda: nn.ConvTranspose1d(3, 4, 4),
}

Wrap = Callable[[nn.Module], nn.Module]


def quiet(wrap: Wrap) -> Wrap:
    """Silence PyTorch's advice to use the newer of its two weight_norms."""

    def silently(layer: nn.Module) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return wrap(layer)

    return silently


def both(layer: nn.Module) -> nn.Module:
    return parametrizations.spectral_norm(parametrizations.weight_norm(layer))


def twice(layer: nn.Module) -> nn.Module:
    return parametrizations.spectral_norm(parametrizations.spectral_norm(layer))


WRAPS: dict[str, Wrap] = {
    "old weight_norm": quiet(nn.utils.weight_norm),
    "old weight_norm over inputs": quiet(lambda layer: nn.utils.weight_norm(layer, dim=1)),
    "old weight_norm over taps": quiet(lambda layer: nn.utils.weight_norm(layer, dim=2)),
    "old weight_norm over all": quiet(lambda layer: nn.utils.weight_norm(layer, dim=None)),  # type: ignore[arg-type]
    "new weight_norm": parametrizations.weight_norm,
    "new weight_norm over inputs": lambda layer: parametrizations.weight_norm(layer, dim=1),
    "new weight_norm over all": lambda layer: parametrizations.weight_norm(layer, dim=None),  # type: ignore[arg-type]
    "old spectral_norm": quiet(nn.utils.spectral_norm),
    "new spectral_norm": parametrizations.spectral_norm,
    "weight_norm then spectral_norm": both,
    "spectral_norm twice": twice,
    "pruning": lambda layer: prune.l1_unstructured(layer, "weight", 0.4),  # type: ignore[no-untyped-call]
}


def trained(layer: str, wrap: str, dtype: torch.dtype) -> Any:
    """Return a wrapped layer in eval mode, after steps that move its parts away from their initial values."""
    torch.manual_seed(3)
    module: Any = WRAPS[wrap](LAYERS[layer]().to(dtype))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    for _ in range(4):
        optimizer.zero_grad()
        module(
            torch.randn(2, module.in_channels, *[7] * (module.weight.ndim - 2), dtype=dtype)
        ).square().mean().backward()
        optimizer.step()
    return module.eval()


def effective(module: Any) -> NDArray[Any]:
    """Return the weight that the module uses: hooks set it when it runs."""
    with torch.no_grad():
        module(torch.zeros(1, module.in_channels, *[7] * (module.weight.ndim - 2), dtype=module.weight.dtype))
    weight: NDArray[Any] = module.weight.detach().numpy()
    return weight
