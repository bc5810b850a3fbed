"""What the training experiments stand on: data, the loop, the clip and the penalty in it, and the attack."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import convsv
from convsv.differentiable import geometry_of
from reproduce.claims import Settings
from reproduce.data import DIGITS_TO_TRAIN, Data, load
from reproduce.experiments.cifar10 import Runs, _gain
from reproduce.experiments.robustness import withstanding
from reproduce.training import Recipe, Regulariser, ResNet, _cropped, chain, error_rate, train

SHORT = Recipe(1, batch=100)


@pytest.fixture(scope="module")
def digits() -> Data:
    return load(Settings(), 0)


def small(seed: int = 0, *, normalised: bool = True) -> nn.Module:
    torch.manual_seed(seed)
    return ResNet(1, 4, 1, normalised=normalised)


def convolutions(model: nn.Module) -> list[nn.Conv2d]:
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]


def largest_norm(model: nn.Module) -> float:
    return max(convsv.operator_norm(layer.weight.detach(), geometry_of(layer)).upper for layer in convolutions(model))


def test_digits_are_split_by_the_seed(digits: Data) -> None:
    again, other = load(Settings(), 0), load(Settings(), 1)
    assert digits.images.shape == (DIGITS_TO_TRAIN, 1, 8, 8)
    assert len(digits.test_images) == 1797 - DIGITS_TO_TRAIN
    assert 0 <= digits.images.min() < digits.images.max() <= 1
    assert torch.equal(digits.images, again.images)
    assert not torch.equal(digits.images, other.images)
    assert set(digits.labels.tolist()) == set(range(10))


def test_cifar_takes_the_place_of_digits(tmp_path: Path) -> None:
    record = bytes([7]) + bytes(range(256)) * 12
    for name in [f"data_batch_{number}.bin" for number in range(1, 6)] + ["test_batch.bin"]:
        (tmp_path / name).write_bytes(record)
    data = load(Settings(cifar=tmp_path), 0)
    assert data.images.shape == (5, 3, 32, 32)
    assert data.labels.tolist() == [7] * 5
    assert data.test_images[0, 0, 0, :3].tolist() == pytest.approx([0, 1 / 255, 2 / 255])


def test_a_seed_fixes_a_run_and_training_learns(digits: Data) -> None:
    first, again = (train(small(), digits, Recipe(3), Regulariser("plain"), 0).model for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    assert error_rate(first, digits) < 0.5


@pytest.mark.parametrize("normalised", [True, False])
def test_a_clip_ends_within_the_norm(digits: Data, normalised: bool) -> None:
    plain, clipped = (
        train(small(normalised=normalised), digits, SHORT, Regulariser("", max_norm=norm, every=2), 0).model
        for norm in (None, 1.0)
    )
    assert largest_norm(plain) > 1
    assert largest_norm(clipped) <= 1


def test_a_penalty_lowers_the_norms(digits: Data) -> None:
    plain, held = (
        train(small(), digits, Recipe(2, 100), Regulariser("", weight, "tap_sum"), 0).model for weight in (0.0, 1.0)
    )
    assert largest_norm(held) < 0.9 * largest_norm(plain)


def test_statistics_are_those_of_the_last_weights(digits: Data) -> None:
    model = train(small(), digits, SHORT, Regulariser("", max_norm=0.5, every=1000), 0).model
    layers = list(model)
    first = layers[2].body
    with torch.no_grad():
        seen = first[0](layers[1](layers[0](digits.images)))
    assert torch.allclose(first[1].running_mean, seen.mean((0, 2, 3)), atol=1e-5)


def test_crops_keep_the_pixels_in_sight() -> None:
    images = torch.rand(6, 3, 8, 8)
    seen = _cropped(images, torch.Generator().manual_seed(0))
    assert seen.shape == images.shape
    assert set(seen.flatten().tolist()) <= {0.0, *images.flatten().tolist()}
    assert not torch.equal(seen, images)


def test_the_attack_on_a_linear_network_succeeds_where_it_can() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0]]))
    image = torch.tensor([1.0, 0, 0, 0]).reshape(1, 1, 2, 2)
    reach = 1 / np.sqrt(2)  # a margin of 1 over the norm of the difference of the two rows
    assert withstanding(model, image, torch.tensor([0]), 0.98 * reach).all()
    assert not withstanding(model, image, torch.tensor([0]), 1.02 * reach).any()
    assert not withstanding(model, image, torch.tensor([1]), 0.0).any()


def test_a_plain_chain_has_a_certified_constant(digits: Data) -> None:
    torch.manual_seed(0)
    model = chain(1, 4).eval()
    constant = convsv.network_bound(model, (1, 1, 8, 8)).upper
    assert constant is not None
    by_hand = float(np.linalg.norm(model[-1].weight.detach().numpy(), 2)) / 2  # of the pooling over 2x2 of 4x4
    for layer in convolutions(model):
        by_hand *= convsv.operator_norm(layer.weight.detach(), geometry_of(layer)).upper
    assert constant <= by_hand * 1.001
    with torch.no_grad():
        scores = model(digits.images[:50]).numpy()
    moved = np.linalg.norm(scores[:, None] - scores[None], axis=2)
    apart = torch.cdist(digits.images[:50].flatten(1), digits.images[:50].flatten(1)).numpy()
    assert (moved <= constant * apart + 1e-5).all()


def test_gains_are_taken_pair_by_pair() -> None:
    ways = {"plain": Runs(errors=[0.10, 0.30]), "clip": Runs(errors=[0.09, 0.28])}
    mean, error, shown = _gain({True: ways}, True, "clip")
    assert (mean, error) == pytest.approx((1.5, 0.5))
    assert shown == "+1.50 ± 0.50"
