"""``--dry-run``: what a call would cost, layer by layer, from shapes alone. Headers are read, no tensor is."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from convsv.cli._output import is_colourful
from convsv.cli._run import Run, counted
from convsv.cli._screen import worst
from convsv.cli._task import Task, settings_of, sources_of
from convsv.cli._words import parse_memory
from convsv.costs import Cost, LayerCost, Speed, Wanted, costs_of
from convsv.errors import UsageError
from convsv.reports._text import to_tsv, visible
from convsv.results import CheckpointReport

if TYPE_CHECKING:
    from convsv.layer import ConvLayer

__all__ = ["PlanRun"]

_BIG, _LONG = 1 << 10, 60.0
_COLUMNS = ("checkpoint", "name", "shape", "size", "methods", "flops", "memory", "seconds", "problem")


@dataclass(frozen=True)
class _Row:
    layer: ConvLayer
    cost: LayerCost


@dataclass(frozen=True)
class _Plan:
    """What everything costs: a list of layers a checkpoint."""

    checkpoints: Sequence[tuple[CheckpointReport, Sequence[_Row]]]
    speed: Speed
    jobs: int

    @property
    def rows(self) -> list[_Row]:
        return [row for _, rows in self.checkpoints for row in rows]

    @property
    def total(self) -> Cost:
        return Cost.total(row.cost.whole for row in self.rows)

    @property
    def seconds(self) -> float:
        """On all jobs, if they share the work evenly: no less than the longest layer alone."""
        return self.total.seconds / self.jobs


class PlanRun(Run):
    """One call with ``--dry-run``."""

    def code(self) -> int:
        """Estimate, and return the exit code.

        Raises:
            UsageError: options that do not go with ``--dry-run``, or wrong ones.
        """
        write = _writer(self._task)
        sources, paths = sources_of(self._task.geometry), self._paths()
        wanted = _wanted(self._task)
        found: list[tuple[CheckpointReport, Sequence[_Row]]] = []
        from convsv.speed import speed_of_this_machine

        speed = speed_of_this_machine()
        for path, blank in paths:
            if path is None:
                continue
            try:
                known, layers = self._discover(sources, path)
                found.append((known, [_Row(layer, costs_of(layer, wanted, speed)) for layer in layers]))
            except Exception as error:  # noqa: BLE001 - whatever it is, the other checkpoints are still estimated
                self._failed(blank, error)
        plan = _Plan(found, speed, _jobs(self._task))
        write(self._task, plan)
        self._say_what_it_is(plan)
        return worst(*self._codes)

    def _hashes(self, large: bool) -> bool:
        return False

    def _say_what_it_is(self, plan: _Plan) -> None:
        self._screen.note(
            f"estimates from shapes alone, nothing was computed: about {_duration(plan.seconds)} on "
            f"{counted(plan.jobs, 'core')}; flat spectra (random weights) take several times as long"
        )
        assert self._task.computing is not None
        budget = parse_memory(self._task.computing.memory)
        over = [row.layer.name for row in plan.rows if row.cost.whole.memory > budget]
        if over:
            self._screen.warning(
                f"{counted(len(over), 'layer')} may need more than the memory budget, or take longer in it: {over[0]}"
            )


def _wanted(task: Task) -> Wanted:
    assert task.computing is not None
    whole = task.spectra.values or task.spectra.spectra is not None
    return Wanted(task.methods, task.norm, task.computing.tol, task.exact.full, whole)


def _jobs(task: Task) -> int:
    from convsv.cli._cpus import usable_cpus

    assert task.computing is not None
    return task.computing.jobs or usable_cpus()


def _writer(task: Task) -> Callable[[Task, _Plan], None]:
    """Return what writes a plan to standard output.

    Raises:
        UsageError: the format is not one of those, or an output file was asked for.
    """
    if task.output.output or task.spectra.spectra or task.sidecar:
        raise UsageError("--dry-run writes to standard output only", advice="leave -o and --spectra away")
    form = task.output.format
    if form == "auto":
        form = "table" if sys.stdout.isatty() else "tsv"
    if form not in _WRITERS:
        known = ", ".join(_WRITERS)
        raise UsageError("--format: --dry-run has no such format", found=repr(form), advice=f"use auto or {known}")
    return _WRITERS[form]


def _write_json(task: Task, plan: _Plan) -> None:
    """Write one object: the speed that was measured, a cost a layer and method, and sums."""

    def entry(row: _Row) -> dict[str, Any]:
        layer = row.layer
        each: Mapping[str, Any] = {name: asdict(cost) for name, cost in row.cost.each.items()}
        facts = {"name": layer.name, "weight": layer.weight, "kind": layer.kind, "shape": list(layer.shape)}
        facts |= {"size": list(layer.geometry.size), "stride": list(layer.geometry.stride)}
        return {**facts, "cost": each, "total": asdict(row.cost.whole), "problem": row.cost.problem}

    checkpoints = [
        {"path": known.path, "format": known.format, "layers": list(map(entry, rows))}
        for known, rows in plan.checkpoints
    ]
    whole = {
        "command": task.command,
        "settings": settings_of(task),
        "dry_run": True,
        "guarantee": "estimate",
        "speed": asdict(plan.speed),
        "jobs": plan.jobs,
        "checkpoints": checkpoints,
        "total": {**asdict(plan.total), "seconds_on_all_jobs": plan.seconds},
    }
    print(json.dumps(whole, indent=2, default=str))


def _write_tsv(task: Task, plan: _Plan) -> None:
    """Write a line a layer under a header line, and the sum as the last: numbers in full."""
    print("\t".join(_COLUMNS))
    for known, rows in plan.checkpoints:
        for row in rows:
            cost = row.cost.whole
            words = (known.path, row.layer.name, _by(row.layer.shape), _by(row.layer.geometry.size))
            texts = (*words, ",".join(row.cost.each))
            numbers = f"{cost.flops:.4g}", f"{cost.memory:.0f}", f"{cost.seconds:.4g}"
            print("\t".join((*map(to_tsv, texts), *numbers, to_tsv(row.cost.problem or ""))))
    total = plan.total
    print("\t".join(("", "total", "", "", "", f"{total.flops:.4g}", f"{total.memory:.0f}", f"{total.seconds:.4g}", "")))


def _write_table(task: Task, plan: _Plan) -> None:
    """Draw a table a checkpoint, and the sum."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colour = is_colourful(sys.stdout)
    console = Console(file=sys.stdout, force_terminal=colour, no_color=not colour, highlight=False)
    for known, rows in plan.checkpoints:
        names = list(dict.fromkeys(name for row in rows for name in row.cost.each))
        table = Table(box=box.SIMPLE_HEAD, title=Text(visible(known.path)), title_justify="left", show_footer=True)
        sums = {name: Cost.total(row.cost.each.get(name, Cost()) for row in rows) for name in names}
        whole = Cost.total(row.cost.whole for row in rows)
        table.add_column("layer", Text("sum"), overflow="fold")
        table.add_column("shape")
        table.add_column("size")
        for name in names:
            table.add_column(Text(name), Text(_duration(sums[name].seconds)), justify="right")
        for title, text in (("flops", f"{whole.flops:.2g}"), ("memory", _bytes(whole.memory))):
            table.add_column(title, Text(text), justify="right")
        for row in rows:
            times = [_duration(row.cost.each[name].seconds) if name in row.cost.each else "" for name in names]
            cost = row.cost.whole
            cells = [visible(row.layer.name), _by(row.layer.shape), _by(row.layer.geometry.size), *times]
            table.add_row(*map(Text, (*cells, f"{cost.flops:.2g}", _bytes(cost.memory))))
        console.print(table)


_WRITERS: dict[str, Callable[[Task, _Plan], None]] = {"table": _write_table, "tsv": _write_tsv, "json": _write_json}


def _by(numbers: Sequence[int]) -> str:
    return "x".join(map(str, numbers))


def _bytes(number: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if number < _BIG:
            return f"{number:.0f} {unit}"
        number /= _BIG
    return f"{number:.1f} GiB"


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 2 * _LONG:
        return f"{seconds:.1f} s"
    if seconds < 2 * _LONG**2:
        return f"{seconds / _LONG:.0f} min"
    return f"{seconds / _LONG**2:.1f} h"
