"""Yi 2020: the asymptotic spectrum against the circulant one, by size; and the upper bounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import convsv
from convsv import Geometry
from convsv.api import bounds, layer_of
from convsv.execution import Execution
from convsv.operator import ConvOperator
from convsv.results import Bound
from convsv.spectra.asymptotic import QuantileVariant, asymptotic
from reproduce.claims import Claim, Figure, Section, Settings, Table, experiment, judge
from reproduce.drawing import SERIES, draw, log_numbers
from reproduce.layers import networks, resnet
from reproduce.measuring import cpu_seconds, geometric_mean, slope, spread

Array = NDArray[np.float64]

_ABSTRACT = "abstract, ar5iv.labs.arxiv.org/html/2006.07117"
_UNREAD = "only the abstract could be read; the bounds are reconstructed"
_LARGEST = 2304
"""Rows of the largest matrix whose singular values are all computed."""


@experiment("yi2020", place=2)
def yi2020(settings: Settings) -> Section:
    """Approximation errors, their decay, the largest value, and the bounds."""
    section = Section(
        "The spectrum of a zero-padded layer (Yi 2020)",
        "The paper replaces the circulant approximation of a zero-padded layer's spectrum by quantiles of its spectral "
        "density, and reads upper bounds of the norm off the same density. Errors are relative l2 errors of all sorted "
        "values against the singular values of the full zero-padded matrix. The nodes of the quantiles were not "
        "read, so three are compared.",
    )
    chosen, sizes = _chosen(settings)
    errors, tops = _errors(chosen, sizes)
    where = f"{len(chosen)} trained layers of {resnet(settings).name}"
    _error_claims(section, errors, where)
    _top_claims(section, tops, where)
    _bound_claims(section, settings)
    return section


def _chosen(settings: Settings) -> tuple[dict[str, Array], tuple[int, ...]]:
    """Return square layers of a trained network, thinned, and the sizes at which to look at them."""
    square = {
        name: kernel
        for name, kernel in resnet(settings).plain()
        if kernel.shape[0] == kernel.shape[1] and len(kernel) <= 32
    }
    names = list(square)
    return {name: square[name] for name in names}, (4, 8) if settings.quick else (4, 6, 8, 12)


def _layer(kernel: Array, n: int, mode: str = "zeros") -> Any:
    padding = tuple(((k - 1) // 2, k // 2) for k in kernel.shape[2:])
    return layer_of(kernel, Geometry((n, n), (1, 1), padding, mode))


def _exact(kernel: Array, n: int) -> Array:
    """Return all singular values from the eigenvalues of the Gram matrix: to about 1e-8 of the largest."""
    matrix = ConvOperator(torch.from_numpy(kernel[None].copy()), _layer(kernel, n).geometry).to_dense().numpy()
    return np.asarray(np.sqrt(np.maximum(np.linalg.eigvalsh(matrix @ matrix.T)[::-1], 0)))


# ------------------------------------------------------------------------------------------------------------ errors

_METHODS: Mapping[str, Callable[[Array, int], Array | None]] = {
    "circulant": lambda kernel, n: convsv.spectrum(_layer(kernel, n)).values,
    "quantiles, i/n": lambda kernel, n: _quantiles(kernel, n, "i/n"),
    "quantiles, i/(n+1)": lambda kernel, n: _quantiles(kernel, n, "i/(n+1)"),
    "quantiles, (i-1/2)/n": lambda kernel, n: _quantiles(kernel, n, "(i-1/2)/n"),
}
_PAPERS_OWN = [name for name in _METHODS if name.startswith("quantiles")]


def _quantiles(kernel: Array, n: int, nodes: Any) -> Array | None:
    return asymptotic(_layer(kernel, n), Execution("cpu"), variant=QuantileVariant(nodes)).values


Errors = dict[int, dict[str, list[float]]]


def _errors(chosen: Mapping[str, Array], sizes: tuple[int, ...]) -> tuple[Errors, list[tuple[float, float]]]:
    """Return errors by size and method, and of each layer and size the circulant and the zero-padded norm over S."""
    errors: Errors = {}
    tops = []
    for kernel in chosen.values():
        supremum = convsv.operator_norm(kernel).upper
        for n in sizes:
            if len(kernel) * n * n > _LARGEST:
                continue
            exact = _exact(kernel, n)
            for name, method in _METHODS.items():
                values = method(kernel, n)
                assert values is not None
                error = float(np.linalg.norm(np.sort(values)[::-1] - exact) / np.linalg.norm(exact))
                errors.setdefault(n, {}).setdefault(name, []).append(error)
            tops.append((convsv.spectrum(_layer(kernel, n)).max / supremum, float(exact[0]) / supremum))
    return errors, tops


def _error_claims(section: Section, errors: Errors, where: str) -> None:
    means = {n: {name: geometric_mean(found) for name, found in each.items()} for n, each in errors.items()}
    counts = [len(each["circulant"]) for each in errors.values()]
    section.tables.append(
        Table(
            "Relative l2 error of the whole spectrum, geometric mean over layers",
            ("size", "layers", *_METHODS),
            tuple(
                (
                    f"{n}x{n}",
                    str(count),
                    *(f"{each[name]:.4f}" for name in _METHODS),
                )
                for (n, each), count in zip(means.items(), counts, strict=True)
            ),
        )
    )
    section.figures.append(
        Figure(
            "yi-errors",
            "Error of the whole spectrum by the size of the image, geometric mean over layers.",
            draw(lambda figure: _paint_errors(figure, means), width=5.0),
        )
    )
    gains = {name: [means[n]["circulant"] / means[n][name] for n in means] for name in _PAPERS_OWN}
    wide = [n for n in means if len(errors[n]["circulant"]) == max(counts)]
    exponents = {name: slope(wide, [means[n][name] for n in wide]) for name in ("circulant", *_PAPERS_OWN)}
    section.claims += [
        Claim(
            "Yi 2020",
            "Quantiles of the spectral density are nearer to the singular values of the zero-padded layer than the "
            "circulant values are.",
            "“moderate improvement”; no number at hand",
            _ABSTRACT,
            "circulant error over theirs, by size: "
            + "; ".join(f"{name.split(', ')[1]}: {min(g):.3f} to {max(g):.3f}" for name, g in gains.items()),
            judge(any(min(found) > 1 for found in gains.values())),
            f"{where}, sizes {', '.join(map(str, means))}; holds if some choice of nodes is better at every size. The "
            "improvement depends on the nodes.",
        ),
        Claim(
            "Yi 2020",
            "The spectrum converges to the spectral density: errors vanish as the image grows.",
            "a limit theorem; no rate",
            "the paper's title and abstract",
            "error falls as "
            + ", ".join(f"n^{exponent:.2f} ({name.split(', ')[-1]})" for name, exponent in exponents.items()),
            judge(all(exponent < -0.25 for exponent in exponents.values())),
            f"fitted over n = {', '.join(map(str, wide))}, {max(counts)} layers; holds if every exponent is below "
            "-0.25.",
        ),
    ]


def _paint_errors(figure: Any, means: Mapping[int, Mapping[str, float]]) -> None:
    axes, sizes = figure.subplots(), sorted(means)
    for number, name in enumerate(_METHODS):
        axes.loglog(
            sizes,
            [means[n][name] for n in sizes],
            color=SERIES[(3, 0, 4, 5, 2)[number]],
            marker="os^vD"[number],
            markersize=4,
            lw=1.2,
            label=name.strip("`"),
        )
    axes.set_xticks(sizes, [str(n) for n in sizes])
    axes.set_xticks([], minor=True)
    axes.set_yticks((0.05, 0.1, 0.2))
    axes.set_yticks([], minor=True)
    log_numbers(axes.yaxis)
    axes.set_xlabel("size of the image, n x n")
    axes.set_ylabel("relative error")
    axes.legend()


def _top_claims(section: Section, tops: list[tuple[float, float]], where: str) -> None:
    ratios = [circular / zero for circular, zero in tops]
    below = sum(ratio < 1 for ratio in ratios)
    highest = max(zero for _, zero in tops)
    section.claims += [
        Claim(
            "Yi 2020",
            "The largest circulant value is no more than an approximation of the zero-padded norm.",
            "no number at hand",
            _ABSTRACT,
            f"circulant over zero-padded norm at the same size {spread(ratios)}; below it in {below} of {len(ratios)}",
            judge(max(abs(ratio - 1) for ratio in ratios) > 1e-3),
            f"{where}, each at each size; holds if they differ by over a thousandth somewhere.",
        ),
        Claim(
            "Yi 2020",
            "The supremum of the spectral density bounds the zero-padded norm at every size.",
            "follows from the density being the symbol",
            "a theorem on Toeplitz matrices",
            f"zero-padded norm over certified supremum at most {highest:.4f}",
            judge(highest <= 1),
            f"{where}, each at each size; holds if never above 1.",
        ),
    ]


# ------------------------------------------------------------------------------------------------------------ bounds


def _bound_claims(section: Section, settings: Settings) -> None:
    names = ("singla2021_r", "singla2021_s", "yi2020_schur", "tap_sum")
    ratios: dict[str, list[float]] = {name: [] for name in (*names, "yi2020")}
    times = []
    for network in networks(settings):
        for name, kernel in network.plain():
            lower = network.norm(name, kernel).lower
            found, took = cpu_seconds(lambda: bounds(kernel, names=names))  # noqa: B023 - called at once
            values = {key: bound.value / lower for key, bound in found.items() if isinstance(bound, Bound)}
            values["yi2020"] = min(values.values())
            for key, value in values.items():
                ratios[key].append(value)
            geometry = _layer(kernel, 32, "circular").geometry
            times.append((took, cpu_seconds(lambda: convsv.spectrum(kernel, geometry, method="circulant"))[1]))  # noqa: B023
    invalid = sum(ratio < 1 for found in ratios.values() for ratio in found)
    where = f"{len(times)} layers of {', '.join(network.name for network in networks(settings))}"
    cost = geometric_mean(bound / spectrum for bound, spectrum in times)
    section.claims += [
        Claim(
            "Yi 2020",
            "The upper bounds hold.",
            "three bounds: by unfoldings, by row and column sums, by taps",
            _UNREAD,
            f"{invalid} of {sum(map(len, ratios.values()))} values below the certified norm; the least of the three "
            "over "
            f"it: {spread(ratios['yi2020'])}",
            judge(invalid == 0),
            f"{where}, stride 1; holds if none is below.",
        ),
        Claim(
            "Yi 2020",
            "The bounds are cheaper than the circulant spectrum.",
            "“reduced computational complexity”",
            _ABSTRACT,
            f"processor time of all of them, certified, over that of the circulant spectrum at 32x32: geometric mean "
            f"{cost:.2f}",
            judge(cost < 1),
            f"{where}; both by convsv, one thread; holds if below 1. The certified row and column sums sample the "
            "density "
            "on a grid of their own.",
        ),
    ]
    section.tables.append(
        Table(
            "Bounds over the certified norm",
            ("bound", "least", "geometric mean", "largest"),
            tuple(
                (f"`{name}`", f"{min(found):.3f}", f"{geometric_mean(found):.3f}", f"{max(found):.3f}")
                for name, found in ratios.items()
            ),
        )
    )
