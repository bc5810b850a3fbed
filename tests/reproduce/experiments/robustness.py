"""Certified accuracy at several radii, from certified constants of whole networks; and an attack from the other "
"side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import convsv
from convsv.network.robustness import certified_accuracy, certified_radii
from reproduce.claims import Claim, Figure, Section, Settings, Table, experiment, judge
from reproduce.data import load
from reproduce.drawing import SERIES, draw
from reproduce.measuring import geometric_mean
from reproduce.training import Recipe, Regulariser, chain, error_rate, train

RADII = (0.0, 0.025, 0.05, 0.1, 0.2, 0.4)
_HEADLINE = RADII.index(0.05)
_WAYS = (
    Regulariser("plain"),
    Regulariser("clip to 2", max_norm=2.0),
    Regulariser("clip to 1.5", max_norm=1.5),
    Regulariser("penalty, four bounds", weight=0.05, bound="singla2021"),
    Regulariser("penalty, tap sum", weight=0.1, bound="tap_sum"),
)


@dataclass
class Runs:
    """What one way of training came to, an entry a seed.

    Attributes:
        constants: certified Lipschitz constants of the scores in the image.
        errors: share of the test images classified wrongly.
        certified: by radius, the certified accuracy.
        attacked: by radius, the accuracy under attack; an upper end of the true robust accuracy.
        tried: how many of the attacked images were certified, over all radii.
        broken: how many of these the attack changed the class of.
    """

    constants: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    certified: list[list[float]] = field(default_factory=list)
    attacked: list[list[float]] = field(default_factory=list)
    tried: int = 0
    broken: int = 0


@experiment("robustness", place=6)
def robustness(settings: Settings) -> Section:
    """Certified and attacked accuracy of plain, clipped and penalised networks."""
    found, what = _trained(settings)
    section = Section("Certified robustness (Tsuzuku, Sato, Sugiyama 2018)", what)
    _table(section, found)
    section.figures.append(
        Figure(
            "robustness",
            "Certified accuracy (solid) and accuracy under attack (dotted) by radius, mean over seeds: the true robust "
            "accuracy lies between.",
            draw(lambda figure: _paint(figure, found), width=6.0),
        )
    )
    section.claims += _claims(found)
    return section


def _trained(settings: Settings) -> tuple[Mapping[str, Runs], str]:
    seeds, width, epochs, attacked = (2, 4, 1, 20) if settings.quick else (5, 8, 25, 60)
    recipe = Recipe(epochs, rate=0.1, decay=0.0)
    found: dict[str, Runs] = {}
    for seed in range(seeds):
        data = load(Settings(), seed)
        for way in _WAYS:
            torch.manual_seed(seed)
            how = Regulariser(way.name, way.weight, way.bound, way.max_norm, 5)
            model = train(chain(1, width), data, recipe, how, seed).model
            runs = found.setdefault(way.name, Runs())
            constant = convsv.network_bound(model, (1, 1, 8, 8), tol=1e-2).upper
            assert constant is not None
            runs.constants.append(constant)
            runs.errors.append(error_rate(model, data))
            with torch.no_grad():
                radii = certified_radii(model(data.test_images).double().numpy(), data.test_labels.numpy(), constant)
            runs.certified.append([certified_accuracy(radii, radius) for radius in RADII])
            some = data.test_images[:attacked], data.test_labels[:attacked]
            right = [withstanding(model, *some, radius) for radius in RADII]
            runs.attacked.append([float(np.mean(found)) for found in right])
            certain = [(radii[:attacked] > 0) & (radii[:attacked] > radius) for radius in RADII]
            runs.tried += int(np.sum(certain))
            runs.broken += int(np.sum(np.array(certain) & ~np.array(right)))
    said = (
        f"A plain chain on the digits: three convolutions with {width} to {2 * width} channels, one of them with "
        "stride 2, "
        "rectifiers, average pooling, a linear layer, no normalisation. `convsv.network_bound` certifies a Lipschitz "
        "constant L of its scores in the image: the product of the certified norms of its convolutions and of its "
        "linear "
        "layer, of 1 for each rectifier and of the norm of the pooling. Pixels are from 0 to 1, distances Euclidean. A "
        "class "
        "cannot change within margin / (sqrt(2) L). "
        f"{recipe.epochs} epochs of SGD, clips every 5 steps and at the end, penalties 0.05 and 0.1 times the sum of "
        "the "
        f"bounds; rate and strengths were picked from a few tries with one seed. {seeds} seeds, "
        f"{len(data.test_images)} test "
        f"images; the attack (20 steps of projected gradient) is on {attacked} of them."
    )
    return found, said


def withstanding(model: nn.Module, images: Tensor, labels: Tensor, radius: float, steps: int = 20) -> NDArray[np.bool_]:
    """Return which images are classified rightly after an attack within an l2 ball: projected ascent of the loss.

    Pixels may leave [0, 1], as the certificate allows. An image counts as wrong if it was at any step.
    """
    moved, right = torch.zeros_like(images), torch.ones(len(images), dtype=torch.bool)
    for _ in range(steps + 1):
        moved = moved.detach().requires_grad_()
        scores = model(images + moved)
        right &= scores.detach().argmax(1) == labels
        if radius == 0:
            break
        (gradient,) = torch.autograd.grad(cross_entropy(scores, labels, reduction="sum"), moved)
        stepped = moved.detach() + 0.25 * radius * gradient / _lengths(gradient)
        moved = stepped * torch.clamp(radius / _lengths(stepped), max=1)
    return right.numpy()


def _lengths(images: Tensor) -> Tensor:
    return images.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None, None]


def _percent(values: Any) -> str:
    return f"{100 * np.mean(values):.1f} ± {100 * np.std(values, ddof=1):.1f}"


def _table(section: Section, found: Mapping[str, Runs]) -> None:
    rows = []
    for name, runs in found.items():
        shown = [_percent(column) for column in np.array(runs.certified).T]
        rows.append((name, f"{geometric_mean(runs.constants):.3g}", *shown))
    section.tables.append(
        Table(
            f"Certified accuracy in percent by radius, mean ± standard deviation over {len(found['plain'].errors)} "
            "seeds, and "
            "the geometric mean of the certified constants",
            ("training", "L", *(f"radius {radius:g}" for radius in RADII)),
            tuple(rows),
        )
    )


def _claims(found: Mapping[str, Runs]) -> list[Claim]:
    means = {name: np.mean(runs.certified, axis=0) for name, runs in found.items()}
    plain = means["plain"][_HEADLINE]
    rest = {name: mean[_HEADLINE] for name, mean in means.items() if name != "plain"}
    clips = [name for name in rest if name.startswith("clip")]
    tried, broken = (sum(getattr(runs, name) for runs in found.values()) for name in ("tried", "broken"))
    lost = [100 * float(np.mean(found[name].errors) - np.mean(found["plain"].errors)) for name in clips]
    return [
        Claim(
            "Tsuzuku 2018",
            "Margin over sqrt(2) times the Lipschitz constant is a radius within which no attack changes the class.",
            "a theorem",
            "the paper's proposition, proved again in convsv.network.robustness",
            f"{broken} of {tried} certified pairs of image and radius broken by the attack",
            judge(broken == 0),
            "every way to train and radius, the images attacked; holds if none is broken, which an attack can refute "
            "and not "
            "prove.",
        ),
        Claim(
            "Singla 2021",
            "Holding the bound down makes networks provably more robust.",
            "improved provable robustness; no number at hand",
            "abstract, ar5iv.labs.arxiv.org/html/1911.10258",
            f"certified accuracy at radius {RADII[_HEADLINE]}: plain {100 * plain:.1f} %, "
            + ", ".join(f"{name} {100 * value:.1f} %" for name, value in rest.items()),
            judge(rest["penalty, four bounds"] > plain + 0.01),
            "digits, the constant of the whole network; holds if the penalty raises it by over a point.",
        ),
        Claim(
            "Sedghi 2019",
            "Clipping norms makes networks robust in a way that can be certified.",
            "named as a motive, not measured",
            "the paper's introduction, ar5iv.labs.arxiv.org/html/1805.10408",
            f"certified accuracy at radius {RADII[_HEADLINE]}: plain {100 * plain:.1f} %, "
            + ", ".join(f"{name} {100 * rest[name]:.1f} %" for name in clips)
            + f"; test error {' and '.join(f'{points:+.1f}' for points in lost)} points",
            judge(max(rest[name] for name in clips) > plain + 0.01),
            "digits; holds if a clip raises it by over a point. What it costs in accuracy stands beside it.",
        ),
    ]


def _paint(figure: Any, found: Mapping[str, Runs]) -> None:
    axes = figure.subplots()
    for number, (name, runs) in enumerate(found.items()):
        colour = SERIES[number]
        axes.plot(
            RADII, 100 * np.mean(runs.certified, axis=0), color=colour, marker="os^vD"[number], markersize=4, label=name
        )
        axes.plot(RADII, 100 * np.mean(runs.attacked, axis=0), color=colour, ls=":", lw=1.2)
    axes.set_ylim(0, 102)
    axes.set_xlim(0, RADII[-1])
    axes.set_xlabel("radius")
    axes.set_ylabel("accuracy, %")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 0.03))
