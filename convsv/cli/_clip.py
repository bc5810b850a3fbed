"""What ``convsv clip`` does: find the layers, clip them, write the new checkpoint, and only then report."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import typer

from convsv.cli._analyst import Analyst
from convsv.cli._inputs import Inputs
from convsv.cli._output import Outputs, uninterrupted
from convsv.cli._run import Begun, Run, counted
from convsv.cli._screen import Screen
from convsv.cli._task import Task
from convsv.cli._words import parse_memory
from convsv.errors import UsageError, error_context
from convsv.reports import WRITERS
from convsv.results import CheckpointReport

if TYPE_CHECKING:
    from convsv.checkpoints.sources import GeometryOptions
    from convsv.cli.clip import OneModel, Reports, Target, Wanted
    from convsv.cli.options import Computing, GeometrySources
    from convsv.editing import ClipPlan, Outcome
    from convsv.layer import ConvLayer

__all__ = ["run_clip"]

_SHOWN = 4


def run_clip(
    models: OneModel,
    wanted: Wanted,
    target: Target,
    geometry: GeometrySources,
    computing: Computing,
    output: Reports,
) -> None:
    """Clip a checkpoint.

    Raises:
        ConvsvError: nothing could be done, for instance because of wrong options.
        typer.Exit: it is done, with an exit code other than 0.
    """
    _check_target(target)
    more = {**_settings(wanted), "checkpoint": models.model[0], "output": target.out, "dry_run": target.dry_run}
    task = Task("clip", models, geometry, output, computing, more=more)
    screen = Screen(quiet=output.quiet, verbose=output.verbose)
    code = _ClipRun(task, screen, wanted, target).code()
    if code:
        raise typer.Exit(code)


def _check_target(target: Target) -> None:
    """Refuse a target before anything is computed, where it is known to be refused afterwards.

    Raises:
        UsageError: there is none, it is there already, or its name is that of a report.
    """
    if target.dry_run:
        return
    if not target.out:
        raise UsageError("where to write the new checkpoint is missing", advice="give -o OUT, or --dry-run")
    suffix = PurePath(target.out).suffix.lower()
    if any(suffix in writer.suffixes for _, writer in WRITERS.items()):
        raise UsageError("-o is the new checkpoint", path=target.out, advice="name reports with --report")
    if os.path.lexists(target.out) and not target.force:
        raise UsageError("is there already", path=target.out, advice="give another name, or --force to replace it")


def _settings(wanted: Wanted) -> dict[str, Any]:
    return {
        "max_norm": wanted.max_norm,
        "radii": str(wanted.radii) if wanted.radii else None,
        "method": wanted.method.value,
        "of": wanted.of.value if wanted.of else "any size",
        "min_norm": wanted.min_norm,
        "flatten": wanted.flatten,
        "rank": wanted.rank,
    }


class _ClipRun(Run):
    """One call of ``clip``."""

    _recalls = False

    def __init__(self, task: Task, screen: Screen, wanted: Wanted, target: Target) -> None:
        super().__init__(task, screen)
        self._wanted, self._target = wanted, target
        self._sources: GeometryOptions | None = None
        self._outcomes: list[Outcome] = []
        self._written = False

    def code(self) -> int:
        """Run, and return the exit code.

        Raises:
            ConvsvError: nothing could be done.
        """
        self._refuse_reports_over_the_checkpoint()
        self._plan = self._planned()
        return super().code()

    def _paths(self) -> Inputs:
        """Return the one checkpoint that the path names.

        Raises:
            UsageError: it is a folder of several, or a list.
        """
        found = super()._paths()
        if found.several:
            paths = [PurePath(str(path)).name for path, _ in found.known]
            names = ", ".join(paths[:_SHOWN]) + (" ..." if len(paths) > _SHOWN else "")
            raise UsageError(
                "holds several checkpoints" if found.complete else "is a list, and one checkpoint is clipped at a time",
                path=self._task.models.model[0],
                found=names or None,
                advice="name one of them" if found.complete else "give the checkpoint's name",
            )
        return found

    def _keeps(self, outputs: Outputs) -> bool:
        """Keep the one checkpoint there is."""
        return True

    def _planned(self) -> ClipPlan:
        """Return what to do with each layer.

        Raises:
            UsageError: there is nothing to do, or the options contradict each other.
        """
        from convsv.checkpoints.sidecar import read_sidecar
        from convsv.editing import ClipPlan
        from convsv.execution import Execution

        wanted, stated, computing = self._wanted, self._task.geometry, self._task.computing
        assert computing is not None
        radii = tuple(read_sidecar(path) for path in (stated.geometry, wanted.radii) if path)
        edits = wanted.min_norm or wanted.flatten or wanted.rank
        if wanted.max_norm is None and not edits and not any(file.states_norms for file in radii):
            if wanted.radii:
                raise UsageError("states no max_norm", path=str(wanted.radii), advice="add it to its tables")
            raise UsageError("nothing to do", advice="give --max-norm R, --radii FILE, --min-norm, --flatten or --rank")
        return ClipPlan(
            max_norm=wanted.max_norm,
            radii=radii,
            method=wanted.method.value,
            of=wanted.of.value if wanted.of else "any size",
            size=stated.spatial_size,
            min_norm=wanted.min_norm,
            flatten=wanted.flatten,
            rank=wanted.rank,
            tol=computing.tol,
            execution=Execution(
                device=computing.device,
                dtype=computing.dtype.value,
                memory=parse_memory(computing.memory),
                jobs=computing.jobs,
            ),
        )

    def _refuse_reports_over_the_checkpoint(self) -> None:
        for report in self._task.output.output:
            if self._target.out and os.path.realpath(report) == os.path.realpath(self._target.out):
                raise UsageError("is to be written twice", path=report, advice="give the report another name")

    def _discover(self, sources: GeometryOptions, path: str) -> tuple[CheckpointReport, tuple[ConvLayer, ...]]:
        self._sources = sources
        return super()._discover(sources, path)

    def _analyst(self) -> tuple[Analyst, dict[str, Any]]:
        _, settings = super()._analyst()
        return lambda layers: iter(()), settings

    def _finish(self, begun: Begun, outputs: Outputs) -> None:
        known, path, interrupt = begun.known, begun.path, begun.interrupt
        written: str | None = None
        try:
            if path is not None and not known.failed and not interrupt:
                with error_context(path=path):
                    self._clip(begun.layers)
                    known = replace(known, problems=(*known.problems, *self._bystanders(path)))
                    written = self._write()
        except KeyboardInterrupt as error:
            interrupt = error
        except Exception as error:  # noqa: BLE001 - whatever it is, what is known is still reported
            known = self._failed(known, error)
        if written is not None:
            known = replace(known, path=str(self._target.out), sha256=written)
        reports = [outcome.report(written=written is not None) for outcome in self._outcomes]
        with uninterrupted(), self._screen.paused():
            outputs.layers(known, reports)
            self._done.append(replace(known, layers=tuple(reports)))
            outputs.checkpoint(self._done[-1])
        self._written = written is not None
        if interrupt:
            raise interrupt

    def _clip(self, layers: Sequence[ConvLayer]) -> None:
        from convsv.editing import clip_layers, refuse, refuse_format, refuse_target

        assert self._checkpoint is not None
        if not self._target.dry_run:
            refuse_format(self._checkpoint)
            refuse_target(self._checkpoint, str(self._target.out), force=self._target.force)
        self._screen.expect(len(layers))
        if self._wanted.radii:
            for glob in self._plan.radii[-1].unmatched(layer.name for layer in layers):
                self._screen.warning(f'{self._wanted.radii}: [layers."{glob}"] matches no chosen layer')
        for outcome in clip_layers(layers, self._plan):
            self._outcomes.append(outcome)
            self._screen.advance()
        refuse(self._outcomes)

    def _bystanders(self, path: str) -> tuple[str, ...]:
        """Say what changes together with the layers; return it too."""
        from convsv.editing import bystanders

        assert self._checkpoint is not None
        lines = bystanders(self._checkpoint, self._outcomes)
        with self._screen.paused():
            for line in lines:
                self._screen.warning(f"{path}: {line}")
        return lines

    def _write(self) -> str | None:
        """Write the new checkpoint, unless this is a dry run; return its hash."""
        from convsv.editing import Selection, write_clipped

        if self._target.dry_run:
            return None
        assert self._checkpoint is not None
        assert self._sources is not None
        assert self._target.out is not None
        models = self._task.models
        selection = Selection(self._sources, models.include, models.exclude)
        return write_clipped(self._checkpoint, self._outcomes, self._target.out, selection, force=self._target.force)

    def _say_unread(self, checkpoint: CheckpointReport, unread: Mapping[str, Sequence[str]]) -> None:
        """Nothing: that the file is refused for it has been said."""

    def _say_kept(self) -> None:
        """Say what was done, at the very end: on a terminal it would stand between a table and its legend."""
        clips = [outcome.clip for outcome in self._outcomes if outcome.clip]
        moved = sum(clip.touched for clip in clips)
        left = sum(not clip.inside for clip in clips)
        for note, number in Counter(note for clip in clips for note in clip.notes).items():
            self._screen.note(f"{counted(number, 'layer')}: {note}")
        if left:
            self._screen.warning(f"{counted(left, 'layer')} above the radius: {self._plan.method} is a single pass")
        if self._written:
            source = PurePath(self._task.models.model[0]).suffix
            others = f"{counted(moved, 'layer')} changed, {len(clips) - moved} within the norm already"
            self._screen.note(f"{self._target.out}: written and read again; {others}")
            if PurePath(str(self._target.out)).suffix != source:
                self._screen.warning(f"{self._target.out}: has the format of a {source or 'folder'}, whatever its name")
        super()._say_kept()
