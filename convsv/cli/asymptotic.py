"""``convsv asymptotic``: the spectrum from the symbol alone, at any size."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from convsv.cli._groups import verb
from convsv.cli.options import Computing, GeometrySources, Models, Output, Planning, Spectra


@verb(example="convsv asymptotic model.pt --size 224 --calibrated", rank=4)
def asymptotic(
    models: Models,
    geometry: GeometrySources,
    computing: Computing,
    output: Output,
    spectra: Spectra,
    planning: Planning,
    calibrated: Annotated[
        bool,
        typer.Option("--calibrated", help="Also estimate them with the boundary of the image allowed for."),
    ] = False,
) -> None:
    """Estimate all singular values of each convolution from what they tend to as the input grows, at its input size.

    The time does not depend on the size, and a stride need not divide it (Yi 2020). With --calibrated a second,
    several times closer estimate stands beside the first: it allows for the boundary of the image.
    """
    from convsv.cli._run import run
    from convsv.cli._task import Task

    methods = ("asymptotic", "calibrated") if calibrated else ("asymptotic",)
    task = Task("asymptotic", models, geometry, output, computing, spectra, methods, budget=planning.budget)
    run(replace(task, dask=planning.dask), dry=planning.dry_run)
