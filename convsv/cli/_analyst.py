"""From the options of a call to what turns layers into reports."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

from convsv.cli._caching import cached
from convsv.cli.options import parse_memory
from convsv.errors import UsageError
from convsv.results import LayerReport

if TYPE_CHECKING:
    from convsv.cache import Memory
    from convsv.cli._task import Task
    from convsv.layer import ConvLayer
    from convsv.spectra import SpectrumOptions

__all__ = ["Analyst", "analyst_of"]

Analyst: TypeAlias = "Callable[[Iterable[ConvLayer]], Iterator[LayerReport]]"
"""Turns layers into their reports, in the same order. It may begin when it is called, before the first is asked for."""


def analyst_of(task: Task, results: Memory) -> tuple[Analyst, dict[str, Any]]:
    """Return what turns layers into reports, and the settings that only the machine knows.

    Args:
        task: what is asked for.
        results: what is known beforehand, and takes what is found out.
    """
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
    analyst = cached(lambda layers: analyze(layers, options), results, execution, options)
    return analyst, {"device": str(execution.torch_device), "jobs": execution.threads}


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
