"""Where results are kept for later calls: the user's folder, as the environment and ``--no-cache`` say."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from convsv.cli.options import parse_memory
from convsv.errors import UsageError

if TYPE_CHECKING:
    from convsv.cache import Cached, Folder, Memory
    from convsv.cache._analyst import Analyst
    from convsv.cli.options import Computing
    from convsv.execution import Execution
    from convsv.layer import ConvLayer
    from convsv.results import LayerReport

__all__ = ["DEFAULT_SIZE", "cached", "kept_results", "users_folder"]

DEFAULT_SIZE = "1GiB"
_FOLDER, _SIZE = "CONVSV_CACHE_DIR", "CONVSV_CACHE_SIZE"


def users_folder() -> Folder:
    """Return the folder where results are kept.

    Raises:
        UsageError: the environment says something that is no size.
    """
    from platformdirs import user_cache_path

    from convsv.cache import Folder

    stated = os.environ.get(_FOLDER)
    path = Path(stated) if stated else user_cache_path("convsv", appauthor=False) / "results"
    size = os.environ.get(_SIZE) or DEFAULT_SIZE
    if size.strip() == "0":
        return Folder(path, 0)
    try:
        return Folder(path, parse_memory(size))
    except typer.BadParameter as error:
        raise UsageError(f"{_SIZE}: {error}") from None


def kept_results(computing: Computing | None) -> Memory:
    """Return what is known beforehand: of this call, and of earlier ones unless ``--no-cache`` was given.

    Raises:
        UsageError: the environment says something that is no size.
    """
    from convsv.cache import Memory

    return Memory(None if computing is None or computing.no_cache else users_folder())


def cached(
    inner: Analyst,
    results: Memory,
    execution: Execution,
    options: Any,
    *,
    more: Callable[[ConvLayer], Any] = lambda layer: None,
    keeps: Callable[[LayerReport], bool] = lambda report: True,
) -> Cached:
    """Return an analyst that computes only what is not known.

    Args:
        inner: what computes.
        results: what is known.
        execution: where it computes.
        options: everything else that decides the numbers.
        more: what of it differs from layer to layer.
        keeps: whether a result is worth keeping.
    """
    from convsv.cache import Cached, Computation, layer_key

    computation = Computation(options, execution.torch_device.type, execution.memory)
    return Cached(inner, results, lambda layer: layer_key(layer, computation, more(layer)), keeps)
