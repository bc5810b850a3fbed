"""Networks and the loop that trains them, with and without what is to regularise them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from convsv.differentiable import SpectralClip, spectral_penalty
from reproduce.data import Data

__all__ = ["Recipe", "Regulariser", "ResNet", "Trained", "chain", "error_rate", "one_step", "train"]


class Block(nn.Module):
    """Two convolutions and a shortcut, which where the channels change is a 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, normalised: bool) -> None:
        super().__init__()
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d if normalised else lambda channels: nn.Identity()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=not normalised),
            norm(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=not normalised),
            norm(outputs),
        )
        self.shortcut = nn.Identity() if (inputs, stride) == (outputs, 1) else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both ways, rectified: (N, outputs, H / stride, W / stride)."""
        return torch.relu(self.body(x) + self.shortcut(x))


class ResNet(nn.Sequential):
    """A residual network of three stages, with batch normalisation or without."""

    def __init__(self, channels: int, width: int, blocks: int, *, normalised: bool) -> None:
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, 1, 1), nn.ReLU()]
        inputs = width
        for stage in range(3):
            for block in range(blocks):
                outputs, stride = width * 2**stage, 2 if stage and not block else 1
                layers.append(Block(inputs, outputs, stride, normalised=normalised))
                inputs = outputs
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))
        _initialise(self)


def _initialise(model: nn.Module) -> None:
    """Draw the weights so that signals neither fade nor grow without normalisation (He et al. 2015)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, Block):
            with torch.no_grad():
                module.body[3].weight.mul_(0.5)


def chain(channels: int, width: int) -> nn.Sequential:
    """Return a plain chain of convolutions and rectifiers without normalisation, for inputs of any even size."""
    model = nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(2 * width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * width, 10),
    )
    _initialise(model)
    return model


@dataclass(frozen=True)
class Regulariser:
    """What is done to the norms during training.

    Attributes:
        name: what to call it.
        weight: of the penalty, the sum of a bound over all convolutions; 0 for none.
        bound: which bound.
        max_norm: to which the norm of every convolution is clipped; None for no clip.
        every: steps from one clip to the next.
    """

    name: str
    weight: float = 0.0
    bound: str = "singla2021"
    max_norm: float | None = None
    every: int = 100


@dataclass(frozen=True)
class Recipe:
    """How long and how fast to train: with SGD, momentum, and a rate that rises and falls once."""

    epochs: int
    batch: int = 32
    rate: float = 0.1
    decay: float = 5e-4


@dataclass(frozen=True)
class Trained:
    """A network after training, and the processor seconds that a step took on average."""

    model: nn.Module
    seconds: float


def train(model: nn.Module, data: Data, recipe: Recipe, how: Regulariser, seed: int) -> Trained:
    """Train a network; the order of the images is that of the seed. A clip comes last where there are clips."""
    draws = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    steps = recipe.epochs * -(-len(data.images) // recipe.batch)
    optimizer = torch.optim.SGD(model.parameters(), recipe.rate, 0.9, weight_decay=recipe.decay, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, total_steps=steps)
    clip = SpectralClip(model, how.max_norm, how.every) if how.max_norm else None
    model.train()
    started = time.process_time()
    for _ in range(recipe.epochs):
        for chosen in torch.randperm(len(data.images), generator=draws).split(recipe.batch):
            images, labels = data.images[chosen], data.labels[chosen]
            images = _cropped(images, draws) if data.crops else images
            optimizer.zero_grad()
            one_step(model, images.to(device), labels.to(device), how.weight, how.bound)
            optimizer.step()
            schedule.step()
            if clip is not None:
                clip.step()
    seconds = (time.process_time() - started) / steps
    if clip is not None:
        clip.clip()
    _measure_statistics(model, data)
    return Trained(model.eval(), seconds)


@torch.no_grad()
def _measure_statistics(model: nn.Module, data: Data) -> None:
    """Measure what batch normalisation divides by in inference anew, for the weights as they are after the last step.

    The running mean is that of other weights, far off where a clip came last; all networks are treated alike.
    """
    normalisations = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    device = next(model.parameters()).device
    for module in normalisations:
        module.reset_running_stats()
        module.momentum = None  # the plain mean over all batches
    for images in data.images.split(200) if normalisations else ():
        model(images.to(device))


def one_step(model: nn.Module, images: Tensor, labels: Tensor, weight: float, bound: str = "singla2021") -> float:
    """Add the gradient of the loss, with or without a penalty, and return the loss."""
    loss = cross_entropy(model(images), labels)
    if weight:
        loss = loss + weight * spectral_penalty(model, bound=bound)
    loss.backward()
    return float(loss.detach())


def _cropped(images: Tensor, draws: torch.Generator, margin: int = 4) -> Tensor:
    """Return the images shifted by up to ``margin`` pixels, and every other one reflected."""
    row, column = torch.randint(0, 2 * margin + 1, (2,), generator=draws).tolist()
    height, width = images.shape[2:]
    shifted = pad(images, (margin,) * 4)[:, :, row : row + height, column : column + width]
    mirrored = torch.rand(len(images), generator=draws) < 0.5
    return torch.where(mirrored[:, None, None, None], shifted.flip(3), shifted)


@torch.no_grad()
def error_rate(model: nn.Module, data: Data) -> float:
    """Return the share of the test images that are classified wrongly."""
    device = next(model.parameters()).device
    wrong = 0
    for images, labels in zip(data.test_images.split(500), data.test_labels.split(500), strict=True):
        wrong += int((model(images.to(device)).argmax(1).cpu() != labels).sum())
    return wrong / len(data.test_labels)
