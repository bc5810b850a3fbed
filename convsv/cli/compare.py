"""``convsv compare``: what changed between checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated

import typer

from convsv.cli._groups import verb
from convsv.cli.options import Computing, GeometrySources, Models, Output

_WHAT = "What to compare"


class Which(str, Enum):
    """The spectra that can be compared; a test holds them equal to what there is."""

    circulant = "circulant"
    asymptotic = "asymptotic"
    exact = "exact"
    none = "none"


def _versions(models: list[str]) -> list[str]:
    if "" in models:
        raise typer.BadParameter("'' is not a path")
    return models


@dataclass(frozen=True)
class Versions(Models):
    """Which checkpoints, in their order, and which of their layers."""

    model: Annotated[
        list[str],
        typer.Argument(
            metavar="OLD NEW",
            callback=_versions,
            help="Checkpoints, or JSON reports of them, in their order: two or more. Also folders, patterns "
            "('run/*.pt', quoted), or - for a list on standard input.",
            show_default=False,
        ),
    ]


@dataclass(frozen=True)
class Differences:
    """What to look at, and what to notice."""

    method: Annotated[
        Which,
        typer.Option("--method", help="The spectrum whose change is measured.", rich_help_panel=_WHAT),
    ] = Which.circulant
    fail_on: Annotated[
        list[str],
        typer.Option(
            "--fail-on",
            metavar="CHANGES",
            help="Exit with 1 if this happened to a layer: added, removed, reshaped, changed, norm-increase[=5%] or "
            "norm-decrease[=5%] (certified, by more than that). Several with commas; repeatable.",
            rich_help_panel=_WHAT,
            show_default=False,
        ),
    ] = field(default_factory=list)


@verb(example="convsv compare old.pt new.pt --fail-on removed,norm-increase=5%", rank=9)
def compare(
    versions: Versions,
    differences: Differences,
    geometry: GeometrySources,
    computing: Computing,
    output: Output,
) -> None:
    """Tell what changed from one checkpoint to the next, layer by layer: norms, weights, spectra, and which layers.

    Layers are matched by name. A norm has certainly grown when the two certified intervals share no number. Instead of
    a checkpoint a JSON report by convsv may be given; what it does not hold is not compared.
    """
    from convsv.cli._compare import run_compare

    run_compare(versions, differences, geometry, computing, output)
