"""``convsv bounds``: every published bound beside the certified norm."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from convsv.cli._groups import verb
from convsv.cli.options import Computing, GeometrySources, Models, Output, Planning


@verb(example="convsv bounds model.pt --summary", rank=6)
def bounds(
    models: Models,
    geometry: GeometrySources,
    computing: Computing,
    output: Output,
    planning: Planning,
    summary: Annotated[
        bool, typer.Option("--summary", help="A row a bound over all layers: how loose it is, and how often the best.")
    ] = False,
) -> None:
    """Compare every published bound on the operator norm with the certified interval: a row a layer and bound.

    The ratio says how loose a bound is: 1 is perfect, 2 is twice too large. An estimate may be on the wrong side.
    """
    from convsv.cli._run import run
    from convsv.cli._task import Task

    budget = planning.budget
    task = Task("bounds", models, geometry, output, computing, methods=("bounds",), norm=True, budget=budget)
    run(replace(task, summary=summary, dask=planning.dask), dry=planning.dry_run)
