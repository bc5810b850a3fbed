"""From the options of a call to what turns layers into reports."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from convsv.cli._words import parse_memory
from convsv.errors import UsageError
from convsv.results import LayerReport

if TYPE_CHECKING:
    from convsv.analysis import AnalysisOptions
    from convsv.cli._caching import Kept
    from convsv.cli._task import Task
    from convsv.cli.options import Computing
    from convsv.execution import Execution
    from convsv.layer import ConvLayer
    from convsv.spectra import SpectrumOptions

__all__ = ["Analyst", "Arranged", "analyst_of"]

Analyst: TypeAlias = "Callable[[Iterable[ConvLayer]], Iterator[LayerReport]]"
"""Turns layers into their reports, in the same order. It may begin when it is called, before the first is asked for."""


@dataclass(frozen=True)
class Arranged:
    """What turns layers into reports, ready to begin.

    Attributes:
        analyst: does it.
        settings: options that only the machine knows.
        ahead: checkpoints that are worth beginning before the one in hand is finished.
        close: ends what was started for it.
    """

    analyst: Analyst
    settings: dict[str, Any] = field(default_factory=dict)
    ahead: Callable[[], int] = lambda: 0
    close: Callable[[], None] = lambda: None


def analyst_of(task: Task, kept: Kept, checkpoints: int | None) -> Arranged:
    """Return what turns layers into reports.

    Args:
        task: what is asked for.
        kept: what is known beforehand, and takes what is found out.
        checkpoints: how many there are; None where that is not known.
    """
    if task.computing is None:
        from convsv.describe import describe

        return Arranged(lambda layers: map(describe, layers))
    from convsv.analysis import AnalysisOptions, analyze
    from convsv.certificate import Budget
    from convsv.scheduling.choice import Spreader

    execution = _execution(task.computing, dask=task.dask is not None)
    options = AnalysisOptions(
        methods=task.methods,
        norm=task.norm,
        tol=task.computing.tol,
        values=task.spectra.values or task.spectra.spectra is not None,
        execution=execution,
        budget=Budget(seconds=task.budget or None),
        spectra=_spectrum_options(task),
    )
    if task.dask is not None:
        return _on_cluster(task, task.dask, kept, options)
    spreader = Spreader(analyze, options, checkpoints)
    settings = {"device": str(execution.torch_device), "jobs": execution.threads}
    known = kept.around(spreader, execution, {"analysis": options})

    def analyst(layers: Iterable[ConvLayer]) -> Iterator[LayerReport]:
        chosen = tuple(layers)
        spreader.consider(chosen)
        return known(chosen)

    return Arranged(analyst, settings, spreader.ahead, spreader.close)


def _on_cluster(task: Task, address: str, kept: Kept, options: AnalysisOptions) -> Arranged:
    """Return what turns layers into reports on a dask cluster; what this machine has for a GPU does not matter."""
    from convsv.costs import cost_of
    from convsv.scheduling import Dispatcher
    from convsv.scheduling.choice import wanted_of
    from convsv.scheduling.cluster import ClusterPool
    from convsv.scheduling.cutting import cutter_of

    assert task.computing is not None
    device, wanted = task.computing.device, wanted_of(options)
    pool = ClusterPool(address, device)
    dispatcher = Dispatcher(pool, options, lambda layer: cost_of(layer, wanted).seconds, device, cutter_of(wanted))
    known = kept.around(dispatcher, options.execution, {"analysis": options})
    return Arranged(known, {"device": device, "jobs": pool.slots, "dask": address}, lambda: 4 * pool.slots, pool.close)


def _execution(computing: Computing, *, dask: bool) -> Execution:
    """Return where to compute; on a cluster it is that of one task, and its device is a matter of the workers."""
    from convsv.execution import Execution

    return Execution(
        device="cpu" if dask else computing.device,
        dtype=computing.dtype.value,
        memory=parse_memory(computing.memory),
        jobs=1 if dask else computing.jobs,
    )


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
