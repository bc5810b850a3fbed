"""What every verb that reports on layers does: open, find, compute, write. A bad checkpoint never stops the others."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import typer

from convsv.cli._output import Outputs, uninterrupted
from convsv.cli._screen import Screen, exit_code, one_line, worst
from convsv.cli.options import Computing, Exact, GeometrySources, Models, Output, Spectra, parse_input, parse_memory
from convsv.errors import ConvsvError, OutputError, UsageError, error_context
from convsv.reports._summary import assumed
from convsv.results import CheckpointReport, LayerReport, Report

if TYPE_CHECKING:
    from convsv.checkpoints import Checkpoint
    from convsv.checkpoints.discovery import Discovery
    from convsv.checkpoints.sources import GeometryOptions
    from convsv.checkpoints.traced import Trace
    from convsv.layer import ConvLayer
    from convsv.spectra import SpectrumOptions

__all__ = ["Analyst", "Run", "Task", "counted", "run", "settings_of", "sources_of"]

Analyst: TypeAlias = "Callable[[Iterable[ConvLayer]], Iterator[LayerReport]]"
Find: TypeAlias = "Callable[[str], tuple[CheckpointReport, tuple[ConvLayer, ...]]]"
Paths: TypeAlias = "list[tuple[str | None, CheckpointReport]]"

_HASHED_BY_LAYERS = 64 << 20
"""``layers`` promises to read headers only: larger files go without a hash there."""
_HOLES = 8
_HOLLOW = "consists of holes for the most part: not hashed"
_USAGE = 2
_SHOWN = 3
_LINES = 20


@dataclass(frozen=True)
class Task:
    """One call of a verb.

    Attributes:
        command: the verb.
        models: which layers.
        geometry: what the user says about geometry.
        output: where results go.
        computing: where and how finely to compute; None computes nothing.
        spectra: what to do with whole spectra.
        methods: results to compute beside the norm.
        norm: whether to certify the norm.
        summary: bounds: a row a bound over all layers.
        exact: how much of the exact spectrum to compute.
        sidecar: geometry file to write, if any.
        force: whether that may take the place of another file.
        named: formats of report files whose suffix does not tell it.
        more: further options that matter for the numbers.
    """

    command: str
    models: Models
    geometry: GeometrySources
    output: Output
    computing: Computing | None = None
    spectra: Spectra = field(default_factory=Spectra)
    methods: tuple[str, ...] = ()
    norm: bool = False
    summary: bool = False
    exact: Exact = field(default_factory=Exact)
    sidecar: Path | None = None
    force: bool = False
    named: Mapping[str, str] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)


def run(task: Task) -> None:
    """Do a task.

    Raises:
        ConvsvError: nothing could be done, for instance because of wrong options.
        typer.Exit: it is done, with an exit code other than 0.
    """
    screen = Screen(quiet=task.output.quiet, verbose=task.output.verbose)
    code = Run(task, screen).code()
    if code:
        raise typer.Exit(code)


class Run:
    """One call of a verb, from its options to its exit code."""

    def __init__(self, task: Task, screen: Screen) -> None:
        self._task, self._screen = task, screen
        self._codes = [0]
        self._done: list[CheckpointReport] = []
        self._assumed: Counter[str] = Counter()
        self._leaning = 0
        self._layers: tuple[ConvLayer, ...] = ()
        self._checkpoint: Checkpoint | None = None

    def code(self) -> int:
        """Run, and return the exit code.

        Raises:
            ConvsvError: nothing could be done.
        """
        head = Report(self._task.command, settings_of(self._task))
        outputs = self._outputs(head)
        sources = sources_of(self._task.geometry)
        paths = self._paths()
        _refuse_overwriting(paths, self._task)
        _refuse_sidecar(paths, self._task)
        if worst(*self._codes) == _USAGE and not any(path for path, _ in paths):
            return _USAGE
        analyst, computed = self._analyst()
        head = replace(head, settings={**head.settings, **computed})
        with outputs.opened(head):
            interrupted = self._all(paths, sources, analyst, outputs)
            with uninterrupted():
                outputs.end(replace(head, checkpoints=tuple(self._done), partial=interrupted))
            unread = outputs.unread
        if self._task.sidecar and not interrupted:
            self._write_sidecar(self._task.sidecar)
        for error in outputs.errors:
            self._screen.error(error)
            self._codes.append(exit_code(error))
        # After the results: on a terminal both streams are one. Without a reader they ended early, and so do counts.
        for checkpoint in self._done:
            self._say_missing(checkpoint)
        if not unread:
            self._say_assumed()
        return worst(*self._codes)

    def _outputs(self, head: Report) -> Outputs:
        """Return what takes the results."""
        task = self._task
        return Outputs(head, task.output, task.spectra, summary=task.summary, named=task.named)

    def _paths(self) -> Paths:
        """Return each checkpoint with its path, or with None where it is already known that there is none."""
        found: Paths = []
        for model in self._task.models.model:
            try:
                found += [(path, CheckpointReport(path, "")) for path in _expanded(model)]
            except Exception as error:  # noqa: BLE001 - whatever it is, the other checkpoints are still reported
                found.append((None, self._failed(CheckpointReport(model, ""), error)))
        return found

    def _all(self, paths: Paths, sources: GeometryOptions, analyst: Analyst, outputs: Outputs) -> bool:
        """Report on every checkpoint; return whether an interrupt ended it early."""
        if not outputs.rows_on_terminal:
            self._screen.start()
        try:
            for path, blank in paths:
                if not outputs.unread:
                    self._one(path, blank, partial(self._discover, sources), analyst, outputs)
        except KeyboardInterrupt as error:
            self._screen.stop()
            self._screen.error(error, "interrupted; the report is partial")
            self._codes.append(130)
            return True
        finally:
            self._screen.stop()
        return False

    def _one(self, path: str | None, known: CheckpointReport, find: Find, analyst: Analyst, outputs: Outputs) -> None:
        layers: list[LayerReport] = []
        interrupt: KeyboardInterrupt | None = None
        try:
            if path is not None:
                known, found = find(path)
                self._screen.expect(len(found))
                self._stream(known, analyst(found), layers, outputs)
                known = self._judged(known, found, layers)
        except KeyboardInterrupt as error:
            interrupt = error
        except Exception as error:  # noqa: BLE001 - whatever it is, the other checkpoints are still reported
            known = self._failed(known, error)
        complete = replace(known, layers=tuple(layers))
        with uninterrupted(), self._screen.paused():
            self._done.append(complete)
            outputs.checkpoint(complete)
        if interrupt:
            raise interrupt

    def _analyst(self) -> tuple[Analyst, dict[str, Any]]:
        """Return what turns layers into reports, and the settings that only the machine knows."""
        return _analyst(self._task)

    def _judged(
        self, known: CheckpointReport, found: Sequence[ConvLayer], layers: Sequence[LayerReport]
    ) -> CheckpointReport:
        """Return what is known of a checkpoint with what is said of all its layers together."""
        return known

    def _stream(
        self, known: CheckpointReport, found: Iterable[LayerReport], layers: list[LayerReport], outputs: Outputs
    ) -> None:
        """Hand out layers as they are finished, adding each to ``layers``."""
        for layer in found:
            with uninterrupted():
                layers.append(outputs.kept(layer))
                outputs.layer(known, layer)
            self._screen.advance()
            if outputs.unread:
                return

    def _discover(self, sources: GeometryOptions, path: str) -> tuple[CheckpointReport, tuple[ConvLayer, ...]]:
        """Return what is known of a checkpoint before its layers are computed, and its layers."""
        from convsv.checkpoints import open_checkpoint
        from convsv.checkpoints.discovery import discover

        with error_context(path=path):
            checkpoint = open_checkpoint(path)
            large, hollow = _size(checkpoint)
            hashed = not hollow and (self._task.command != "layers" or not large)
            known = CheckpointReport(path, checkpoint.format, checkpoint.sha256() if hashed else None)
            models = self._task.models
            found = discover(checkpoint, geometry=sources, include=models.include, exclude=models.exclude)
        problems = (*checkpoint.problems, *found.problems, *([_HOLLOW] if hollow else []))
        self._say(path, problems, found)
        self._layers, self._checkpoint = found.layers, checkpoint
        return replace(known, problems=problems), found.layers

    def _write_sidecar(self, path: Path) -> None:
        """Write what is known of the layers' geometry, unless there is nothing to write about."""
        if not self._layers:
            self._screen.warning(f"{path}: not written, because there are no layers")
            return
        from convsv.checkpoints._sidecar_writing import Described, sidecar_text
        from convsv.files import replacing

        described = [Described(x.name.removesuffix(x.call), x.kind, x.shape, x.geometry) for x in self._layers]
        try:
            with replacing(str(path)) as temporary:
                temporary.write_text(sidecar_text(described), encoding="utf-8", newline="\n")
        except OutputError as error:
            self._screen.error(error)
            self._codes.append(exit_code(error))

    # ------------------------------------------------------------------------------------------- standard error

    def _failed(self, known: CheckpointReport, error: Exception) -> CheckpointReport:
        """Say that a checkpoint failed, and return its report with the reason among its problems."""
        if isinstance(error, ConvsvError):
            error.path = error.path or known.path
            text = str(error)
        else:
            text = f"{known.path}: {one_line(error)}"
        with self._screen.paused():
            self._screen.error(error, text)
        self._codes.append(exit_code(error))
        return replace(known, problems=(*known.problems, text), failed=True)

    def _say(self, path: str, problems: Sequence[str], found: Discovery) -> None:
        with self._screen.paused():
            for problem in problems[:_LINES]:
                self._screen.warning(problem if problem.startswith(path) else f"{path}: {problem}")
            if len(problems) > _LINES:
                self._screen.warning(f"{path}: and {len(problems) - _LINES} more problems; --format json has them all")
            if self._screen.verbose:
                for skipped in found.skipped:
                    self._screen.note(f"{path}: {skipped.key} is no layer ({skipped.rule}): {skipped.reason}")
            elif found.skipped:
                rules = Counter(skipped.rule for skipped in found.skipped)
                kinds = ", ".join(f"{rule} {count}" for rule, count in rules.most_common())
                count = counted(len(found.skipped), "other tensor")
                self._screen.note(f"{path}: {count} shaped like kernels left out ({kinds}); --verbose names them")
            if not found.layers:
                self._screen.note(f"{path}: no convolutions to report")
            folded = sum(layer.folded is not None for layer in found.layers)
            if folded:
                kernels = counted(folded, "layer")
                self._screen.note(f"{path}: {kernels} reported with the batch normalisation behind them folded in")

    def _say_missing(self, checkpoint: CheckpointReport) -> None:
        """Say which results are unavailable, and count what was assumed."""
        reasons: dict[tuple[str, str], list[str]] = defaultdict(list)
        for layer in checkpoint.layers:
            for what, why in layer.unavailable.items():
                reasons[what, why].append(layer.name)
            self._assumed.update(assumed(layer))
            self._leaning += bool(assumed(layer))
            self._codes += [5] if layer.failures else []
        for (what, why), names in list(reasons.items())[:_LINES]:
            shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
            self._screen.warning(f"{checkpoint.path}: no {what} for {shown}: {why}")
        if len(reasons) > _LINES:
            self._screen.warning(f"{checkpoint.path}: and {len(reasons) - _LINES} more reasons; see the report")

    def _say_assumed(self) -> None:
        if self._assumed:
            kinds = ", ".join(f"{name} {count}" for name, count in self._assumed.most_common())
            self._screen.note(
                f"{counted(self._leaning, 'layer')} with assumed geometry, marked ? in tables ({kinds}); "
                "state it with --size, --padding-mode or --geometry FILE.toml, or trace the model with --model"
            )


def _size(checkpoint: Checkpoint) -> tuple[bool, bool]:
    """Tell whether a checkpoint is large, and whether it is a large one with next to nothing on the disk."""
    large = checkpoint.byte_size > _HASHED_BY_LAYERS
    return large, large and checkpoint.byte_size > _HOLES * checkpoint.stored_size


def _expanded(model: str) -> tuple[str, ...]:
    """Return the checkpoints that a path names.

    Raises:
        UsageError: there is no such file.
        CheckpointError: a folder holds none.
    """
    from convsv.checkpoints import find_checkpoints

    if not Path(model).exists():
        raise UsageError("no such file", path=model)
    # A file is called what the user calls it: Path would take "./" away.
    return tuple(map(str, find_checkpoints(model))) if Path(model).is_dir() else (model,)


def counted(number: int, what: str) -> str:
    """Return a number of things in words."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _refuse_overwriting(paths: Paths, task: Task) -> None:
    """Refuse to write over what is read.

    Raises:
        UsageError: an output is one of the checkpoints.
    """
    inputs = {os.path.realpath(path) for path, _ in paths if path}
    for target in (*task.output.output, *(str(path) for path in (task.spectra.spectra, task.sidecar) if path)):
        if os.path.realpath(target) in inputs:
            raise UsageError("is to be read and written", path=target, advice="give the output another name")


def _refuse_sidecar(paths: Paths, task: Task) -> None:
    """Refuse to write a geometry file over something, or about several checkpoints.

    Raises:
        UsageError: there is such a file, or there are several checkpoints.
    """
    target = task.sidecar
    if target is None:
        return
    if len(paths) > 1:
        raise UsageError("--write-geometry is about one checkpoint", found=f"{len(paths)}")
    if os.path.lexists(target) and not task.force:
        raise UsageError("is there already", path=str(target), advice="give another name, or --force to replace it")


def sources_of(stated: GeometrySources) -> GeometryOptions:
    """Return what the user says about geometry, its files read and the model traced.

    Raises:
        UsageError: a file, or the model, is not as it must be.
    """
    from convsv.checkpoints.sidecar import read_sidecar
    from convsv.checkpoints.sources import GeometryOptions

    return GeometryOptions(
        size=stated.spatial_size,
        padding_mode=stated.padding_mode.value if stated.padding_mode else None,
        sidecar=read_sidecar(stated.geometry) if stated.geometry else None,
        trace=_trace(stated),
        fold=stated.fold,
    )


def _trace(stated: GeometrySources) -> Trace | None:
    """Run the user's model, if there is one to run.

    Raises:
        UsageError: options that need each other, or the model cannot be imported, built or run.
    """
    if stated.trace is None:
        lonely = "--input-shape" if stated.input_shape else "--model-args" if stated.model_args else None
        if lonely:
            raise UsageError(f"{lonely} is about the model to trace", advice="name it with --model PKG.MOD:CALLABLE")
        return None
    if not stated.input_shape:
        raise UsageError("--model needs the shape of its input", advice="add for instance --input-shape 3x224x224")
    from convsv.tracing import InputShape, trace

    inputs = [InputShape(*parse_input(text)) for text in stated.input_shape]
    return trace(stated.trace, inputs, stated.model_args)


def settings_of(task: Task) -> dict[str, Any]:
    """Return the options that matter for the numbers, as far as they are known without computing anything."""
    stated = task.geometry
    settings: dict[str, Any] = {
        "size": stated.spatial_size,
        "padding_mode": stated.padding_mode.value if stated.padding_mode else None,
        "geometry": str(stated.geometry) if stated.geometry else None,
        "model": stated.trace,
        "model_args": stated.model_args,
        "input_shape": stated.input_shape,
        "fold_bn": stated.fold,
        "include": task.models.include,
        "exclude": task.models.exclude,
        "methods": task.methods,
        "norm": task.norm,
    }
    if task.computing:
        settings |= {
            "device": task.computing.device,
            "dtype": task.computing.dtype.value,
            "tol": task.computing.tol,
            "memory": parse_memory(task.computing.memory),
            "jobs": task.computing.jobs,
        }
    if "exact" in task.methods:
        settings |= vars(task.exact)
    settings |= task.more
    return settings


def _spectrum_options(task: Task) -> SpectrumOptions:
    """Return what is wanted of spectra.

    Raises:
        UsageError: options that contradict each other, or that no method of this call looks at.
    """
    from convsv.spectra import SpectrumOptions

    wanted = task.exact
    if wanted.is_asked_for and "exact" not in task.methods:
        raise UsageError(
            "--top, --trailing, --full and --density are about the exact spectrum", advice="add --method exact"
        )
    return SpectrumOptions(top=wanted.top, trailing=wanted.trailing, full=wanted.full, density=wanted.density)


def _analyst(task: Task) -> tuple[Analyst, dict[str, Any]]:
    """Return what turns layers into reports, and the settings that only the machine knows."""
    if task.computing is None:
        from convsv.describe import describe

        return lambda layers: map(describe, layers), {}
    from convsv.analysis import AnalysisOptions, analyze
    from convsv.execution import Execution

    execution = Execution(
        device=task.computing.device,
        dtype=task.computing.dtype.value,
        memory=parse_memory(task.computing.memory),
        jobs=task.computing.jobs,
    )
    options = AnalysisOptions(
        methods=task.methods,
        norm=task.norm,
        tol=task.computing.tol,
        values=task.spectra.values or task.spectra.spectra is not None,
        execution=execution,
        spectra=_spectrum_options(task),
    )
    return lambda layers: analyze(layers, options), {"device": str(execution.torch_device), "jobs": execution.threads}
