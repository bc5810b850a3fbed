"""What every verb that reports on layers does: open, find, compute, write. A bad checkpoint never stops the others."""

from __future__ import annotations

import gc
import math
import os
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import typer

from convsv.cli._analyst import Analyst, analyst_of
from convsv.cli._caching import Kept
from convsv.cli._inputs import Inputs
from convsv.cli._output import Outputs, interrupts_watched, uninterrupted
from convsv.cli._screen import Screen, exit_code, one_line, worst
from convsv.cli._task import Task, settings_of, sources_of
from convsv.errors import AbandonedError, CheckpointError, ConvsvError, OutputError, UsageError, error_context
from convsv.reports._summary import assumed
from convsv.results import CheckpointReport, LayerReport, Report

if TYPE_CHECKING:
    from convsv.cache import Checkpoints
    from convsv.checkpoints import Checkpoint
    from convsv.checkpoints.discovery import Discovery, Skipped
    from convsv.checkpoints.sources import GeometryOptions
    from convsv.layer import ConvLayer

__all__ = ["Begun", "Run", "counted", "run"]

Find: TypeAlias = "Callable[[str], tuple[CheckpointReport, tuple[ConvLayer, ...]]]"

_HASHED_BY_LAYERS = 64 << 20
"""``layers`` promises to read headers only: larger files go without a hash there."""
_HOLES = 8
_HOLLOW = "consists of holes for the most part: not hashed"
_UNNOTICED = 0.1
"""Seconds for which a row may wait for others."""
_OF_A_KIND = 4
"""How many times as many weights the next layer may have for that: not much of a wait after one of milliseconds."""
_USAGE = 2
_SHOWN = 3
_LINES = 20


def run(task: Task, *, dry: bool = False) -> None:
    """Do a task.

    Args:
        task: what is asked for.
        dry: only tell what it would cost.

    Raises:
        ConvsvError: nothing could be done, for instance because of wrong options.
        typer.Exit: it is done, with an exit code other than 0.
    """
    screen = Screen(quiet=task.output.quiet, verbose=task.output.verbose)
    if dry:
        from convsv.cli._plan import PlanRun

        code = PlanRun(task, screen).code()
    else:
        code = Run(task, screen).code()
    if code:
        raise typer.Exit(code)


@dataclass
class Begun:
    """A checkpoint whose layers are known, and may be in work.

    Attributes:
        known: its report so far.
        layers: its layers.
        reports: what is said of them, in order.
        path: where it is; None where there is none.
        interrupt: what ended it, and the whole run, early.
        keep: keeps its report for later calls, when that is complete.
    """

    known: CheckpointReport
    path: str | None = None
    layers: Sequence[ConvLayer] = ()
    reports: Iterable[LayerReport] = ()
    interrupt: KeyboardInterrupt | AbandonedError | None = None
    keep: Callable[[CheckpointReport], None] | None = None


class Run:
    """One call of a verb, from its options to its exit code.

    Args:
        task: what is asked for.
        screen: where notes and errors go.
    """

    _recalls = True
    """Whether the report of an unchanged checkpoint says all that is needed of it."""

    def __init__(self, task: Task, screen: Screen) -> None:
        self._task, self._screen = task, screen
        self._codes = [0]
        self._done: list[CheckpointReport] = []
        self._assumed: Counter[str] = Counter()
        self._leaning = 0
        self._layers: tuple[ConvLayer, ...] = ()
        self._checkpoint: Checkpoint | None = None
        self._kept = Kept(task.computing)
        self._known: Checkpoints | None = None
        self._skipped: tuple[Skipped, ...] = ()
        self._resources = ExitStack()
        self._resources.callback(self._kept.close)  # the first one here is the last to go
        self._ahead: Callable[[], int] = lambda: 0
        self._count: int | None = None
        self._written = 0.0

    def code(self) -> int:
        """Run, and return the exit code.

        Raises:
            ConvsvError: nothing could be done.
        """
        head = Report(self._task.command, settings_of(self._task))
        outputs = self._outputs(head)
        sources = sources_of(self._task.geometry)
        paths = self._paths()
        paths.protect(_written(self._task))
        _refuse_sidecar(paths, self._task)
        if worst(*self._codes) == _USAGE and paths.complete and not any(path for path, _ in paths.known):
            return _USAGE
        self._count = len(paths.known) if paths.complete else None
        analyst, computed = self._analyst()
        self._known = self._kept.checkpoints(self._task, sources) if self._recalls else None
        head = replace(head, settings={**head.settings, **computed})
        with self._resources, interrupts_watched(), outputs.opened(head):
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
        for checkpoint in self._done if self._keeps(outputs) else ():
            self._say_missing(checkpoint)
        if not unread:
            self._say_assumed()
        self._say_kept()
        return worst(*self._codes)

    def _outputs(self, head: Report) -> Outputs:
        """Return what takes the results."""
        task = self._task
        return Outputs(head, task.output, task.spectra, summary=task.summary, named=task.named)

    def _paths(self) -> Inputs:
        """Return each checkpoint with its path, or with None where it is already known that there is none."""
        return Inputs(self._task.models.model, self._failed)

    def _keeps(self, outputs: Outputs) -> bool:
        """Tell whether layers are needed when all is done; what nobody needs is let go checkpoint by checkpoint."""
        return not outputs.streams

    def _all(self, paths: Inputs, sources: GeometryOptions, analyst: Analyst, outputs: Outputs) -> bool:
        """Report on every checkpoint; return whether an interrupt ended it early."""
        if not outputs.rows_on_terminal:
            self._screen.start()
        # The libraries that are loaded by now are not searched for garbage again and again.
        gc.freeze()
        try:
            self._each(paths, partial(self._discover, sources), analyst, outputs)
        except (KeyboardInterrupt, AbandonedError) as error:
            self._screen.stop()
            what = str(error) if isinstance(error, AbandonedError) else "interrupted"
            self._screen.error(error, f"{what}; the report is partial")
            self._codes.append(exit_code(error))
            return True
        finally:
            gc.unfreeze()
            self._screen.stop()
        return False

    def _each(self, paths: Inputs, find: Find, analyst: Analyst, outputs: Outputs) -> None:
        """Report on every checkpoint in order; as many as pay are begun before their turn."""
        waiting: deque[Begun] = deque()
        # A list that is still being written may be long in telling what comes next.
        ahead = self._ahead if paths.complete else lambda: 0
        for path, blank in paths:
            if outputs.unread:
                return
            begun = self._begin(path, blank, find, analyst)
            if begun.interrupt:
                waiting.clear()
            waiting.append(begun)
            if len(waiting) > ahead() or begun.interrupt:
                self._finish(waiting.popleft(), outputs)
        while waiting and not outputs.unread:
            self._finish(waiting.popleft(), outputs)

    def _begin(self, path: str | None, known: CheckpointReport, find: Find, analyst: Analyst) -> Begun:
        """Find the layers of a checkpoint and hand them to the analyst, which need not wait until it is asked."""
        begun = Begun(known, path)
        if path is None:
            return begun
        try:
            if self._recalled(begun, path):
                return begun
            begun.known, begun.layers = find(path)
            self._screen.expect(len(begun.layers))
            begun.reports = analyst(begun.layers)
            begun.keep = self._keeper(path)
        except (KeyboardInterrupt, AbandonedError) as error:
            begun.interrupt = error
        except Exception as error:  # noqa: BLE001 - whatever it is, the other checkpoints are still reported
            begun.known = self._failed(begun.known, error)
        return begun

    def _recalled(self, begun: Begun, path: str) -> bool:
        """Take the report of a checkpoint from an earlier call, if its file is still the same."""
        from convsv.checkpoints import RegularFile

        known = self._known and self._known.recall(path, lambda: RegularFile(path).sha256())
        if not known:
            return False
        layers = known.report.layers
        begun.known, begun.reports = replace(known.report, layers=()), layers
        self._tell(path, known.report.problems, known.skipped, [layer.folded is not None for layer in layers])
        self._screen.expect(len(layers))
        self._kept.memory.recalled += len(layers)
        return True

    def _keeper(self, path: str) -> Callable[[CheckpointReport], None] | None:
        """Return what keeps the report of the checkpoint that was discovered last.

        Only that of one whole file is kept: what is said about a damaged one, or about one whose other files are
        missing, may depend on more than its content.
        """
        from convsv.cache import Finished

        checkpoint, known = self._checkpoint, self._known
        if checkpoint is None or known is None or len(checkpoint.files) != 1 or checkpoint.problems:
            return None
        skipped = tuple((found.key, found.rule, found.reason) for found in self._skipped)
        return lambda report: known.keep(path, Finished(report, skipped))

    def _finish(self, begun: Begun, outputs: Outputs) -> None:
        """Hand out the reports of a checkpoint as they come."""
        known, layers = begun.known, list[LayerReport]()
        interrupt = begun.interrupt
        try:
            self._stream(begun, layers, outputs)
            known = known if known.failed or interrupt else self._judged(known, begun.layers, layers)
            if begun.keep and not interrupt and len(layers) == len(begun.layers):
                begun.keep(replace(known, layers=tuple(layers)))
        except (KeyboardInterrupt, AbandonedError) as error:
            interrupt = error
        except Exception as error:  # noqa: BLE001 - whatever it is, the other checkpoints are still reported
            known = self._failed(known, error)
        complete = replace(known, layers=tuple(layers))
        with uninterrupted(), self._screen.paused():
            outputs.checkpoint(complete)
            if self._keeps(outputs):
                self._done.append(complete)
            else:
                self._say_missing(complete)
        if interrupt:
            raise interrupt

    def _analyst(self) -> tuple[Analyst, dict[str, Any]]:
        """Return what turns layers into reports, and the settings that only the machine knows."""
        found = analyst_of(self._task, self._kept, self._count)
        self._resources.callback(found.close)
        self._ahead = found.ahead
        return found.analyst, found.settings

    def _judged(
        self, known: CheckpointReport, found: Sequence[ConvLayer], layers: Sequence[LayerReport]
    ) -> CheckpointReport:
        """Return what is known of a checkpoint with what is said of all its layers together."""
        return known

    def _stream(self, begun: Begun, layers: list[LayerReport], outputs: Outputs) -> None:
        """Hand out layers as they are finished, adding each to ``layers``.

        Those that follow each other quickly come together: right after a computation, with the processor's caches full
        of other things, a row costs twice as much. None waits for a layer that may take much longer.
        """
        waiting: list[LayerReport] = []
        following = iter(begun.layers[1:])
        try:
            for layer in begun.reports:
                waiting.append(layer)
                is_late = time.monotonic() - self._written > _UNNOTICED
                if is_late or _is_larger(next(following, None), layer):
                    self._hand_out(begun.known, waiting, layers, outputs)
                self._screen.advance()
                if outputs.unread:
                    return
        finally:
            self._hand_out(begun.known, waiting, layers, outputs)

    def _hand_out(
        self, known: CheckpointReport, waiting: list[LayerReport], layers: list[LayerReport], outputs: Outputs
    ) -> None:
        """Hand out some layers, which then wait no more."""
        with uninterrupted():
            layers.extend(map(outputs.kept, waiting))
            outputs.layers(known, waiting)
            waiting.clear()
        self._written = time.monotonic()

    def _discover(self, sources: GeometryOptions, path: str) -> tuple[CheckpointReport, tuple[ConvLayer, ...]]:
        """Return what is known of a checkpoint before its layers are computed, and its layers."""
        from convsv.checkpoints import open_checkpoint
        from convsv.checkpoints.discovery import discover

        with error_context(path=path):
            checkpoint = open_checkpoint(path)
            large, hollow = _size(checkpoint)
            hashed = checkpoint.is_local and not hollow and self._hashes(large)
            sha256, unhashed = _hashed(checkpoint) if hashed else (None, _HOLLOW if hollow else None)
            known = CheckpointReport(path, checkpoint.format, sha256)
            models = self._task.models
            found = discover(checkpoint, geometry=sources, include=models.include, exclude=models.exclude)
        problems = (*checkpoint.problems, *found.problems, *([unhashed] if unhashed else []))
        self._say(path, problems, found)
        self._layers, self._checkpoint, self._skipped = found.layers, checkpoint, found.skipped
        return replace(known, problems=problems), found.layers

    def _hashes(self, large: bool) -> bool:
        """Tell whether the whole file is read for its hash."""
        return self._task.command != "layers" or not large

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
        skipped = tuple((each.key, each.rule, each.reason) for each in found.skipped)
        self._tell(path, problems, skipped, [layer.folded is not None for layer in found.layers])

    def _tell(
        self, path: str, problems: Sequence[str], skipped: Sequence[tuple[str, str, str]], folded: Sequence[bool]
    ) -> None:
        """Say what was found: problems, what is no layer and why, and of each layer whether it is folded."""
        with self._screen.paused():
            for problem in problems[:_LINES]:
                self._screen.warning(problem if problem.startswith(path) else f"{path}: {problem}")
            if len(problems) > _LINES:
                self._screen.warning(f"{path}: and {len(problems) - _LINES} more problems; --format json has them all")
            if self._screen.verbose:
                for key, rule, reason in skipped:
                    self._screen.note(f"{path}: {key} is no layer ({rule}): {reason}")
            elif skipped:
                rules = Counter(rule for _, rule, _ in skipped)
                kinds = ", ".join(f"{rule} {count}" for rule, count in rules.most_common())
                count = counted(len(skipped), "other tensor")
                self._screen.note(f"{path}: {count} shaped like kernels left out ({kinds}); --verbose names them")
            if not folded:
                self._screen.note(f"{path}: no convolutions to report")
            if any(folded):
                kernels = counted(sum(folded), "layer")
                self._screen.note(f"{path}: {kernels} reported with the batch normalisation behind them folded in")

    def _say_missing(self, checkpoint: CheckpointReport) -> None:
        """Say which results are unavailable, and count what was assumed."""
        reasons: dict[tuple[str, str], list[str]] = defaultdict(list)
        unread: dict[str, list[str]] = defaultdict(list)
        for layer in checkpoint.layers:
            for what, why in layer.unavailable.items():
                if why != layer.unread:
                    reasons[what, why].append(layer.name)
            if layer.unread:
                unread[layer.unread].append(layer.name)
            guesses = assumed(layer)
            self._assumed.update(guesses)
            self._leaning += bool(guesses)
            self._codes += [5] if layer.failures else []
        self._say_unread(checkpoint, unread)
        for (what, why), names in list(reasons.items())[:_LINES]:
            self._screen.warning(f"{checkpoint.path}: no {what} for {_first(names)}: {why}")
        if len(reasons) > _LINES:
            self._screen.warning(f"{checkpoint.path}: and {len(reasons) - _LINES} more reasons; see the report")

    def _say_unread(self, checkpoint: CheckpointReport, unread: Mapping[str, Sequence[str]]) -> None:
        """Say which layers' weights could not be read: the checkpoint is damaged, whatever else was read of it."""
        for why, names in list(unread.items())[:_LINES]:
            error = CheckpointError(f"weights cannot be read: {why}", path=checkpoint.path, tensor=_first(names))
            self._screen.error(error)
            self._codes.append(exit_code(error))
        if len(unread) > _LINES:
            error = CheckpointError(f"and {len(unread) - _LINES} more reasons; see the report", path=checkpoint.path)
            self._screen.error(error)

    def _say_assumed(self) -> None:
        if self._assumed:
            kinds = ", ".join(f"{name} {count}" for name, count in self._assumed.most_common())
            self._screen.note(
                f"{counted(self._leaning, 'layer')} with assumed geometry, marked ? in tables ({kinds}); "
                "state it with --size, --padding-mode or --geometry FILE.toml, or trace the model with --model"
            )

    def _say_kept(self) -> None:
        """Say what was not computed now, and why nothing is kept."""
        folder, known = self._kept.folder, self._kept.memory.recalled
        if known:
            self._screen.note(f"{counted(known, 'layer')} known from an earlier call; --no-cache computes anew")
        if folder and folder.trouble and self._screen.verbose:
            self._screen.note(f"{folder.path}: nothing is kept for later calls: {folder.trouble}")


def _first(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _is_larger(following: ConvLayer | None, layer: LayerReport) -> bool:
    return following is not None and math.prod(following.shape) > _OF_A_KIND * math.prod(layer.shape)


def _hashed(checkpoint: Checkpoint) -> tuple[str | None, str | None]:
    """Return the hash of a checkpoint, or why there is none: what cannot be read need not be a layer."""
    try:
        return checkpoint.sha256(), None
    except CheckpointError as error:
        return None, f"not hashed: {error.reason}"


def _size(checkpoint: Checkpoint) -> tuple[bool, bool]:
    """Tell whether a checkpoint is large, and whether it is a large one with next to nothing on the disk."""
    large = checkpoint.byte_size > _HASHED_BY_LAYERS
    return large, large and checkpoint.byte_size > _HOLES * checkpoint.stored_size


def counted(number: int, what: str) -> str:
    """Return a number of things in words."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _written(task: Task) -> list[str]:
    """Return the files that a task writes."""
    return [*task.output.output, *(str(path) for path in (task.spectra.spectra, task.sidecar) if path)]


def _refuse_sidecar(paths: Inputs, task: Task) -> None:
    """Refuse to write a geometry file over something, or about several checkpoints.

    Raises:
        UsageError: there is such a file, or there are several checkpoints.
    """
    target = task.sidecar
    if target is None:
        return
    if paths.several:
        found = f"{len(paths.known)}" if paths.complete else "a list"
        raise UsageError("--write-geometry is about one checkpoint", found=found)
    if os.path.lexists(target) and not task.force:
        raise UsageError("is there already", path=str(target), advice="give another name, or --force to replace it")
