"""``convsv clip``: a checkpoint whose convolutions keep within a norm."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from convsv.cli._groups import verb
from convsv.cli.options import Computing, GeometrySources, Models, Output

_WHAT = "What to do"
_WHERE = "The new checkpoint"


class Method(str, Enum):
    """The ways into the norm ball; a test holds them equal to ``convsv.clipping.METHODS``, which needs torch."""

    nearest = "nearest"
    alternating = "alternating"
    sedghi = "sedghi"
    scale = "scale"


class Padding(str, Enum):
    """The operators of one size whose norm can be meant."""

    circular = "circular"
    zeros = "zeros"


def _only(models: list[str]) -> list[str]:
    if "" in models or len(models) != 1:
        raise typer.BadParameter(
            f"clip takes one checkpoint, not {len(models)}" if len(models) > 1 else "'' is not a path"
        )
    return models


def _positive(value: float | None) -> float | None:
    if value is not None and not 0 < value < float("inf"):
        raise typer.BadParameter(f"{value} is no norm; give a positive number")
    return value


@dataclass(frozen=True)
class OneModel(Models):
    """Which checkpoint, and which of its layers."""

    model: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            callback=_only,
            help="One checkpoint: a PyTorch, safetensors (file or index) or Keras file. It is only read.",
            show_default=False,
        ),
    ]


@dataclass(frozen=True)
class Reports(Output):
    """Where reports go, and in which form; ``--output`` is the checkpoint here."""

    output: Annotated[
        list[str],
        typer.Option(
            "--report",
            metavar="FILE",
            help="Write the report to a file: .json .jsonl .csv .tsv .md or .html. Repeatable.",
            rich_help_panel="Output",
            show_default=False,
        ),
    ] = field(default_factory=list)


@dataclass(frozen=True)
class Wanted:
    """What to do with the layers."""

    max_norm: Annotated[
        float | None,
        typer.Option(
            "--max-norm",
            metavar="R",
            callback=_positive,
            help="The largest norm that a layer may have. A layer within it is not touched.",
            rich_help_panel=_WHAT,
            show_default=False,
        ),
    ] = None
    radii: Annotated[
        Path | None,
        typer.Option(
            "--radii",
            metavar="FILE.toml",
            help="Norms for layers by globs on their names: max_norm in the tables of a file such as --geometry takes. "
            "They win over --max-norm.",
            rich_help_panel=_WHAT,
            show_default=False,
        ),
    ] = None
    method: Annotated[
        Method,
        typer.Option(
            "--method",
            help="nearest: moves the weights least. alternating: the published clip, repeated. sedghi: the published "
            "clip, once; what it leaves above the norm is reported. scale: divides by the norm.",
            rich_help_panel=_WHAT,
        ),
    ] = Method.nearest
    of: Annotated[
        Padding | None,
        typer.Option(
            "--of",
            help="Mean the norm at the layer's size, with this padding, instead of that at any size.",
            rich_help_panel=_WHAT,
            show_default=False,
        ),
    ] = None
    min_norm: Annotated[
        float | None,
        typer.Option(
            "--min-norm",
            metavar="M",
            callback=_positive,
            help="Raise the symbol's singular values to at least this, as far as the support allows.",
            rich_help_panel=_WHAT,
            show_default=False,
        ),
    ] = None
    flatten: Annotated[
        bool,
        typer.Option(
            "--flatten",
            help="Make the symbol's singular values equal, as far as the support allows.",
            rich_help_panel=_WHAT,
        ),
    ] = False
    rank: Annotated[
        int | None,
        typer.Option(
            "--rank",
            metavar="K",
            min=1,
            help="Cut the symbol to this rank, as far as the support allows.",
            rich_help_panel=_WHAT,
            show_default=False,
        ),
    ] = None


@dataclass(frozen=True)
class Target:
    """Where the new checkpoint goes."""

    out: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT",
            help="The new checkpoint, in the format of MODEL; a folder if that has several files.",
            rich_help_panel=_WHERE,
            show_default=False,
        ),
    ] = None
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only report what would become of each layer.", rich_help_panel=_WHERE),
    ] = False
    force: Annotated[
        bool,
        typer.Option("--force", help="Let OUT take the place of a file that is there.", rich_help_panel=_WHERE),
    ] = False


@verb(example="convsv clip model.pt --max-norm 1.0 -o clipped.pt", rank=7)
def clip(
    models: OneModel, wanted: Wanted, target: Target, geometry: GeometrySources, computing: Computing, output: Reports
) -> None:
    """Write a checkpoint of the same format whose convolutions have a certified norm of at most R, as stored.

    The weights move as little as possible, and nothing else in the file changes by one bit. The finished file is read
    again and every promise is checked before it takes its name. If a layer cannot keep within R (its weights are
    computed by a parametrisation that cannot be written), nothing is written: leave it out with --exclude. Layers
    without a norm (NaN, quantised) are reported and stay as they are.
    """
    from convsv.cli._clip import run_clip

    run_clip(models, wanted, target, geometry, computing, output)
