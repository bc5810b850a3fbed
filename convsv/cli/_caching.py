"""Where results are kept for later calls: the user's folder, as the environment and ``--no-cache`` say."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from convsv.cli._words import parse_memory
from convsv.errors import UsageError

if TYPE_CHECKING:
    from convsv.cache import Cached, Checkpoints, Computation, Folder
    from convsv.cache._analyst import Analyst
    from convsv.checkpoints.sources import GeometryOptions
    from convsv.cli._task import Task
    from convsv.cli.options import Computing
    from convsv.execution import Execution
    from convsv.layer import ConvLayer
    from convsv.results import LayerReport

__all__ = ["DEFAULT_SIZE", "Kept", "users_folder"]

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


class Kept:
    """What is known beforehand: of this call, and of earlier ones unless ``--no-cache`` was given.

    Args:
        computing: the options; None where nothing is computed, and nothing kept.

    Raises:
        UsageError: the environment says something that is no size.
    """

    def __init__(self, computing: Computing | None) -> None:
        from convsv.cache import Memory

        self.memory = Memory(None if computing is None or computing.no_cache else users_folder())
        self._computation: Computation | None = None

    @property
    def folder(self) -> Folder | None:
        """Where results are kept for later calls, if they are."""
        return self.memory.behind

    def close(self) -> None:
        """Leave nothing on its way to where it is kept."""
        if self.folder:
            self.folder.close()

    def around(
        self,
        inner: Analyst,
        execution: Execution,
        options: Any,
        *,
        more: Callable[[ConvLayer], Any] = lambda layer: None,
        keeps: Callable[[LayerReport], bool] = lambda report: True,
    ) -> Cached:
        """Return an analyst that computes only what is not known.

        Args:
            inner: what computes.
            execution: where it computes.
            options: everything else that decides the numbers.
            more: what of it differs from layer to layer.
            keeps: whether a result is worth keeping.
        """
        from convsv.cache import Cached, Computation, layer_key

        computation = Computation(options, execution.torch_device.type, execution.memory)
        self._computation = computation
        return Cached(inner, self.memory, lambda layer: layer_key(layer, computation, more(layer)), keeps)

    def checkpoints(self, task: Task, sources: GeometryOptions) -> Checkpoints | None:
        """Return where whole checkpoints are known; None where they are not.

        They are not where a model was traced, which is code and may change, and where whole spectra go to a file
        and are not in the reports.
        """
        from convsv.cache import Checkpoints, digest

        if self._computation is None or not self.folder or sources.trace or task.spectra.spectra is not None:
            return None
        try:
            name = self._computation.name
        except (TypeError, ImportError):
            return None  # an option, or a library, without a name
        chosen = [list(task.models.include), list(task.models.exclude)]
        return Checkpoints(self.folder, digest([name, repr(sources), chosen]))
