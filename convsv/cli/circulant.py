"""``convsv circulant``: the spectrum under circular padding."""

from __future__ import annotations

from dataclasses import replace

from convsv.cli._groups import verb
from convsv.cli.options import Computing, GeometrySources, Models, Output, Planning, Spectra


@verb(example="convsv circulant model.pt --size 32 --spectra spectra.npz", rank=3)
def circulant(
    models: Models,
    geometry: GeometrySources,
    computing: Computing,
    output: Output,
    spectra: Spectra,
    planning: Planning,
) -> None:
    """Compute all singular values of each convolution as if it padded circularly, exactly, at its input size.

    The values are those of the symbol at the frequencies of the grid (Sedghi, Gupta, Long 2019), for any stride that
    divides the size, any dilation and any number of groups.
    """
    from convsv.cli._run import run
    from convsv.cli._task import Task

    task = Task("circulant", models, geometry, output, computing, spectra, ("circulant",), budget=planning.budget)
    run(replace(task, dask=planning.dask), dry=planning.dry_run)
