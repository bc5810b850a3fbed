"""Sedghi, Gupta, Long 2019: the spectrum of a circular layer by FFT, what it costs, and the published clip."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

import convsv
import oracle
from convsv import Geometry
from convsv.spectra import SpectrumOptions
from reproduce.claims import Claim, Figure, Section, Settings, Table, experiment, judge
from reproduce.drawing import INK, MUTED, SERIES, draw, log_numbers, shade
from reproduce.layers import resnet
from reproduce.measuring import cpu_seconds, geometric_mean, in_seconds, rank_correlation, slope, spread

Array = NDArray[np.float64]

_CODE = "the authors' code, conv2d_singular_values.py of github.com/brain-research/conv-sv"
_MEMORY = "the paper as remembered: not looked up, as only its abstract was at hand"
_ABSTRACT = "abstract, ar5iv.labs.arxiv.org/html/1805.10408"


@experiment("sedghi2019", place=1)
def sedghi2019(settings: Settings) -> Section:
    """Correctness, timing, spectra of a trained network, and the clip."""
    section = Section(
        "The singular values of a circular layer (Sedghi, Gupta, Long 2019)",
        "The paper computes all singular values of a layer with circular padding from the Fourier transform of its "
        "kernel, times that against the singular value decomposition (SVD) of the full matrix, shows the spectra of a "
        "trained ResNet, and clips operator norms. All times are processor times of one thread, the least of several "
        "calls where a call is short.",
    )
    _correctness(section)
    _timing(section, settings)
    _trained(section, settings)
    _clip(section, settings)
    return section


def _published(kernel: Array, n: int) -> Array:
    """Return the singular values as the paper's code finds them: numpy's transform, and an SVD a frequency."""
    transforms = np.fft.fft2(kernel.transpose(2, 3, 0, 1), (n, n), axes=(0, 1))
    return np.asarray(np.sort(np.linalg.svd(transforms, compute_uv=False).ravel())[::-1])


def _full(kernel: Array, n: int) -> Array:
    """Return the singular values of the full matrix, which is built by definition."""
    return oracle.singular_values(oracle.circular(kernel, (n, n), stride=(1, 1), dilation=(1, 1)))


def _ours(kernel: Array, n: int, *, values: bool) -> Any:
    padding = tuple(((k - 1) // 2, k // 2) for k in kernel.shape[2:])
    geometry = Geometry((n, n), (1, 1), padding, "circular")
    return convsv.spectrum(kernel, geometry, options=SpectrumOptions(values=values))


def _random(outputs: int, inputs: int, k: int) -> Array:
    return np.random.default_rng(outputs + 100 * k).standard_normal((outputs, inputs, k, k)) / math.sqrt(inputs * k * k)


# ------------------------------------------------------------------------------------------------------- correctness


def _correctness(section: Section) -> None:
    cases = [(4, 4, 3, 8), (2, 5, 3, 9), (6, 3, 2, 7), (2, 2, 11, 12), (3, 3, 5, 5)]
    published, ours = 0.0, 0.0
    for outputs, inputs, k, n in cases:
        kernel = _random(outputs, inputs, k)
        exact = _full(kernel, n)
        count = min(outputs, inputs) * n * n
        published = max(published, float(np.abs(_published(kernel, n)[:count] - exact[:count]).max() / exact[0]))
        ours = max(ours, float(np.abs(_ours(kernel, n, values=True).values - exact[:count]).max() / exact[0]))
    section.claims.append(
        Claim(
            "Sedghi 2019",
            "The singular values of a layer with circular padding are those of the small matrices that the Fourier "
            "transform of its kernel gives, one a frequency (Theorem 6).",
            "equal",
            "the paper's theorem",
            f"largest difference {published:.1e} of the largest value (the paper's method), {ours:.1e} (`circulant`)",
            judge(max(published, ours) < 1e-12),
            f"{len(cases)} random kernels from 2x2 to 11x11, square and oblong channels, against the SVD of the full "
            "matrix; holds if both differ by less than 1e-12.",
        )
    )
    wrapped = [(2, 2, 5, 4), (3, 3, 3, 2), (2, 2, 11, 8)]
    errors = []
    for outputs, inputs, k, n in wrapped:
        kernel = _random(outputs, inputs, k)
        exact = _full(kernel, n)[0]
        errors.append((_published(kernel, n)[0] / exact, _ours(kernel, n, values=False).max / exact))
    section.claims.append(
        Claim(
            "Sedghi 2019",
            "The published code gives the circular spectrum at every input size.",
            "no condition is stated in the code",
            _CODE,
            "largest value over the true one where the kernel is larger than the image: "
            f"{', '.join(f'{a:.2f}' for a, _ in errors)} (published code), {', '.join(f'{b:.2f}' for _, b in errors)} "
            "(`circulant`)",
            judge(max(abs(a - 1) for a, _ in errors) < 1e-9),
            f"kernel and image {', '.join(f'{k} on {n}' for _, _, k, n in wrapped)}: numpy's transform to a smaller "
            "size "
            "cuts the kernel off, while circular padding wraps it around.",
        )
    )


# ------------------------------------------------------------------------------------------------------------ timing


def _timing(section: Section, settings: Settings) -> None:
    small = (1, 2, 4) if settings.quick else (1, 2, 4, 8)
    plans = [
        ("3x3 on 16x16", 3, 16, small, (1, 2, 4, 8) if settings.quick else (1, 2, 4, 8, 16, 32, 64)),
        ("11x11 on 64x64", 11, 64, (), (1, 2) if settings.quick else (1, 2, 4, 8, 16, 32)),
    ]
    measured = {name: _times(k, n, full, others) for name, k, n, full, others in plans}
    rows = []
    for name, times in measured.items():
        for channels, (full, published, ours, quiet) in sorted(times.items()):
            cells = [in_seconds(value) if value else "—" for value in (full, published, ours, quiet)]
            rows.append((name, str(channels), *cells))
    section.tables.append(
        Table(
            "Time to all singular values, by the number of input and output channels. The certified statistics of the "
            "last column need no array of values",
            ("layer", "channels", "full matrix", "published FFT", "`circulant`, values", "`circulant`, statistics"),
            tuple(rows),
        )
    )
    section.figures.append(
        Figure(
            "sedghi-timing",
            "Processor time of one thread: the SVD of the full matrix, the paper's method, and `circulant`.",
            draw(lambda figure: _paint_times(figure, measured)),
        )
    )
    _timing_claims(section, measured["3x3 on 16x16"], measured["11x11 on 64x64"])


Times = dict[int, tuple[float, float, float, float]]


def _times(k: int, n: int, full: Sequence[int], others: Sequence[int]) -> Times:
    found = {}
    for channels in others:
        kernel = _random(channels, channels, k)
        slow = cpu_seconds(lambda: _full(kernel, n))[1] if channels in full else 0.0  # noqa: B023 - called at once
        quick: list[Callable[[], Any]] = [
            lambda: _published(kernel, n),  # noqa: B023
            lambda: _ours(kernel, n, values=True),  # noqa: B023
            lambda: _ours(kernel, n, values=False),  # noqa: B023
        ]
        published, ours, quiet = (cpu_seconds(work, 0.1)[1] for work in quick)
        found[channels] = (slow, published, ours, quiet)
    return found


def _timing_claims(section: Section, small: Times, large: Times) -> None:
    both = sorted(channels for channels, times in small.items() if times[0])
    gains = [small[channels][0] / small[channels][1] for channels in both]
    widest = sorted(small)[-2:]
    exponent = slope(widest, [small[channels][1] for channels in widest])
    steep = slope(both[-2:], [small[channels][0] for channels in both[-2:]])
    section.claims += [
        Claim(
            "Sedghi 2019",
            "The Fourier method is much faster than the SVD of the full matrix (3x3 on 16x16).",
            "curves of time over channels; no number at hand",
            "the paper's figure of timings",
            f"{gains[0]:.0f} times faster with 1 channel, {gains[-1]:.0f} times with {both[-1]}; "
            f"`circulant` {both[-1]} channels: {small[both[-1]][0] / small[both[-1]][2]:.0f} times",
            judge(min(gains) > 1),
            f"channels {', '.join(map(str, both))}; holds if faster at each.",
        ),
        Claim(
            "Sedghi 2019",
            "Time grows as n^2 m^2 (m + log n) in the channels m, against (n^2 m)^3 for the full matrix.",
            "exponents of m: at most 3 and 3",
            _MEMORY,
            f"m^{exponent:.1f} (from {widest[0]} to {widest[1]} channels) and m^{steep:.1f} (from {both[-2]} to "
            f"{both[-1]})",
            judge(exponent <= 3.2 and steep > exponent),
            "slope between the two widest layers measured; holds if the first is at most 3.2 and the second larger. "
            "The "
            "full matrices are small enough for caches to matter, and their slope is not compared with 3.",
        ),
        _large_claim(small, large),
    ]


def _large_claim(small: Times, large: Times) -> Claim:
    """Extrapolate from the largest full matrix that was decomposed: its time grows with the cube of its rows."""
    channels, took = max((channels, times[0]) for channels, times in small.items() if times[0])
    widest = max(large)
    rows, ahead = 16 * 16 * channels, 64 * 64 * widest
    hours = took * (ahead / rows) ** 3 / 3600
    return Claim(
        "Sedghi 2019",
        "For 11x11 on 64x64 the full matrix is out of reach, the Fourier method is not.",
        "no curve for the full matrix, which did not end in reasonable time",
        _MEMORY,
        f"a full matrix of {rows} rows takes {in_seconds(took)}, so the one of {ahead} rows for {widest} channels some "
        f"{hours:.3g} hours and {8 * ahead**2 / 2**30:.3g} GiB; the Fourier method takes "
        f"{in_seconds(large[widest][1])}",
        judge(3600 * hours > 1000 * large[widest][1]),
        "the time of the full matrix is extrapolated by the cube of its rows; holds if over 1000 times slower.",
    )


def _paint_times(figure: Any, measured: dict[str, Times]) -> None:
    panels = figure.subplots(1, len(measured))
    names = ("full matrix", "published FFT", "circulant, values", "circulant, statistics")
    for axes, (title, times) in zip(panels, measured.items(), strict=True):
        for column, name in enumerate(names):
            points = [(channels, value[column]) for channels, value in sorted(times.items()) if value[column]]
            if points:
                style = {"color": SERIES[(3, 0, 2, 1)[column]], "marker": "os^v"[column], "markersize": 4, "lw": 1.2}
                axes.loglog(*zip(*points, strict=True), label=name, **style)
        ticks = sorted(times)
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set_xticks([], minor=True)
        log_numbers(axes.yaxis)
        axes.set_title(title, loc="left")
        axes.set_xlabel("input and output channels")
    panels[0].set_ylabel("seconds")
    panels[0].legend()


# ----------------------------------------------------------------------------------------------- a trained network


def _trained(section: Section, settings: Settings) -> None:
    network = resnet(settings)
    size = 8 if settings.quick else 32
    curves, shares, ratios = [], [], []
    for name, kernel in network.plain():
        found = _ours(kernel, size, values=True)
        curves.append((name, found.values / found.max))
        shares.append((found.effective_rank or 0) / found.count)
        matrix = np.linalg.norm(kernel.reshape(len(kernel), -1), 2)
        ratios.append(float(matrix / found.max))
    section.figures.append(
        Figure(
            "sedghi-spectra",
            f"All singular values of the {len(curves)} convolutions of a trained {network.name} with circular padding, "
            f"{size}x{size}, each over its largest one; dark: near the input, light: near the output.",
            draw(lambda figure: _paint_spectra(figure, curves), width=6.0),
        )
    )
    correlation = rank_correlation(range(len(shares)), shares)
    how = f"{len(shares)} layers of {network.name}, {size}x{size}"
    section.claims += [
        Claim(
            "Sedghi 2019",
            "In a trained ResNet, layers nearer to the input have the larger effective rank.",
            "a figure of normalised spectra",
            _MEMORY,
            f"rank correlation of depth and effective rank {correlation:+.2f}: from {shares[0]:.2f} of all values in "
            "the "
            f"first layer to {shares[-1]:.2f} in the last",
            judge(correlation < -0.3),
            f"effective rank (Roy, Vetterli 2007) over the number of values; {how}; holds if the correlation is below "
            "-0.3.",
        ),
        Claim(
            "Sedghi 2019",
            "The norm of the kernel as a matrix (Miyato 2018) is no substitute for the operator norm.",
            "a figure of ratios; no number at hand",
            _MEMORY,
            f"matrix norm over operator norm {spread(ratios)}",
            judge(min(ratios) < 0.9),
            f"{how}; holds if it is off by over a tenth somewhere.",
        ),
    ]


def _paint_spectra(figure: Any, curves: Sequence[tuple[str, Array]]) -> None:
    axes = figure.subplots()
    for number, (_, values) in enumerate(curves):
        index = np.unique(np.linspace(0, len(values) - 1, 80).astype(int))
        axes.plot(index / (len(values) - 1), values[index], color=shade(number / max(1, len(curves) - 1)), lw=1)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("rank of the value, from the largest to the smallest")
    axes.set_ylabel("value / largest")


# -------------------------------------------------------------------------------------------------------------- clip


def _clip(section: Section, settings: Settings) -> None:
    network = resnet(settings)
    kernels = list(network.plain())[:: 4 if settings.quick else 3]
    left, rounds, nearer = [], [], []
    for _, kernel in kernels:
        radius = convsv.operator_norm(kernel, tol=1e-2).upper / 4
        once = convsv.clip(kernel, radius, method="sedghi", tol=1e-2)
        many = convsv.clip(kernel, radius, method="alternating", tol=1e-2)
        nearest = convsv.clip(kernel, radius, tol=1e-2)
        left.append(once.after.lower / radius)
        rounds.append(many.after.upper / radius)
        nearer.append(many.distance / nearest.distance)
    section.figures.append(
        Figure(
            "sedghi-clip",
            f"What one pass of the published clip leaves of a radius of a quarter of the norm, layer by layer of "
            f"{network.name}: certified lower ends of the norm over the radius. Nothing should be above 1.",
            draw(lambda figure: _paint_clip(figure, left), width=6.0, height=2.2),
        )
    )
    how = f"{len(left)} layers of {network.name}, radius a quarter of the norm"
    section.claims += [
        Claim(
            "Sedghi 2019",
            "Clipping the singular values at each frequency, and cutting the result to the kernel's support, once, "
            "leaves a layer within the radius.",
            "the code does this one pass and calls it a clip of the operator norm",
            _CODE,
            f"norm over radius afterwards: {spread(left)}; above it in {sum(ratio > 1 for ratio in left)} of "
            f"{len(left)} "
            "layers",
            judge(max(left) <= 1),
            f"{how}; certified lower ends, any size; holds if none is above 1.",
        ),
        Claim(
            "Sedghi 2019",
            "Alternating the two projections reaches a layer of this support within the radius.",
            "follows from convexity of both sets",
            "the paper's argument, as remembered",
            f"norm over radius afterwards at most {max(rounds):.4f}; moved {geometric_mean(nearer):.3f} times as far "
            "as "
            "the nearest such layer (Dykstra), geometric mean",
            judge(max(rounds) <= 1),
            f"{how}; `alternating` and `nearest` of `convsv clip`, which end with a certified check.",
        ),
    ]


def _paint_clip(figure: Any, left: Sequence[float]) -> None:
    axes = figure.subplots()
    axes.bar(range(1, len(left) + 1), left, color=SERIES[0], width=0.7)
    axes.axhline(1, color=INK, lw=1)
    axes.set_xlim(0.4, len(left) + 1.2)
    axes.set_xticks(range(1, len(left) + 1))
    axes.annotate("radius", (len(left) + 0.5, 1.02), va="bottom", fontsize=8, color=MUTED)
    axes.set_xlabel("layer")
    axes.set_ylabel("norm / radius")
    axes.grid(visible=False, axis="x")
