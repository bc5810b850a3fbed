"""``convsv lipschitz``: how much a whole network can stretch its input."""

from __future__ import annotations

from typing import Annotated

import typer

from convsv.cli._groups import verb
from convsv.cli.options import Computing, GeometrySources, Models, Output


@verb(example="convsv lipschitz model.pt --model my_net:build --input-shape 3x224x224", rank=6)
def lipschitz(
    models: Models,
    geometry: GeometrySources,
    computing: Computing,
    output: Output,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="NAME",
            help="To this output, or any operation; without it to the first output.",
            rich_help_panel="Which layers",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Bound how much a whole network can stretch its input: a certified Lipschitz constant, and each operation's share.

    The graph is that of an ONNX file, or that of a PyTorch model that --model names, with the weights of the
    checkpoint. An operation that no constant bounds is named, and the network has none then: nothing is guessed.
    """
    from convsv.cli._lipschitz import run_lipschitz

    run_lipschitz(models, geometry, computing, output, to)
