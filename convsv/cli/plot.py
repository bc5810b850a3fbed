"""``convsv plot``: figures of spectra, norms and bounds."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated

import typer

from convsv.cli._groups import verb
from convsv.cli._words import known_methods
from convsv.cli.options import Computing, Exact, GeometrySources, Models

__all__ = ["Kind", "Pictures", "Theme"]

_FIGURE = "The figure"


class Kind(str, Enum):
    """The kinds of figures; a test holds them equal to those that can be drawn."""

    spectrum = "spectrum"
    histogram = "histogram"
    intervals = "intervals"
    torus = "torus"
    heatmap = "heatmap"


class Theme(str, Enum):
    """The themes of figures."""

    light = "light"
    dark = "dark"


@dataclass(frozen=True)
class Pictures:
    """Where the figure goes, and what it shows."""

    output: Annotated[
        list[str],
        typer.Option(
            "--output",
            "-o",
            metavar="FIGURE",
            help="The figure: .png, .svg or .pdf. Repeatable.",
            rich_help_panel=_FIGURE,
            show_default=False,
        ),
    ] = field(default_factory=list)
    kind: Annotated[
        Kind,
        typer.Option(
            "--kind",
            help="Normalised singular values of each layer; their distribution; certified intervals and bounds; the "
            "largest singular value over the frequency torus, of one layer; norms by layer and checkpoint.",
            rich_help_panel=_FIGURE,
        ),
    ] = Kind.spectrum
    theme: Annotated[Theme, typer.Option("--theme", help="For a light or a dark page.", rich_help_panel=_FIGURE)] = (
        Theme.light
    )
    method: Annotated[
        list[str],
        typer.Option(
            "--method",
            metavar="METHOD",
            callback=known_methods,
            help="What to draw; without it circulant, and with --kind intervals also exact and bounds. Repeatable.",
            rich_help_panel=_FIGURE,
            show_default=False,
        ),
    ] = field(default_factory=list)
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress, notes or warnings.", rich_help_panel=_FIGURE)
    ] = False
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="More notes, and tracebacks of errors.", rich_help_panel=_FIGURE)
    ] = False


@verb(example="convsv plot model.pt -o spectra.svg", rank=10)
def plot(models: Models, geometry: GeometrySources, computing: Computing, exact: Exact, pictures: Pictures) -> None:
    """Draw figures for papers: spectra, their distribution, certified intervals with bounds, a torus, a heat map.

    Each figure says what operator its numbers are about and what guarantees them. Needs matplotlib, which comes with
    convsv[plot].
    """
    from convsv.cli._plot import run_plot

    run_plot(models, geometry, computing, exact, pictures)
