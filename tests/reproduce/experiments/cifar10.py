"""Norms held down in training: clipping and penalties on a ResNet with and without batch normalisation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.stats import t as student_t

import convsv
from convsv.differentiable import SpectralClip, geometry_of
from reproduce.claims import Claim, Section, Settings, Table, experiment, judge
from reproduce.data import load
from reproduce.measuring import cpu_seconds, geometric_mean
from reproduce.training import Recipe, Regulariser, ResNet, error_rate, one_step, train

_SEDGHI = "abstract, ar5iv.labs.arxiv.org/html/1805.10408"
_SINGLA = "abstract, ar5iv.labs.arxiv.org/html/1911.10258"
_TIMES = "the authors' notebook, clipping_time_comparison.ipynb of github.com/singlasahil14/fantastic-four"

_WAYS = (
    Regulariser("plain"),
    Regulariser("clip to 2", max_norm=2.0),
    Regulariser("clip to 1", max_norm=1.0),
    Regulariser("penalty, four bounds", weight=8e-4, bound="singla2021"),
    Regulariser("penalty, tap sum", weight=8e-4, bound="tap_sum"),
)


@dataclass
class Runs:
    """What one way of training came to, an entry a seed.

    Attributes:
        errors: share of the test images that were classified wrongly.
        seconds: processor time of a step.
        largest: largest certified norm of a convolution.
    """

    errors: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    largest: list[float] = field(default_factory=list)


Found = Mapping[bool, Mapping[str, Runs]]
"""By whether batch normalisation is there, and by the name of the way."""


@experiment("cifar10", place=5)
def cifar10(settings: Settings) -> Section:
    """Test errors with and without a regulariser, over seeds; what a step costs; and what a clip leaves."""
    found, what = _trained(settings)
    section = Section("Norms held down in training (Sedghi, Gupta, Long 2019; Yi 2020; Singla, Feizi 2021)", what)
    _table(section, found)
    on_cifar = settings.cifar is not None
    data = "CIFAR-10" if on_cifar else "digits"
    section.claims += [
        _sedghi(found, data) if on_cifar else _untested("Sedghi 2019", *_CIFAR_CLIP),
        _untested("Singla 2021", *_CIFAR_PENALTY) if not on_cifar else _penalty(found, data, "Singla 2021"),
    ]
    if not on_cifar:
        section.claims += [
            _sedghi(found, data),
            _penalty(found, data, "Singla 2021"),
            _penalty(found, data, "Yi 2020"),
        ]
    section.claims += [_trains_without(found), _kept(found), *_costs(settings)]
    return section


_CIFAR_CLIP = (
    "Clipping operator norms lowers the test error of a deep ResNet with batch normalisation on CIFAR-10.",
    "6.2 % to 5.3 %",
    _SEDGHI,
)
_CIFAR_PENALTY = (
    "A penalty on the bound improves generalisation on CIFAR-10.",
    "improved, no number in the abstract",
    _SINGLA,
)


def _untested(paper: str, text: str, published: str, source: str) -> Claim:
    how = "CIFAR-10 is not part of convsv; `make reproduce CIFAR=DIR` trains on the files where they are at hand."
    return Claim(paper, text, published, source, "—", "not tested", how)


# ---------------------------------------------------------------------------------------------------------- training


def _plan(settings: Settings) -> tuple[int, int, Recipe, int, int]:
    """Return seeds, channels of the first stage, recipe, blocks a stage, and steps from clip to clip."""
    if settings.quick:
        return 2, 4, Recipe(1), 1, 5
    if settings.cifar:
        return 3, 16, Recipe(30, batch=128), 3, 100
    return 4, 8, Recipe(10), 1, 25


def _trained(settings: Settings) -> tuple[Found, str]:
    seeds, width, recipe, blocks, every = _plan(settings)
    device = "cuda" if settings.cifar and torch.cuda.is_available() else "cpu"
    found: dict[bool, dict[str, Runs]] = {True: {}, False: {}}
    for seed in range(seeds):
        data = load(settings, seed)
        for normalised, runs in found.items():
            rate = 0.1 if normalised else 0.02
            pace = Recipe(recipe.epochs, recipe.batch, rate)
            for way in _WAYS:
                torch.manual_seed(seed)
                model = ResNet(data.images.shape[1], width, blocks, normalised=normalised).to(device)
                how = Regulariser(way.name, way.weight, way.bound, way.max_norm, every)
                done = train(model, data, pace, how, seed)
                entry = runs.setdefault(way.name, Runs())
                entry.errors.append(error_rate(done.model, data))
                entry.seconds.append(done.seconds)
                entry.largest.append(max(_norms(done.model)))
    said = (
        f"A ResNet of three stages with {width}, {2 * width} and {4 * width} channels and {blocks} "
        f"block{'s' if blocks > 1 else ''} each, on {data.name}: {len(data.images)} images to train on, "
        f"{len(data.test_images)} to test, {recipe.epochs} epochs of SGD with momentum, {seeds} seeds. A seed fixes "
        "the "
        "split of the digits, the first weights and the order of the images, so that ways to train are compared pair "
        "by "
        f"pair. A clip comes every {every} steps and once at the end; penalties are 8e-4 times the sum of a bound over "
        "all "
        "convolutions, the weight in the notebook of Singla and Feizi. What batch normalisation divides by is measured "
        "anew after training, for all alike. Nothing was tuned for any way."
    )
    return found, said


def _norms(model: torch.nn.Module) -> list[float]:
    """Return certified upper ends of the norms of all convolutions, with their strides, of any size."""
    return [
        convsv.operator_norm(module.weight.detach().cpu(), geometry_of(module), tol=1e-2).upper
        for module in model.modules()
        if isinstance(module, torch.nn.Conv2d)
    ]


def _said(values: list[float]) -> str:
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return f"{100 * np.mean(values):.2f} ± {100 * deviation:.2f}"


def _table(section: Section, found: Found) -> None:
    rows = [
        (
            "with" if normalised else "without",
            name,
            _said(runs.errors),
            _gain(found, normalised, name)[2] if name != "plain" else "—",
            f"{max(runs.largest):.3g}",
        )
        for normalised, ways in found.items()
        for name, runs in ways.items()
    ]
    count = len(found[True]["plain"].errors)
    section.tables.append(
        Table(
            f"Test error in percent, mean ± standard deviation over {count} seeds; its fall against plain training, "
            "mean ± "
            "standard error of the pairs; and the largest certified norm of a convolution at the end",
            ("batch norm", "training", "test error, %", "fall, points", "largest norm"),
            tuple(rows),
        )
    )


# ------------------------------------------------------------------------------------------------------------ claims


def _gain(found: Found, normalised: bool, name: str) -> tuple[float, float, str]:
    """Return by how much a way lowers the test error, in percentage points: mean, standard error, and both in words."""
    ways = found[normalised]
    falls = 100 * (np.array(ways["plain"].errors) - np.array(ways[name].errors))
    mean, error = float(falls.mean()), float(falls.std(ddof=1) / math.sqrt(len(falls)))
    return mean, error, f"{mean:+.2f} ± {error:.2f}"


_RULE = "holds if the 95 % interval of the paired differences (Student's t, two-sided) lies above zero"


def _verdict(found: Found, normalised: bool, names: tuple[str, ...]) -> tuple[bool, str]:
    gains = {name: _gain(found, normalised, name) for name in names}
    shown = "; ".join(f"{name}: {gain[2]}" for name, gain in gains.items())
    reach = float(student_t.ppf(0.975, len(found[normalised]["plain"].errors) - 1))
    return any(mean > reach * error for mean, error, _ in gains.values()), shown


def _sedghi(found: Found, data: str) -> Claim:
    holds, shown = _verdict(found, True, ("clip to 2", "clip to 1"))
    return Claim(
        "Sedghi 2019",
        f"Clipping operator norms lowers the test error of a ResNet with batch normalisation{_in_small(data)}.",
        "6.2 % to 5.3 % on CIFAR-10, a fall of 0.9 points",
        _SEDGHI,
        f"fall in points: {shown}",
        judge(holds),
        f"Two radii tried; {_RULE} for one of them, which is kind to the claim.",
    )


def _in_small(data: str) -> str:
    return "" if data == "CIFAR-10" else ", in small on digits"


def _penalty(found: Found, data: str, paper: str) -> Claim:
    name = "penalty, four bounds" if paper == "Singla 2021" else "penalty, tap sum"
    with_norm, shown = _verdict(found, True, (name,))
    without, shown_without = _verdict(found, False, (name,))
    return Claim(
        paper,
        f"A penalty on {'the least of the four bounds' if paper == 'Singla 2021' else 'the tap sum'} improves "
        f"generalisation{_in_small(data)}.",
        "improved, no number in the abstract",
        _SINGLA if paper == "Singla 2021" else "abstract, ar5iv.labs.arxiv.org/html/2006.07117",
        f"fall in points with batch norm {shown.split(': ')[1]}, without {shown_without.split(': ')[1]}",
        judge(with_norm or without),
        f"One weight, not tuned; {_RULE} with or without batch norm.",
    )


def _trains_without(found: Found) -> Claim:
    shown = {
        name: (f"{_said(found[True][name].errors)} with", f"{_said(found[False][name].errors)} without")
        for name in ("plain", "clip to 2", "clip to 1")
    }
    clipped = min(np.mean(found[False][name].errors) for name in ("clip to 2", "clip to 1"))
    return Claim(
        "Sedghi 2019",
        "Clipping is no substitute for batch normalisation, but goes with it.",
        "said to complement it",
        "a summary of the paper at sciencestack.ai/paper/1805.10408",
        "test error in percent: " + "; ".join(f"{name} {both[0]}, {both[1]}" for name, both in shown.items()),
        judge(bool(clipped > np.mean(found[True]["plain"].errors))),
        "holds if the clipped networks without batch normalisation are worse than the plain ones with it.",
    )


def _kept(found: Found) -> Claim:
    largest = {name: max(max(ways[name].largest) for ways in found.values()) for name in ("clip to 2", "clip to 1")}
    return Claim(
        "Sedghi 2019",
        "After a clip every convolution is within the radius.",
        "the purpose of the clip",
        "the paper's method; its own code leaves more, see above",
        ", ".join(f"{name}: largest certified norm {value:.4f}" for name, value in largest.items()),
        judge(largest["clip to 2"] <= 2 and largest["clip to 1"] <= 1),
        "`SpectralClip`, certified upper ends over all layers and seeds, with and without batch normalisation; holds "
        "if none "
        "is above.",
    )


# -------------------------------------------------------------------------------------------------------------- cost


def _costs(settings: Settings) -> list[Claim]:
    """Time of a step of a wider network on images as large as CIFAR-10's, way by way in turn."""
    width, rounds = (4, 2) if settings.quick else (16, 4)
    torch.manual_seed(0)
    model = ResNet(3, width, 1 if settings.quick else 3, normalised=True)
    images, labels = torch.rand(32, 3, 32, 32), torch.randint(0, 10, (32,))
    times: dict[str, list[float]] = {"plain": [], "penalty": [], "clip": []}
    clip = SpectralClip(model, 2.0)
    for _ in range(rounds):
        times["plain"].append(cpu_seconds(lambda: one_step(model, images, labels, 0.0))[1])
        times["penalty"].append(cpu_seconds(lambda: one_step(model, images, labels, 8e-4))[1])
        times["clip"].append(cpu_seconds(clip.clip)[1])
    plain = float(np.median(times["plain"]))
    penalty = geometric_mean(np.array(times["penalty"]) / np.array(times["plain"]))
    clipped = 1 + float(np.median(times["clip"])) / plain / 100
    layers = sum(isinstance(module, torch.nn.Conv2d) for module in model.modules())
    how = (
        f"a ResNet of {layers} convolutions with {width} channels at first, batches of 32 images of 32x32, {rounds} "
        "rounds in "
        "turn, processor time of one thread"
    )
    return [
        Claim(
            "Singla 2021",
            "The penalty costs next to nothing in training.",
            "“negligible overhead”; 54.4 s against 49.4 s without, 1.10 times",
            f"{_SINGLA}; {_TIMES} (ResNet-32, GPU)",
            f"{penalty:.2f} times a plain step",
            judge(penalty < 1.2),
            f"{how}; bound `singla2021`, with certified matrix norms in double precision; holds if below 1.2 times.",
        ),
        Claim(
            "Singla 2021",
            "Clipping every 100 steps costs far more than the penalty.",
            "156.7 s against 49.4 s, 3.17 times",
            f"{_TIMES}, with Sedghi's clip on the grid of the image",
            f"{clipped:.3f} times a plain step",
            judge(clipped > penalty),
            f"{how}; `SpectralClip`, which certifies and scales; holds if more than the penalty.",
        ),
    ]
