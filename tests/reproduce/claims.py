"""What an experiment gives back: claims with their verdicts, and the tables and figures behind them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from convsv.registry import Registry

__all__ = [
    "EXPERIMENTS",
    "PAPERS",
    "Claim",
    "Experiment",
    "Figure",
    "Section",
    "Settings",
    "Table",
    "experiment",
    "judge",
]

Verdict: TypeAlias = Literal["holds", "does not hold", "not tested"]

PAPERS: Mapping[str, str] = {
    "Sedghi 2019": "H. Sedghi, V. Gupta, P. Long: The Singular Values of Convolutional Layers, ICLR 2019",
    "Yi 2020": "X. Yi: Asymptotic Singular Value Distribution of Linear Convolutional Layers, arXiv:2006.07117, 2020",
    "Singla 2021": "S. Singla, S. Feizi: Fantastic Four: Differentiable Bounds on Singular Values of Convolution "
    "Layers, ICLR 2021",
    "Araujo 2021": "A. Araujo, B. Negrevergne, Y. Chevaleyre, J. Atif: On Lipschitz Regularization of Convolutional "
    "Layers using Toeplitz Matrix Theory, AAAI 2021",
    "Delattre 2023": "B. Delattre, Q. Barthélemy, A. Araujo, A. Allauzen: Efficient Bound of Lipschitz Constant for "
    "Convolutional Layers by Gram Iteration, ICML 2023",
    "Delattre 2024": "B. Delattre, Q. Barthélemy, A. Allauzen: Spectral Norm of Convolutional Layers with Circular and "
    "Zero Paddings, arXiv:2402.00240, 2024",
    "Grishina 2024": "E. Grishina, M. Gorbunov, M. Rakhuba: Tight and Efficient Upper Bound on Spectral Norm of "
    "Convolutional Layers, ECCV 2024",
    "Senderovich 2022": "A. Senderovich, E. Bulatova, A. Obukhov, M. Rakhuba: Towards Practical Control of Singular "
    "Values of Convolutional Layers, NeurIPS 2022",
    "Pfister 2019": "L. Pfister, Y. Bresler: Bounding Multivariate Trigonometric Polynomials, IEEE Transactions on "
    "Signal Processing 67, 2019",
    "Miyato 2018": "T. Miyato, T. Kataoka, M. Koyama, Y. Yoshida: Spectral Normalization for Generative Adversarial "
    "Networks, ICLR 2018",
    "Ryu 2019": "E. Ryu, J. Liu, S. Wang, X. Chen, Z. Wang, W. Yin: Plug-and-Play Methods Provably Converge with "
    "Properly Trained Denoisers, ICML 2019",
    "Tsuzuku 2018": "Y. Tsuzuku, I. Sato, M. Sugiyama: Lipschitz-Margin Training: Scalable Certification of "
    "Perturbation Invariance for Deep Neural Networks, NeurIPS 2018",
}
"""Every paper whose claims are looked at, by the short name under which the page speaks of it."""


@dataclass(frozen=True)
class Settings:
    """How to run.

    Attributes:
        quick: smaller sizes and fewer seeds, to see in about a minute that everything works.
        checkpoints: a folder of public checkpoints; where it or a file in it is missing, the sample network stands in.
        cifar: a folder with the CIFAR-10 files; None for the digits.
    """

    quick: bool = False
    checkpoints: Path = Path("checkpoints")
    cifar: Path | None = None


@dataclass(frozen=True)
class Claim:
    """One statement of a paper, and what was found.

    Attributes:
        paper: a key of :data:`PAPERS`.
        text: the statement, in our words.
        published: the paper's value; or that none is stated, or could not be read.
        source: where that was read.
        ours: what was measured.
        verdict: what follows.
        how: how it was measured and what decides; or why it could not be.
    """

    paper: str
    text: str
    published: str
    source: str
    ours: str
    verdict: Verdict
    how: str


@dataclass(frozen=True)
class Table:
    """A table of text, with what it shows said above it."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Figure:
    """A drawing as the bytes of an SVG file, called ``name``, with what it shows said below it."""

    name: str
    caption: str
    svg: bytes


@dataclass
class Section:
    """All that one experiment found.

    Attributes:
        title: a heading.
        setting: what was run, in a few sentences.
        claims: in the order in which the page lists them.
        tables: measurements.
        figures: drawings.
    """

    title: str
    setting: str
    claims: list[Claim] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)


Run: TypeAlias = Callable[[Settings], Section]


@dataclass(frozen=True)
class Experiment:
    """What can be run.

    Attributes:
        place: where its section stands on the page.
        run: measures.
    """

    place: int
    run: Run


EXPERIMENTS: Registry[Experiment] = Registry("experiment", "reproduce.experiments")
"""All experiments by name."""


def experiment(name: str, *, place: int) -> Callable[[Run], Run]:
    """Return a decorator that registers an experiment."""

    def register(run: Run) -> Run:
        EXPERIMENTS.add(name, Experiment(place, run))
        return run

    return register


def judge(holds: bool) -> Verdict:
    """Return the verdict on something that was measured."""
    return "holds" if holds else "does not hold"
