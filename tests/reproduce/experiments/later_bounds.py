"""Bounds published since: how close they are, whether they hold as computed, and the claims about their convergence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import convsv
import oracle
from convsv import Geometry
from convsv.api import bounds, layer_of
from convsv.bounds.grishina2024 import tensor_norm
from convsv.results import Bound
from reproduce.claims import Claim, Figure, Section, Settings, Table, experiment, judge
from reproduce.drawing import SERIES, draw
from reproduce.layers import networks
from reproduce.measuring import geometric_mean, in_seconds, spread

Array = NDArray[np.float64]

UPPER = ("singla2021", "yi2020", "araujo2021", "pfister2019", "delattre2023", "delattre2024", "grishina2024")
LOWER = ("miyato2018", "gouk2018", "farnia2019", "ryu2019")


@experiment("later_bounds", place=4)
def later_bounds(settings: Settings) -> Section:
    """Tightness, validity, convergence, strides, and the factor of a grid."""
    section = Section(
        "Later bounds, and power iteration",
        "Every published upper bound of the registry on a third of the trained layers, stride 1, beside the certified "
        "norm of any size; `delattre2023` is about the circular layer at 16x16. Then claims that need no trained "
        "network.",
    )
    measured = _measured(settings)
    _table(section, measured)
    _validity_claims(section, measured)
    _grishina_claim(section, settings)
    _gram_claims(section, settings)
    _stride_claim(section)
    _grid_claims(section)
    return section


Rows = list[tuple[str, Any, Mapping[str, Bound]]]
"""Name of the network, certified norm, and bounds of a layer."""


def _measured(settings: Settings) -> Rows:
    rows: Rows = []
    for network in networks(settings):
        for name, kernel in list(network.plain())[:: 1 if settings.quick else 3]:
            padding = tuple(((k - 1) // 2, k // 2) for k in kernel.shape[2:])
            geometry = Geometry((8, 8) if settings.quick else (16, 16), (1, 1), padding)
            found = bounds(kernel, geometry, names=(*UPPER, *LOWER))
            kept = {key: bound for key, bound in found.items() if isinstance(bound, Bound)}
            rows.append((network.name, network.norm(name, kernel), kept))
    return rows


def _ratios(rows: Rows, name: str) -> list[float]:
    return [bounds[name].value / norm.lower for _, norm, bounds in rows]


def _table(section: Section, rows: Rows) -> None:
    cells = []
    for name in (*UPPER, *LOWER):
        ratios = _ratios(rows, name)
        seconds = float(np.median([bounds[name].seconds or 0 for _, _, bounds in rows]))
        kind = rows[0][2][name]
        cells.append(
            (
                f"`{name}`",
                kind.side,
                kind.guarantee,
                f"{min(ratios):.3f}",
                f"{geometric_mean(ratios):.3f}",
                f"{max(ratios):.3f}",
                in_seconds(seconds),
            )
        )
    widths = [norm.upper / norm.lower for _, norm, _ in rows]
    cells.append(
        (
            "certified interval",
            "both",
            "certified",
            f"{min(widths):.4f}",
            f"{geometric_mean(widths):.4f}",
            f"{max(widths):.4f}",
            "—",
        )
    )
    section.tables.append(
        Table(
            "Bound over the lower end of the certified norm; what is called a lower bound here is often used as the "
            "norm",
            ("bound", "side", "guarantee", "least", "geometric mean", "largest", "median time by the clock"),
            tuple(cells),
        )
    )
    section.figures.append(
        Figure(
            "later-bounds",
            f"Bound over certified norm of {len(rows)} trained layers: the range, the middle half, and the median. "
            "Left of "
            "1: no upper bound.",
            draw(lambda figure: _paint(figure, {name: _ratios(rows, name) for name in (*UPPER, *LOWER)}), height=3.6),
        )
    )


def _paint(figure: Any, ratios: Mapping[str, Sequence[float]]) -> None:
    axes = figure.subplots()
    for row, (name, values) in enumerate(ratios.items()):
        low, quarter, middle, three, high = np.quantile(values, (0, 0.25, 0.5, 0.75, 1))
        colour = SERIES[0 if name in UPPER else 3]
        axes.plot([low, high], [row, row], color=colour, lw=1)
        axes.plot([quarter, three], [row, row], color=colour, lw=6, alpha=0.6, solid_capstyle="butt")
        axes.plot([middle], [row], "o", color=colour, markersize=5)
    axes.axvline(1, color="#1a1a1a", lw=1)
    axes.set_xscale("log")
    ticks = (0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_yticks(range(len(ratios)), list(ratios))
    axes.set_ylim(len(ratios) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("bound / norm")


def _validity_claims(section: Section, rows: Rows) -> None:
    where = f"{len(rows)} layers of {', '.join(dict.fromkeys(name for name, _, _ in rows))}"
    araujo, gram, gram_kernel = (_ratios(rows, name) for name in ("araujo2021", "delattre2023", "delattre2024"))
    iterated = [bounds["ryu2019"].value / norm.lower for _, norm, bounds in rows]
    matrix = _ratios(rows, "miyato2018")
    lone = [_random((1, 1, 3, 3), seed) for seed in range(10)]
    single = [_value(kernel, "araujo2021") / convsv.operator_norm(kernel, tol=1e-6).upper for kernel in lone]
    section.claims += [
        Claim(
            "Araujo 2021",
            "The bound of sums of one-channel norms is tight.",
            "“tight and easy to compute”",
            "abstract, docslib.org/doc/9678340",
            f"one channel {spread(single)}; trained layers {spread(araujo)}",
            judge(max(araujo) < 1.1),
            f"10 random one-channel 3x3 kernels; {where}; holds if within a tenth of the norm everywhere. With one "
            "channel it "
            "is the norm, but for the factor of its grid.",
        ),
        Claim(
            "Delattre 2024",
            "The bound from the iterated autocorrelation of the kernel holds for zero padding, and is close.",
            "no number at hand",
            "abstract, arxiv.org/html/2402.00240v1",
            f"4 rounds: {spread(gram_kernel)} of the norm of any size; 6 rounds on the 16x16 circle (2023): "
            f"{spread(gram)}",
            judge(min(gram_kernel) >= 1 and max(gram_kernel) < 1.25),
            f"{where}; holds if never below the certified norm and within a quarter of it.",
        ),
        Claim(
            "Ryu 2019",
            "Dividing a layer by what power iteration finds makes it 1-Lipschitz.",
            "1",
            "the paper's method, RealSN",
            f"norm left after 100 rounds on the layer's own size: {1 / max(iterated):.4f} to {1 / min(iterated):.4f}",
            judge(max(1 / ratio for ratio in iterated) <= 1),
            f"{where}; the size-free norm over the value; holds if nothing above 1 is left. Part of it is that the "
            "norm of a "
            "larger image is larger.",
        ),
        Claim(
            "Miyato 2018",
            "The norm of the kernel as a matrix is the layer's norm.",
            "used as the norm that is divided by",
            "the paper's method for convolutions",
            f"matrix norm over norm {spread(matrix)}",
            judge(min(matrix) > 0.999),
            f"{where}; holds if never below the certified norm by over a thousandth.",
        ),
    ]


def _random(shape: tuple[int, ...], seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def _value(kernel: Array, name: str) -> float:
    found = bounds(kernel, names=(name,))[name]
    assert isinstance(found, Bound)
    return found.value


# ---------------------------------------------------------------------------------------------------------- Grishina


def _two_waves(seed: int, channels: int = 8) -> Array:
    """Return a kernel that answers to two frequencies nearly alike, between random directions of the channels."""
    draws = np.random.default_rng(seed)
    flat, alternating = np.ones(3), np.array([1.0, -1.0, 1.0])
    kernel = 0.02 * draws.standard_normal((channels, channels, 3, 3))
    for strength, wave in ((1.0, flat), (0.9, alternating)):
        left, right = draws.standard_normal((2, channels))
        left, right = left / np.linalg.norm(left), right / np.linalg.norm(right)
        kernel += strength * np.einsum("o,i,a,b->oiab", left, right, wave, wave)
    return kernel


def _grishina_claim(section: Section, settings: Settings) -> None:
    runs = 20 if settings.quick else 60
    shapes = ((4, 4, 3, 3), (8, 8, 3, 3), (8, 4, 5, 5), (1, 1, 3, 3))
    families = {
        "random Gaussian kernels": [_random(shapes[seed % 4], seed) for seed in range(runs)],
        "kernels of two waves": [_two_waves(seed) for seed in range(runs)],
    }
    shown, worst, fails = [], 1.0, 0
    for name, kernels in families.items():
        lowers = [convsv.operator_norm(kernel).lower for kernel in kernels]
        once = [
            float(tensor_norm(torch.from_numpy(kernel[None]), 1, 200).max())
            * math.sqrt(math.prod(kernel.shape[2:]))
            / lower
            for kernel, lower in zip(kernels, lowers, strict=True)
        ]
        often = sum(_value(kernel, "grishina2024") < lower for kernel, lower in zip(kernels, lowers, strict=True))
        below = sum(ratio < 1 for ratio in once)
        worst, fails = min(worst, *once), fails + below
        shown.append(f"{name}: {below} of {runs} (of four starts: {often})")
    section.claims.append(
        Claim(
            "Grishina 2024",
            "The tensor norm bound, as computed by alternating maximisation, is an upper bound.",
            "a theorem about the tensor norm; computed by alternation",
            "abstract, arxiv.org/html/2409.11859v1",
            f"below the certified norm from one random start, {'; '.join(shown)}; at worst {worst:.3f} of it",
            judge(fails == 0),
            "four shapes of Gaussian kernels; and 8x8x3x3 kernels with two frequencies of nearly equal gain, made to "
            "have two "
            "local maxima; 200 rounds; holds if never below. The theorem stands; what is computed is a local maximum, "
            "which "
            "may be less than the tensor norm.",
        )
    )


# ----------------------------------------------------------------------------------------------------- Gram iteration


def _gram_errors(matrix: Array, rounds: int = 7) -> list[float]:
    """Return ||G_t||_F^(1 / 2^t) over the norm, less 1, for t = 1 ... with a scaling that keeps it in range."""
    values = np.linalg.svd(matrix, compute_uv=False) / np.linalg.norm(matrix, 2)
    # The singular values of G_t are the 2^t-th powers; so the Frobenius norm is known without forming it.
    return [float(np.sum(values**2.0 ** (t + 1)) ** (0.5 / 2.0**t) - 1) for t in range(1, rounds + 1)]


def _gram_claims(section: Section, settings: Settings) -> None:
    isolated, equal = [], []
    for seed in range(5 if settings.quick else 20):
        isolated.append(_gram_errors(_random((32, 32), seed)))
        equal.append(_gram_errors(np.linalg.qr(_random((32, 32), seed))[0]))
    apart, alike = np.array(isolated), np.array(equal)
    # Errors that have reached rounding say nothing of an order.
    kept = [row[row > 1e-13] for row in apart]
    orders = [math.log(row[-1] / row[-2]) / math.log(row[-2] / row[-3]) for row in kept if len(row) >= 3]
    ratios = alike[:, -1] / alike[:, -2]
    section.claims += [
        Claim(
            "Delattre 2023",
            "Gram iteration converges superlinearly.",
            "superlinear (2023), quadratic (2024)",
            "abstracts, ar5iv.labs.arxiv.org/html/2305.16173 and arxiv.org/html/2402.00240v1",
            f"order at the last rounds {min(orders):.1f} to {max(orders):.1f}; error after 6 rounds "
            f"{geometric_mean(np.maximum(apart[:, 5], 1e-16)):.0e}",
            judge(min(orders) > 1.2),
            f"{len(apart)} random 32x32 matrices, whose largest singular value is alone; holds if the order is above "
            "1.2.",
        ),
        Claim(
            "Delattre 2023",
            "Gram iteration converges superlinearly for every matrix.",
            "no condition in the abstracts",
            "the same abstracts",
            f"orthogonal 32x32 matrices: each round takes the error only to {ratios.min():.2f} to {ratios.max():.2f} "
            "of "
            f"itself; {alike[:, 5].max():.3f} is left after 6",
            judge(ratios.max() < 0.1),
            "where m singular values are equal and largest, the error is m^(1/2^(t+1)) - 1, which halves a round: "
            "linear; "
            "holds if the last round leaves less than a tenth.",
        ),
    ]


# ----------------------------------------------------------------------------------------------------- strides, grids


def _stride_claim(section: Section) -> None:
    cases = [(3, 4, 3, 8, 2), (4, 2, 4, 9, 3), (2, 3, 5, 8, 2), (5, 3, 2, 8, 4)]
    worst = 0.0
    for outputs, inputs, k, n, stride in cases:
        kernel = _random((outputs, inputs, k, k), n)
        geometry = Geometry((n, n), (stride, stride), ((0, k - 1), (0, k - 1)), "circular")
        dense = oracle.singular_values(oracle.circular(kernel, (n, n), stride=(stride, stride), dilation=(1, 1)))
        found = convsv.spectrum(layer_of(kernel, geometry)).values
        assert found is not None
        worst = max(worst, float(np.abs(found - dense[: len(found)]).max() / dense[0]))
    section.claims.append(
        Claim(
            "Senderovich 2022",
            "The spectrum of a strided circular layer is that of the symbol of its polyphase components.",
            "equal",
            "the paper's theorem",
            f"largest difference {worst:.1e} of the largest value",
            judge(worst < 1e-12),
            f"{len(cases)} random kernels with strides 2, 3 and 4 against the SVD of the full matrix; holds if below "
            "1e-12.",
        )
    )


def _grid_claims(section: Section) -> None:
    """How far a trigonometric polynomial can rise between the points of a grid: both factors, and random ones."""
    taps, points = 3, 32
    theirs = 1 / (1 - 2 * (taps // 2) / points)
    ours = 1 / math.cos(math.pi * (taps - 1) / (2 * points)) ** 2
    seen = 1.0
    for seed in range(200):
        kernel = _random((2, 2, taps, taps), seed)
        coarse = _grid_norm(kernel, points)
        seen = max(seen, _grid_norm(kernel, 16 * points) / coarse)
    section.claims.append(
        Claim(
            "Pfister 2019",
            "A maximum over a grid, times a factor of the grid, bounds the norm of any size.",
            f"factor {theirs:.3f} for 3x3 on 32 points an axis",
            "the paper's formula, 1 / (1 - 2 d / N) for degree d = 1 on two axes, each under a root",
            f"largest rise seen {seen:.5f}; convsv's factor for the same grid {ours:.4f}",
            judge(1 <= seen <= theirs and seen <= ours),
            "200 random 2x2x3x3 kernels, the maximum on 512 points over that on 32; holds if no rise exceeds the "
            "factor. "
            "convsv proves the smaller one (docs/theory.md) and then needs no fixed grid.",
        )
    )


def _grid_norm(kernel: Array, points: int) -> float:
    """Return the largest norm of the symbol of a 2x2 kernel on a grid, in closed form."""
    symbol = np.fft.rfft2(kernel, (points, points))
    a, b, c, d = symbol[0, 0], symbol[0, 1], symbol[1, 0], symbol[1, 1]
    trace = (np.abs(symbol) ** 2).sum((0, 1))
    determinant = np.abs(a * d - b * c) ** 2
    return float(np.sqrt((trace + np.sqrt(np.maximum(trace**2 - 4 * determinant, 0))) / 2).max())
