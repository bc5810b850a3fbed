"""What ``convsv plot`` does: compute layer by layer, keep of each what the figure shows, and draw in the end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from convsv.cli._analyst import Analyst
from convsv.cli._output import SILENT, Outputs, without_values
from convsv.cli._run import Run
from convsv.cli._screen import Screen
from convsv.cli._task import Task
from convsv.cli.options import Computing, Exact, GeometrySources, Models, Output, Spectra
from convsv.cli.plot import Kind
from convsv.errors import CheckpointError, OutputError, UnavailableError, UsageError
from convsv.reports import Sink
from convsv.reports._drawing import PictureData, Surface
from convsv.reports.figures import FigureStyle, format_of_figure, render, require_matplotlib
from convsv.results import CheckpointReport, LayerReport, Report

if TYPE_CHECKING:
    from convsv.cli.plot import Pictures
    from convsv.layer import ConvLayer

__all__ = ["run_plot"]

_NOT_SPECTRA = ("bounds", "symbol_min")
_DEFAULT_METHODS = {Kind.intervals: ("circulant", "exact", "bounds"), Kind.torus: (), Kind.heatmap: ()}


def run_plot(models: Models, geometry: GeometrySources, computing: Computing, exact: Exact, pictures: Pictures) -> None:
    """Draw figures.

    Raises:
        UsageError: wrong options.
        ConvsvError: nothing could be done for another reason.
        typer.Exit: it is done, with an exit code other than 0.
    """
    methods = _methods(pictures)
    if not pictures.output:
        raise UsageError("where to write the figure is missing", advice="give -o FIGURE.png, .svg or .pdf")
    require_matplotlib()
    if pictures.kind is Kind.intervals and not exact.is_asked_for:
        exact = Exact(top=1)  # the norm is all that is drawn: a fraction of what the bounds take
    norm = pictures.kind not in (Kind.spectrum, Kind.histogram)
    output = Output(SILENT, pictures.output, quiet=pictures.quiet, verbose=pictures.verbose)
    task = Task("plot", models, geometry, output, computing, Spectra(values=True), methods, norm=norm, exact=exact)
    code = _PlotRun(task, Screen(quiet=pictures.quiet, verbose=pictures.verbose), pictures).code()
    if code:
        raise typer.Exit(code)


def _methods(pictures: Pictures) -> tuple[str, ...]:
    """Return what to compute for a figure.

    Raises:
        UsageError: this kind does not draw a method that was asked for.
    """
    given = tuple(dict.fromkeys(pictures.method))
    if not given:
        return _DEFAULT_METHODS.get(pictures.kind, ("circulant",))
    if pictures.kind in (Kind.torus, Kind.heatmap):
        raise UsageError(f"--kind {pictures.kind.value} draws norms", advice="leave --method out")
    wrong = [name for name in given if name in _NOT_SPECTRA and (name, pictures.kind) != ("bounds", Kind.intervals)]
    if wrong:
        raise UsageError(
            f"--kind {pictures.kind.value} does not draw this", found=wrong[0], advice="see convsv plot --help"
        )
    return given


class _Figures(Outputs):
    """The figures of one call: all show the same data, in the format of their suffix."""

    def __init__(self, head: Report, task: Task, pictures: Pictures) -> None:
        super().__init__(head, task.output, task.spectra)
        spectra = tuple(name for name in task.methods if name not in _NOT_SPECTRA)
        self.data = PictureData(spectra)
        self._figure_style = FigureStyle(pictures.kind.value, pictures.theme.value)

    def _format_of(self, path: str) -> str:
        return format_of_figure(path)

    def _file_sink(self, temporary: Path, name: str, head: Report, stack: ExitStack) -> Sink:
        return _FigureFile(temporary, name, self.data, self._figure_style)

    def kept(self, layer: LayerReport) -> LayerReport:
        """Return a layer without whole spectra: the data have their curves."""
        return without_values(layer)

    def layers(self, checkpoint: CheckpointReport, layers: Sequence[LayerReport]) -> None:
        """Take what the figure shows of some layers."""
        for layer in layers:
            self.data.add(checkpoint, layer)

    def end(self, report: Report) -> None:
        """Draw, unless nothing was found to draw."""
        self.data.partial = report.partial
        if not self.data.checkpoints:
            for guarded in self._guarded:
                guarded.abandon()
            return
        try:
            super().end(report)
        except UnavailableError as error:
            for guarded in self._guarded:
                guarded.abandon()
                guarded.error = OutputError(error.what, path=guarded.name, found=error.found, advice=error.advice)


class _FigureFile:
    def __init__(self, path: Path, form: str, data: PictureData, style: FigureStyle) -> None:
        self._path, self._form, self._data, self._style = path, form, data, style

    def layer(self, checkpoint: CheckpointReport, layer: LayerReport) -> None:
        """Nothing: the data are shared by all figures."""

    def checkpoint(self, checkpoint: CheckpointReport) -> None:
        """Nothing: a figure is drawn whole."""

    def end(self, report: Report) -> None:
        self._path.write_bytes(render(self._data, self._style, self._form))


class _PlotRun(Run):
    _recalls = False

    """One call of ``plot``."""

    def __init__(self, task: Task, screen: Screen, pictures: Pictures) -> None:
        super().__init__(task, screen)
        self._pictures = pictures
        self._figures: _Figures | None = None

    def _outputs(self, head: Report) -> Outputs:
        self._figures = _Figures(head, self._task, self._pictures)
        return self._figures

    def _analyst(self) -> tuple[Analyst, dict[str, Any]]:
        """Return what turns layers into reports; for the torus it draws samples of the symbol beside them."""
        analyst, settings = super()._analyst()
        if self._pictures.kind is not Kind.torus:
            return analyst, settings
        self._ahead = lambda: 0  # a surface is drawn from the checkpoint that was opened last

        def with_surfaces(layers: Iterable[ConvLayer]) -> Iterator[LayerReport]:
            chosen = list(layers)
            if len(chosen) > 1:
                raise UsageError(
                    "the torus is drawn for one layer",
                    found=f"{len(chosen)} layers, from {chosen[0].name} to {chosen[-1].name}",
                    advice="choose one with --include",
                )
            for layer in chosen:
                self._add_surface(layer)
            yield from analyst(chosen)

        return with_surfaces, settings

    def _add_surface(self, layer: ConvLayer) -> None:
        from convsv.execution import Execution
        from convsv.spectra._torus import largest_on_torus

        assert self._figures is not None
        assert self._checkpoint is not None
        with suppress(UnavailableError, CheckpointError):  # the certified norm says why
            values = largest_on_torus(layer, Execution("cpu"))
            plane = values if values.ndim < 3 else values.max(axis=tuple(range(2, values.ndim)))
            self._figures.data.surfaces[self._checkpoint.path, layer.weight] = Surface(plane, values.ndim)
