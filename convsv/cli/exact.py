"""``convsv exact``: the singular values of the layer as it runs."""

from __future__ import annotations

from dataclasses import replace

from convsv.cli._groups import verb
from convsv.cli.options import Computing, Exact, GeometrySources, Models, Output, Planning, Spectra


@verb(example="convsv exact model.pt --size 32 --top 10", rank=5)
def exact(
    models: Models,
    geometry: GeometrySources,
    computing: Computing,
    output: Output,
    spectra: Spectra,
    exact: Exact,
    planning: Planning,
) -> None:
    """Compute the singular values of each convolution as it runs: with its own padding, stride and input size.

    All of them where the layer is small enough for that, or for --full; else the largest few, each with the distance
    to a true singular value, and a certified upper bound of the largest. What it will do depends on shapes only.
    """
    from convsv.cli._run import run
    from convsv.cli._task import Task

    task = Task("exact", models, geometry, output, computing, spectra, ("exact",), exact=exact, budget=planning.budget)
    run(replace(task, dask=planning.dask), dry=planning.dry_run)
