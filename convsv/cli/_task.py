"""What one call of a verb asks for, and what of it decides the numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convsv.cli._words import parse_input, parse_memory
from convsv.cli.options import Computing, Exact, GeometrySources, Models, Output, Spectra
from convsv.errors import UsageError

if TYPE_CHECKING:
    from convsv.checkpoints.sources import GeometryOptions
    from convsv.checkpoints.traced import Trace

__all__ = ["Task", "settings_of", "sources_of"]


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
        budget: seconds to spend on certifying one layer's norm; 0 for no limit.
        dask: address of a cluster to compute on.
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
    budget: float = 60.0
    dask: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict)


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
            "budget": task.budget,
        }
    if "exact" in task.methods:
        settings |= vars(task.exact)
    settings |= task.more
    return settings


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
