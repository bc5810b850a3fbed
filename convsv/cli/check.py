"""``convsv check``: the gate for CI."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from convsv.cli._groups import verb
from convsv.cli.options import Computing, GeometrySources, Models, Output

_LIMITS = "Limits"
_CI = "Continuous integration"
_COMPUTING = "Computing"
_OUTPUT = "Output"


class Level(str, Enum):
    """What follows from a layer that does not pass; a test holds them equal to ``convsv.results.Severity``."""

    off = "off"
    warn = "warn"
    error = "error"


def _positive(value: float | None) -> float | None:
    if value is not None and not 0 < value < float("inf"):
        raise typer.BadParameter(f"{value} is no limit; give a positive number")
    return value


def _seconds(value: float) -> float:
    if not 0 < value < float("inf"):
        raise typer.BadParameter(f"{value} is no time; give a positive number of seconds")
    return value


@dataclass(frozen=True)
class Demands:
    """What is demanded of the layers."""

    max_norm: Annotated[
        float | None,
        typer.Option(
            "--max-norm",
            metavar="R",
            callback=_positive,
            help="The largest norm, at any input size, that a layer may have.",
            rich_help_panel=_LIMITS,
            show_default=False,
        ),
    ] = None
    min_norm: Annotated[
        float | None,
        typer.Option(
            "--min-norm",
            metavar="M",
            callback=_positive,
            help="The least that a layer's smallest singular value may be, as the layer runs.",
            rich_help_panel=_LIMITS,
            show_default=False,
        ),
    ] = None
    max_condition: Annotated[
        float | None,
        typer.Option(
            "--max-condition",
            metavar="C",
            callback=_positive,
            help="The most that a layer's largest singular value may be of its smallest, as the layer runs.",
            rich_help_panel=_LIMITS,
            show_default=False,
        ),
    ] = None
    max_product: Annotated[
        float | None,
        typer.Option(
            "--max-product",
            metavar="P",
            callback=_positive,
            help="The most that the norms of all layers of a checkpoint may be, multiplied.",
            rich_help_panel=_LIMITS,
            show_default=False,
        ),
    ] = None
    severity: Annotated[
        Level | None,
        typer.Option(
            "--severity",
            help="What follows from a layer that does not pass: nothing is checked, a warning, or an exit code. "
            "Without it error.",
            rich_help_panel=_LIMITS,
            show_default=False,
        ),
    ] = None
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE.toml",
            help="Limits, also a layer by globs on names. Without it [tool.convsv.check] in ./pyproject.toml.",
            rich_help_panel=_LIMITS,
            show_default=False,
        ),
    ] = None
    baseline: Annotated[
        Path | None,
        typer.Option(
            "--baseline",
            metavar="REPORT.json",
            help="An earlier report: a layer that did not pass there and has not become worse is accepted.",
            rich_help_panel=_LIMITS,
            show_default=False,
        ),
    ] = None


@dataclass(frozen=True)
class Gauging(Computing):
    """Where and how finely to compute; ``tol`` is only where it begins."""

    tol: Annotated[
        float,
        typer.Option(
            "--tol",
            metavar="WIDTH",
            callback=_seconds,
            help="Width of the certified interval to begin with: upper / lower - 1. Where that does not decide, "
            "narrower ones follow.",
            rich_help_panel=_COMPUTING,
        ),
    ] = 0.1
    budget: Annotated[
        float,
        typer.Option(
            "--budget",
            metavar="SECONDS",
            callback=_seconds,
            help="Time to spend on deciding one layer.",
            rich_help_panel=_COMPUTING,
        ),
    ] = 60.0


@dataclass(frozen=True)
class Results(Output):
    """Where results go, and in which form."""

    format: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="auto|table|tsv|json|jsonl|csv|markdown|junit|github",
            help="Form of standard output; auto is a table on a terminal and tab-separated lines elsewhere.",
            rich_help_panel=_OUTPUT,
        ),
    ] = "auto"
    output: Annotated[
        list[str],
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write a report to a file: .json .jsonl .csv .tsv .md or .xml (JUnit). Repeatable.",
            rich_help_panel=_OUTPUT,
            show_default=False,
        ),
    ] = field(default_factory=list)


@dataclass(frozen=True)
class Integration:
    """What continuous integration reads."""

    junit: Annotated[
        str | None,
        typer.Option(
            "--junit",
            metavar="FILE",
            help="Write JUnit XML to a file, whatever its suffix.",
            rich_help_panel=_CI,
            show_default=False,
        ),
    ] = None
    github: Annotated[
        bool | None,
        typer.Option(
            "--github/--no-github",
            help="Annotations for GitHub Actions on standard error, and a summary of the step. On by itself there.",
            rich_help_panel=_CI,
            show_default=False,
        ),
    ] = None


@verb(example="convsv check model.pt --max-norm 100", rank=8)
def check(
    models: Models,
    demands: Demands,
    geometry: GeometrySources,
    computing: Gauging,
    integration: Integration,
    output: Results,
) -> None:
    """Decide whether every convolution keeps to its limits, and say so by the exit code: 0, 1 fail, 4 undecided.

    A layer passes when its certified upper end is within the limit, and fails when a lower end that leans on no guess
    is above it. In between the certificate is made narrower, for that layer only, until it decides or the time is up.
    A layer that has no norm (NaN, quantised) is undecided.
    """
    from convsv.cli._check import run_check

    run_check(models, demands, geometry, computing, integration, output)
