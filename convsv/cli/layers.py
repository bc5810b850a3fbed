"""``convsv layers``: which tensors are convolutions, and how they lie."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from convsv.cli._groups import verb
from convsv.cli.options import GeometrySources, Models, Output


@verb(example="convsv layers model.safetensors", rank=1)
def layers(
    models: Models,
    geometry: GeometrySources,
    output: Output,
    write_geometry: Annotated[
        Path | None,
        typer.Option(
            "--write-geometry",
            metavar="FILE.toml",
            help="Write a geometry file for --geometry: what is known as facts, what is assumed as comments.",
            rich_help_panel="Output",
            show_default=False,
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Let --write-geometry take the place of a file that is there.", rich_help_panel="Output"
        ),
    ] = False,
) -> None:
    """List the convolutions of a checkpoint: which tensors they are, and their geometry with where it was learned.

    Nothing is computed. Where the format allows it only headers are read. A value marked ? is assumed, because the
    checkpoint does not tell it.
    """
    from convsv.cli._run import run
    from convsv.cli._task import Task

    run(Task("layers", models, geometry, output, sidecar=write_geometry, force=force))
