"""What ``convsv compare`` does: read checkpoints and reports, then go through them layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np
import typer
from numpy.typing import NDArray

from convsv.cli._analyst import Analyst
from convsv.cli._inputs import Inputs
from convsv.cli._output import Outputs, uninterrupted
from convsv.cli._run import Run, counted
from convsv.cli._screen import Screen, exit_code, worst
from convsv.cli._task import Task, settings_of, sources_of
from convsv.cli.options import Spectra
from convsv.comparison import Version, compare_layers, happened, in_order, parse_conditions
from convsv.describe import describe
from convsv.errors import CheckpointError, GeometryError, UnavailableError, UsageError
from convsv.report_file import looks_like_report, read_report
from convsv.results import CheckpointReport, Comparison, LayerChange, LayerReport, Report, Spectrum, Step

if TYPE_CHECKING:
    from convsv.cli.compare import Differences, Versions
    from convsv.cli.options import Computing, GeometrySources, Output
    from convsv.comparison import Condition
    from convsv.layer import ConvLayer

__all__ = ["run_compare"]

_CHANGED = 1
_MOST_FILES = 1 << 16
_SHOWN = 10


def run_compare(
    versions: Versions, differences: Differences, geometry: GeometrySources, computing: Computing, output: Output
) -> None:
    """Compare checkpoints.

    Raises:
        ConvsvError: nothing could be done, for instance because of wrong options.
        typer.Exit: it is done, with an exit code other than 0.
    """
    conditions = parse_conditions(differences.fail_on)
    method = None if differences.method.value == "none" else differences.method.value
    more = {"fail_on": tuple(condition.text for condition in conditions)}
    methods = (method,) if method else ()
    kept = Spectra(values=True)  # of one layer at a time; reports never hold them
    task = Task("compare", versions, geometry, output, computing, kept, methods, norm=True, more=more)
    screen = Screen(quiet=output.quiet, verbose=output.verbose)
    code = _CompareRun(task, screen, conditions, method).code()
    if code:
        raise typer.Exit(code)


@dataclass
class _Side:
    """One checkpoint: read from a file of its own, or from a report.

    ``reports`` is complete for a report, and fills up for a checkpoint.
    """

    known: CheckpointReport
    layers: Mapping[str, ConvLayer] | None = None
    reports: dict[str, LayerReport] = field(default_factory=dict)

    @property
    def names(self) -> Mapping[str, object]:
        """Its layers, in order."""
        return self.reports if self.layers is None else self.layers


class _CompareRun(Run):
    """One call of ``compare``."""

    def __init__(self, task: Task, screen: Screen, conditions: Sequence[Condition], method: str | None) -> None:
        super().__init__(task, screen)
        self._conditions, self._method = conditions, method
        self._analyse: Analyst | None = None

    def code(self) -> int:
        """Run, and return the exit code.

        Raises:
            UsageError: wrong options, or there is only one checkpoint.
        """
        task = self._task
        head = Report(task.command, settings_of(task))
        outputs = Outputs(head, task.output, Spectra())
        sides = self._sides()
        if len(sides) < 2 and worst(*self._codes) == 0:
            found = f"{counted(len(sides), 'checkpoint')}"
            raise UsageError("there is nothing to compare with", found=found, advice="give OLD and NEW")
        if len(sides) < 2:
            return worst(*self._codes)
        with self._resources, outputs.opened(head):
            comparison, interrupted = self._compared(sides)
            self._done = [replace(side.known, layers=tuple(side.reports.values())) for side in sides]
            whole = replace(head, checkpoints=tuple(self._done), partial=interrupted, comparison=comparison)
            with uninterrupted():
                _write(outputs, whole)
        for error in outputs.errors:
            self._screen.error(error)
            self._codes.append(exit_code(error))
        for checkpoint in self._done:
            self._say_missing(checkpoint)
        self._say_happened(comparison)
        self._say_kept()
        return worst(*self._codes)

    # ---------------------------------------------------------------------------------------------------------- reading

    def _paths(self) -> Inputs:
        """Return each checkpoint or report.

        Raises:
            UsageError: an output is one of the inputs.
        """
        paths = Inputs(self._task.models.model, self._failed, looks_like_report)
        paths.protect(self._task.output.output)
        if paths.several:
            _allow_many_files()
        return paths

    def _sides(self) -> list[_Side]:
        """Return every checkpoint that could be read, in order; say which could not."""
        sides: list[_Side] = []
        sources = sources_of(self._task.geometry)
        for path, blank in self._paths():
            if path is None:
                continue
            try:
                if looks_like_report(path):
                    sides += self._from_report(path)
                else:
                    known, layers = self._discover(sources, path)
                    sides.append(_Side(known, {layer.name: layer for layer in layers}))
            except Exception as error:  # noqa: BLE001 - whatever it is, the others are still compared
                self._failed(blank, error)
        return sides

    def _from_report(self, path: str) -> list[_Side]:
        """Return the checkpoints of a report.

        Raises:
            CheckpointError: it cannot be read, or holds no checkpoint.
        """
        report = read_report(path)
        models = self._task.models
        sides = []
        for checkpoint in report.checkpoints:
            chosen = {
                layer.name: layer
                for layer in checkpoint.layers
                if any(fnmatchcase(layer.name, glob) for glob in models.include or ["*"])
                and not any(fnmatchcase(layer.name, glob) for glob in models.exclude)
            }
            name = path if len(report.checkpoints) == 1 else f"{path}: {checkpoint.path}"
            if checkpoint.format:
                sides.append(_Side(replace(checkpoint, path=name, layers=()), None, chosen))
        if not sides:
            raise CheckpointError("holds no checkpoint that could be read", path=path)
        return sides

    # -------------------------------------------------------------------------------------------------------- comparing

    def _compared(self, sides: Sequence[_Side]) -> tuple[Comparison, bool]:
        """Go through the layers, all versions of one before the next; tell whether an interrupt ended it early."""
        names = in_order([side.names for side in sides])
        found: list[list[LayerChange]] = [[] for _ in sides[1:]]
        interrupted = False
        self._screen.start()
        self._screen.expect(len(names))
        try:
            for name in names:
                versions = self._versions(name, sides)
                pairs = zip(found, versions, versions[1:], strict=False)
                for changes, old, new in (pair for pair in pairs if pair[1] or pair[2]):
                    changes.append(compare_layers(name, old, new, self._method))
                self._screen.advance()
        except KeyboardInterrupt as error:
            self._screen.stop()
            self._screen.error(error, "interrupted; the report is partial")
            self._codes.append(130)
            interrupted = True
        finally:
            self._screen.stop()
        paths = [side.known.path for side in sides]
        ends = zip(paths, paths[1:], found, strict=False)
        steps = tuple(Step(old, new, tuple(changes)) for old, new, changes in ends)
        return Comparison(steps, happened(steps, self._conditions)), interrupted

    def _versions(self, name: str, sides: Sequence[_Side]) -> list[Version | None]:
        versions: list[Version | None] = []
        for side in sides:
            before = versions[-1] if versions else None
            versions.append(self._version(name, side, before))
        return versions

    def _version(self, name: str, side: _Side, before: Version | None) -> Version | None:
        known = side.known
        if side.layers is None:
            report = side.reports.get(name)
            return None if report is None else Version(report, content=known.sha256, form=known.format)
        layer = side.layers.get(name)
        if layer is None:
            return None
        kernel, report, why_not, unread = None, None, "", None
        try:
            grouped = layer.kernel()
            kernel = grouped.reshape(-1, *grouped.shape[2:])
            report = _repeated(layer, before, kernel) or self._analysed(layer)
        except (UnavailableError, GeometryError) as error:
            why_not = error.what
        except CheckpointError as error:
            why_not = unread = error.reason
        if report is None:
            report = replace(describe(layer), unavailable={"norm": why_not}, unread=unread)
        side.reports[name] = _without_values(report)
        return Version(report, kernel, why_not, known.sha256, known.format)

    def _analysed(self, layer: ConvLayer) -> LayerReport:
        if self._analyse is None:  # two reports need none of it
            self._analyse, _ = self._analyst()
        return next(self._analyse([layer]))

    def _say_happened(self, comparison: Comparison) -> None:
        """Name the changes that were to be noticed."""
        for step, name, condition in comparison.happened[:_SHOWN]:
            pair = comparison.steps[step]
            self._screen.verdict(f"{pair.old} -> {pair.new}: {condition}: {name}")
        if len(comparison.happened) > _SHOWN:
            self._screen.verdict(f"and {len(comparison.happened) - _SHOWN} more; see the report")
        self._codes += [_CHANGED] if comparison.happened else []


def _allow_many_files() -> None:
    """Let this process have as many files open as the system allows it: all versions are compared layer by layer."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _write(outputs: Outputs, report: Report) -> None:
    for checkpoint in report.checkpoints:
        outputs.layers(checkpoint, checkpoint.layers)
        outputs.checkpoint(checkpoint)
    outputs.end(report)


def _repeated(layer: ConvLayer, before: Version | None, kernel: NDArray[np.float64]) -> LayerReport | None:
    """Return the report of the version before, if kernel and geometry are the same to the last bit."""
    if before is None or before.kernel is None or before.kernel.shape != kernel.shape:
        return None
    old = before.report
    if old.geometry != layer.geometry or old.geometry.origin != layer.geometry.origin:
        return None
    if old.failures or not np.array_equal(before.kernel, kernel):
        return None
    return replace(old, weight=layer.weight, shape=layer.shape, dtype=layer.dtype, notes=layer.notes)


def _without_values(report: LayerReport) -> LayerReport:
    results = {
        method: found.without_whole_values() if isinstance(found, Spectrum) else found
        for method, found in report.results.items()
    }
    return replace(report, results=results)
