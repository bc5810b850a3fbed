"""``convsv report``: one page to open in a browser."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from convsv.cli._groups import verb
from convsv.cli._words import known_methods
from convsv.cli.options import Computing, Exact, GeometrySources, Models
from convsv.errors import UsageError

if TYPE_CHECKING:
    from convsv.cli._task import Task

__all__ = ["Page"]

_PAGE = "The page"


@dataclass(frozen=True)
class Page:
    """Where the page goes, and what it holds."""

    output: Annotated[
        list[str],
        typer.Option(
            "--output",
            "-o",
            metavar="FILE.html",
            help="The page. Repeatable; other suffixes of reports hold the same results.",
            rich_help_panel=_PAGE,
            show_default=False,
        ),
    ] = field(default_factory=list)
    method: Annotated[
        list[str],
        typer.Option(
            "--method",
            metavar="METHOD",
            callback=known_methods,
            help="What to compute beside the norm; without it circulant. Add bounds for a figure of all of them. "
            "Repeatable.",
            rich_help_panel=_PAGE,
            show_default=False,
        ),
    ] = field(default_factory=list)
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress, notes or warnings.", rich_help_panel=_PAGE)
    ] = False
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="More notes, and tracebacks of errors.", rich_help_panel=_PAGE)
    ] = False


@verb(example="convsv report model.pt -o report.html", rank=11)
def report(models: Models, geometry: GeometrySources, computing: Computing, exact: Exact, page: Page) -> None:
    """Write one HTML page on some checkpoints: a summary, a table to sort and filter, and figures of each layer.

    The page is one file and needs no network. It says what was assumed, what is certified, and how to make it again.
    """
    from convsv.cli._run import run

    run(_task(models, geometry, computing, exact, page))


def _task(models: Models, geometry: GeometrySources, computing: Computing, exact: Exact, page: Page) -> Task:
    """Return what to do.

    Raises:
        UsageError: where to write the page is missing.
    """
    from convsv.cli._output import SILENT
    from convsv.cli._task import Task
    from convsv.cli.options import Output

    if not page.output:
        raise UsageError("where to write the page is missing", advice="give -o FILE.html")
    output = Output(SILENT, page.output, quiet=page.quiet, verbose=page.verbose)
    methods = tuple(dict.fromkeys(page.method)) or ("circulant",)
    return Task("report", models, geometry, output, computing, methods=methods, norm=True, exact=exact)
