"""``convsv cache``: what is kept for later calls, and how to be rid of it."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from convsv.cli._caching import DEFAULT_SIZE, users_folder
from convsv.errors import ComputationError

__all__ = ["cache"]

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")

cache = typer.Typer(
    help="Look at the results that are kept for later calls, or delete them.\n\n"
    "A layer whose weights, geometry and options are the same as in an earlier call is not computed again; "
    "--no-cache on any command does without. CONVSV_CACHE_DIR names another folder, CONVSV_CACHE_SIZE another bound "
    f"than {DEFAULT_SIZE}, and 0 keeps nothing.",
    epilog="Example: convsv cache info",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@cache.command(epilog="Example: convsv cache info --json")
def info(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of lines for people.")] = False,
) -> None:
    """Say where results are kept, how many, and how much room they take and may take."""
    folder = users_folder()
    used = folder.usage()
    if as_json:
        said = {
            "folder": str(folder.path),
            "entries": used.entries,
            "bytes": used.size,
            "limit": folder.limit,
            "trouble": folder.trouble,
        }
        typer.echo(json.dumps(said))
        return
    typer.echo(f"folder   {folder.path}")
    typer.echo(f"entries  {used.entries}")
    typer.echo(f"size     {amount(used.size)} of at most {amount(folder.limit)}")
    if folder.trouble:
        typer.echo(f"unused   {folder.trouble}")


@cache.command(
    help="Delete all results that are kept, and nothing else in their folder.", epilog="Example: convsv cache clear"
)
def clear() -> None:
    """Delete all results that are kept, and nothing else in their folder.

    Raises:
        ComputationError: some could not be deleted.
    """
    folder = users_folder()
    gone, left = folder.clear(), folder.usage()
    typer.echo(f"{gone.entries} entries deleted, {amount(gone.size)} freed: {folder.path}")
    if left.entries:
        raise ComputationError("cannot be deleted", path=str(folder.path), found=f"{left.entries} entries")


def amount(size: int) -> str:
    """Return bytes in words: ``1.5 MiB``."""
    value, power = float(size), 0
    while value >= 1024 and power < len(_UNITS) - 1:
        value, power = value / 1024, power + 1
    return f"{value:.1f} {_UNITS[power]}" if power else f"{size} B"
