"""``convsv analyze``: the main job, a row a layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from convsv.cli._groups import verb
from convsv.cli._words import known_methods
from convsv.cli.options import Computing, Exact, GeometrySources, Models, Output, Planning, Spectra


@verb(example="convsv analyze model.pt --method circulant --size 32", rank=2)
def analyze(
    models: Models,
    geometry: GeometrySources,
    computing: Computing,
    output: Output,
    spectra: Spectra,
    exact: Exact,
    planning: Planning,
    method: Annotated[
        list[str],
        typer.Option(
            "--method",
            metavar="METHOD",
            callback=known_methods,
            help="Also compute these, for instance circulant or bounds. Repeatable.",
            show_default=False,
        ),
    ] = [],  # noqa: B006 - typer's way to say none; nothing changes it
) -> None:
    """Certify how much each convolution can stretch its input: a row a layer with an interval for its operator norm.

    The interval is proved to hold the norm, rounding errors included. With --method the singular values, or the
    published bounds, stand beside it.
    """
    from convsv.cli._run import run
    from convsv.cli._task import Task

    methods = tuple(dict.fromkeys(method))
    budget = planning.budget
    task = Task("analyze", models, geometry, output, computing, spectra, methods, norm=True, exact=exact, budget=budget)
    run(replace(task, dask=planning.dask), dry=planning.dry_run)
