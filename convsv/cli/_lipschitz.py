"""What ``convsv lipschitz`` does: find the graph, bind the weights, carry the constants along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import typer

from convsv.cli._analyst import Analyst
from convsv.cli._run import Run
from convsv.cli._screen import Screen
from convsv.cli._task import Task
from convsv.cli._words import parse_input, parse_memory
from convsv.cli.options import Computing, GeometrySources, Models, Output
from convsv.errors import UsageError, error_context
from convsv.results import CheckpointReport, LayerReport

if TYPE_CHECKING:
    from convsv.analysis import AnalysisOptions
    from convsv.checkpoints import Checkpoint
    from convsv.checkpoints.discovery import Discovery
    from convsv.checkpoints.sources import GeometryOptions
    from convsv.graph import Network
    from convsv.layer import ConvLayer

__all__ = ["run_lipschitz"]

_SHOWN = 10


def run_lipschitz(
    models: Models, geometry: GeometrySources, computing: Computing, output: Output, to: str | None
) -> None:
    """Bound networks.

    Raises:
        UsageError: options that are about layers by themselves.
        ConvsvError: nothing could be done, for instance because of other wrong options.
        typer.Exit: it is done, with an exit code other than 0.
    """
    if models.include or models.exclude or geometry.fold:
        raise UsageError(
            "a network has all its layers", advice="leave --include, --exclude, --fold-bn and --fold-bn-by-order out"
        )
    if output.sort:
        raise UsageError("operations stay in the order of the network", advice="leave --sort out")
    task = Task("lipschitz", models, geometry, output, computing, more={"to": to})
    code = _LipschitzRun(task, Screen(quiet=output.quiet, verbose=output.verbose), computing, to).code()
    if code:
        raise typer.Exit(code)


class _LipschitzRun(Run):
    """One call of ``lipschitz``."""

    def __init__(self, task: Task, screen: Screen, computing: Computing, to: str | None) -> None:
        super().__init__(task, screen)
        self._computing, self._to = computing, to
        self._traced: Network | None = None
        self._options: AnalysisOptions | None = None
        self._opened: dict[str, Checkpoint] = {}

    def _analyst(self) -> tuple[Analyst, dict[str, Any]]:
        from convsv.analysis import AnalysisOptions
        from convsv.execution import Execution

        computing = self._computing
        execution = Execution(
            device=computing.device,
            dtype=computing.dtype.value,
            memory=parse_memory(computing.memory),
            jobs=computing.jobs,
        )
        self._options = AnalysisOptions(tol=computing.tol, execution=execution)
        stated = self._task.geometry
        if stated.trace:
            from convsv.tracing import InputShape, trace_network

            inputs = [InputShape(*parse_input(text)) for text in stated.input_shape]
            self._traced = trace_network(stated.trace, inputs, stated.model_args)
        return lambda layers: iter(()), {"device": str(execution.torch_device), "jobs": execution.threads}

    def _discover(self, sources: GeometryOptions, path: str) -> tuple[CheckpointReport, tuple[ConvLayer, ...]]:
        found = super()._discover(sources, path)
        if self._checkpoint is not None:
            self._opened[path] = self._checkpoint
        return found

    def _judged(
        self, known: CheckpointReport, found: Sequence[ConvLayer], layers: Sequence[LayerReport]
    ) -> CheckpointReport:
        from convsv.network.propagation import bound_network

        with error_context(path=known.path):
            bound = bound_network(self._network(self._opened.pop(known.path), found), self._options, output=self._to)
        with self._screen.paused():
            for note in bound.notes[:_SHOWN]:
                self._screen.note(f"{known.path}: {note}")
            if bound.unavailable:
                self._screen.warning(f"{known.path}: no Lipschitz constant to {bound.output}: {bound.unavailable}")
        self._codes += [5] if bound.failed else []
        return replace(known, network=bound)

    def _network(self, checkpoint: Checkpoint, layers: Sequence[ConvLayer]) -> Network:
        """Return the graph of a checkpoint, its own or that of the traced model.

        Raises:
            UsageError: there is none.
        """
        from convsv.checkpoints.binding import bind

        if self._traced is not None:
            return bind(self._traced, checkpoint, layers)
        if checkpoint.network is None:
            raise UsageError(
                "holds weights, and not how the network uses them",
                advice="name the model with --model PKG.MOD:CALLABLE and --input-shape, or give an ONNX file",
            )
        return checkpoint.network()

    def _say(self, path: str, problems: Sequence[str], found: Discovery) -> None:
        with self._screen.paused():
            for problem in problems[:_SHOWN]:
                self._screen.warning(problem if problem.startswith(path) else f"{path}: {problem}")
