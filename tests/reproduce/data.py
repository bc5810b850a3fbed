"""What networks are trained on: scikit-learn's digits, or the CIFAR-10 files where the user has them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reproduce.cifar import Batch, read_cifar10
from reproduce.claims import Settings

__all__ = ["Data", "load"]

DIGITS_TO_TRAIN = 400
"""Few, so that there is something to generalise from; the other 1,397 are tested on, and the test is the sharper."""


@dataclass(frozen=True)
class Data:
    """Images ``(N, C, H, W)`` float32 from 0 to 1 and labels ``(N,)`` int64, to train and to test on.

    Attributes:
        name: what to call it.
        crops: whether to train on random crops and reflections, as is usual for photographs.
    """

    name: str
    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    crops: bool = False


def load(settings: Settings, seed: int) -> Data:
    """Return the data; digits are split anew for each seed, and alike for the same.

    Raises:
        UsageError: the CIFAR-10 files are not there.
        CorruptCheckpointError: one is damaged.
    """
    return _digits(seed) if settings.cifar is None else _cifar10(settings)


def _digits(seed: int) -> Data:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bundled = load_digits()
    images = (bundled.images[:, None] / 16).astype(np.float32)
    split = train_test_split(
        images, bundled.target, train_size=DIGITS_TO_TRAIN, stratify=bundled.target, random_state=seed
    )
    return Data("digits", *(torch.from_numpy(np.ascontiguousarray(split[n])) for n in (0, 2, 1, 3)))


def _cifar10(settings: Settings) -> Data:
    assert settings.cifar is not None
    training, test = read_cifar10(settings.cifar)
    if settings.quick:
        training, test = ((images[:200], labels[:200]) for images, labels in (training, test))
    return Data("CIFAR-10", *_tensors(training), *_tensors(test), crops=True)


def _tensors(batch: Batch) -> tuple[Tensor, Tensor]:
    images, labels = batch
    return torch.from_numpy(images).float() / 255, torch.from_numpy(labels)
