"""Figures for papers and talks, drawn with matplotlib, the only place that knows it.

A figure says in its title what operator its numbers are about and what guarantees them. The same data give the same
bytes: no dates, no random identifiers. Names come from strangers' files: nothing in them is read as mathematics, and
no character of them steers anything.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, cast

from convsv import __version__
from convsv.errors import UsageError
from convsv.reports._drawing import DRAWERS, Canvas, Palette, PictureData

__all__ = ["KINDS", "THEMES", "FigureStyle", "format_of_figure", "render", "require_matplotlib"]

KINDS = tuple(DRAWERS)
"""What can be drawn; the first is the default."""
THEMES = ("light", "dark")

_SUFFIXES = {".png": "png", ".svg": "svg", ".pdf": "pdf"}
_SHADES = 64
_DPI = 200

# Okabe and Ito (2008): eight colours that the colour-blind tell apart; yellow is too pale on white, black on black.
_OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7")
_ON_DARK = ("#56B4E9", "#E69F00", "#009E73", "#D55E00", "#F0E442", "#CC79A7", "#e8e8e8")
_PALETTES: Mapping[str, Palette] = {
    "light": Palette(
        ink="#1a1a1a",
        muted="#5f6368",
        faint="#d9dce1",
        page="#ffffff",
        series=(*_OKABE_ITO, "#1a1a1a"),
        shades=(0, 0.9),
    ),
    "dark": Palette(
        ink="#e8e8e8",
        muted="#a0a6ad",
        faint="#3c4148",
        page="#16191d",
        series=_ON_DARK,
        shades=(0.22, 1),
    ),
}


@dataclass(frozen=True)
class FigureStyle:
    """How a figure is to look.

    Attributes:
        kind: one of :data:`KINDS`.
        theme: one of :data:`THEMES`.
    """

    kind: str = KINDS[0]
    theme: str = THEMES[0]


def require_matplotlib() -> None:
    """Refuse to go on without matplotlib, before anything is computed.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "figures need matplotlib", found=str(error), advice="install it with: pip install 'convsv[plot]'"
        ) from None


def format_of_figure(path: str) -> str:
    """Return the format that the suffix of a figure's path stands for.

    Raises:
        UsageError: it stands for none.
    """
    suffix = PurePath(path).suffix.lower()
    if suffix not in _SUFFIXES:
        found = f"suffix {suffix!r}" if suffix else "no suffix"
        raise UsageError(
            "no figure format goes with this name", path=path, found=found, advice="use .png, .svg or .pdf"
        )
    return _SUFFIXES[suffix]


def render(data: PictureData, style: FigureStyle, form: str) -> bytes:
    """Return a figure as the content of a file.

    Args:
        data: what to draw.
        style: what kind of figure, and how it is to look.
        form: ``"png"``, ``"svg"`` or ``"pdf"``.

    Raises:
        UsageError: matplotlib is missing.
        UnavailableError: there is nothing of this kind to draw, or too much.
    """
    require_matplotlib()
    import matplotlib as mpl
    from matplotlib.figure import Figure

    palette = _PALETTES[style.theme]
    with mpl.rc_context(), warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes; nothing to warn a user about.
        warnings.filterwarnings("ignore", message=".*[Gg]lyph .* missing from", category=UserWarning)
        mpl.rcdefaults()
        cast(Any, mpl.rcParams).update(_rc(palette))
        figure = Figure(layout="constrained")
        DRAWERS[style.kind](Canvas(figure, palette, *_shades(palette)), data)
        out = io.BytesIO()
        figure.savefig(out, format=form, dpi=_DPI, metadata=_METADATA[form])
    return out.getvalue()


_METADATA: Mapping[str, Mapping[str, Any]] = {
    "png": {"Software": f"convsv {__version__}"},
    "svg": {"Date": None, "Creator": f"convsv {__version__}"},
    "pdf": {"CreationDate": None, "Creator": f"convsv {__version__}"},
}


def _shades(palette: Palette) -> tuple[Any, Any]:
    """Return the part of cividis that stands out from the page, and all of it."""
    import matplotlib as mpl
    from matplotlib.colors import LinearSegmentedColormap

    whole = mpl.colormaps["cividis"]
    low, high = palette.shades
    points = [whole(low + (high - low) * step / (_SHADES - 1)) for step in range(_SHADES)]
    return LinearSegmentedColormap.from_list("depth", points), whole


def _rc(palette: Palette) -> dict[str, Any]:
    return {
        "text.parse_math": False,
        "svg.hashsalt": "convsv",
        "svg.fonttype": "path",
        "pdf.fonttype": 42,
        "path.simplify_threshold": 0.2,
        "font.family": "DejaVu Sans",  # comes with matplotlib: the same figure everywhere
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.labelsize": 9,
        "axes.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.linewidth": 0.5,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "legend.fontsize": 8,
        "legend.frameon": False,
        "hatch.linewidth": 0.5,
        "text.color": palette.ink,
        "axes.labelcolor": palette.ink,
        "axes.titlecolor": palette.ink,
        "axes.edgecolor": palette.muted,
        "xtick.color": palette.muted,
        "ytick.color": palette.muted,
        "xtick.labelcolor": palette.ink,
        "ytick.labelcolor": palette.ink,
        "grid.color": palette.faint,
        "figure.facecolor": palette.page,
        "axes.facecolor": palette.page,
        "savefig.facecolor": palette.page,
        "figure.constrained_layout.h_pad": 0.06,
        "figure.constrained_layout.w_pad": 0.06,
    }
