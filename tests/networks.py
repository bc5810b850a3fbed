"""Small and well-known networks, written here: models to trace, and modules that do what other libraries' do."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class ResNet18(nn.Module):
    """ResNet-18 with torchvision's names."""

    def __init__(self, classes: int = 1000, width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = width
        for number in range(4):
            outputs = width << number
            blocks = BasicBlock(inputs, outputs, 1 if number == 0 else 2), BasicBlock(outputs, outputs, 1)
            self.add_module(f"layer{number + 1}", nn.Sequential(*blocks))
            inputs = outputs
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for number in range(4):
            x = getattr(self, f"layer{number + 1}")(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


RESNET18_GEOMETRY: dict[str, tuple[int, int, int]] = {
    "conv1": (224, 2, 3),
    **{f"layer1.{block}.conv{conv}": (56, 1, 1) for block in (0, 1) for conv in (1, 2)},
    **{
        name: facts
        for number, size in ((2, 56), (3, 28), (4, 14))
        for name, facts in (
            (f"layer{number}.0.conv1", (size, 2, 1)),
            (f"layer{number}.0.conv2", (size // 2, 1, 1)),
            (f"layer{number}.0.downsample.0", (size, 2, 0)),
            (f"layer{number}.1.conv1", (size // 2, 1, 1)),
            (f"layer{number}.1.conv2", (size // 2, 1, 1)),
        )
    },
}
"""The published (size, stride, padding) of each convolution at an input of 224x224."""


class Conv2dSame(nn.Conv2d):
    """timm's convolution with TensorFlow's "same" padding, computed from the input's size on each call."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "padding": 0})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pads: list[int] = []
        axes = list(zip(x.shape[2:], self.kernel_size, self.stride, self.dilation, strict=True))
        for n, k, s, d in reversed(axes):
            total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
            pads += [total // 2, total - total // 2]
        return functional.conv2d(
            functional.pad(x, pads), self.weight, self.bias, self.stride, 0, self.dilation, self.groups
        )


class StdConv2d(nn.Conv2d):
    """Weight standardisation (Qiao et al. 2019) as timm writes it: the weight goes through a batch normalisation."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = functional.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-6)
        return functional.conv2d(x, weight.reshape_as(self.weight), self.bias, self.stride, self.padding)


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Return the model in ``eval()`` mode with batch normalisations that do something."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.25)
            if module.affine:
                module.weight.data.copy_(torch.randn(module.weight.shape, generator=generator) + 1.0)
    return model.eval()
