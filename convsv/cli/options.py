"""Options that mean the same on every verb, each stated once."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

import typer

from convsv.cli._words import (
    checked_device,
    checked_inputs,
    checked_memory,
    checked_size,
    checked_tolerance,
    parse_size,
    readable_paths,
)

__all__ = [
    "Computing",
    "Dtype",
    "Exact",
    "GeometrySources",
    "Models",
    "Output",
    "PaddingMode",
    "Planning",
    "Spectra",
]

_CHOOSE = "Which layers"
_GEOMETRY = "Geometry, where the checkpoint does not tell"
_COMPUTING = "Computing"
_OUTPUT = "Output"
_EXACT = "The exact spectrum"


class PaddingMode(str, Enum):
    """The padding modes; a test holds them equal to ``convsv.geometry.PADDINGS``, which needs numpy."""

    zeros = "zeros"
    circular = "circular"
    reflect = "reflect"
    replicate = "replicate"


class Dtype(str, Enum):
    """The dtypes of the arithmetic."""

    float64 = "float64"
    float32 = "float32"


@dataclass(frozen=True)
class Models:
    """Which checkpoints, and which of their layers."""

    model: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            callback=readable_paths,
            help="Checkpoints: PyTorch, safetensors (file or index), Keras or ONNX files, folders of them, patterns "
            "('run/**/*.pt', quoted), addresses (https://, s3://), or - for a list of names on standard input.",
            show_default=False,
        ),
    ]
    include: Annotated[
        list[str],
        typer.Option(
            "--include",
            metavar="GLOB",
            help="Only layers whose name matches, and also tensors that were not taken for convolutions. Repeatable.",
            rich_help_panel=_CHOOSE,
            show_default=False,
        ),
    ] = field(default_factory=list)
    exclude: Annotated[
        list[str],
        typer.Option(
            "--exclude",
            metavar="GLOB",
            help="No layers whose name matches. Repeatable.",
            rich_help_panel=_CHOOSE,
            show_default=False,
        ),
    ] = field(default_factory=list)


@dataclass(frozen=True)
class GeometrySources:
    """What the user says about geometry."""

    size: Annotated[
        str | None,
        typer.Option(
            "--size",
            metavar="N|HxW",
            callback=checked_size,
            help="Spatial input size of layers whose size nothing else tells. Without it 32 is assumed.",
            rich_help_panel=_GEOMETRY,
            show_default=False,
        ),
    ] = None
    padding_mode: Annotated[
        PaddingMode | None,
        typer.Option(
            "--padding-mode",
            help="How layers pad their input. Without it zeros are assumed.",
            rich_help_panel=_GEOMETRY,
            show_default=False,
        ),
    ] = None
    geometry: Annotated[
        Path | None,
        typer.Option(
            "--geometry",
            metavar="FILE.toml",
            help="Facts a layer: size, stride, padding, dilation, groups ... by globs on layer names.",
            rich_help_panel=_GEOMETRY,
            show_default=False,
        ),
    ] = None

    trace: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="PKG.MOD:CALLABLE",
            help="Import, build and run this PyTorch model, without weights, to see how its convolutions lie. "
            "Needs --input-shape.",
            rich_help_panel=_GEOMETRY,
            show_default=False,
        ),
    ] = None
    model_args: Annotated[
        str | None,
        typer.Option(
            "--model-args",
            metavar="JSON",
            help="Arguments for the callable of --model: an object of named ones, or a list.",
            rich_help_panel=_GEOMETRY,
            show_default=False,
        ),
    ] = None
    input_shape: Annotated[
        list[str],
        typer.Option(
            "--input-shape",
            metavar="CxHxW",
            callback=checked_inputs,
            help="Shape of the input of --model without the batch, such as 3x224x224 or 77:int64. Repeat it for a "
            "model of several inputs.",
            rich_help_panel=_GEOMETRY,
            show_default=False,
        ),
    ] = field(default_factory=list)
    fold_bn: Annotated[
        bool,
        typer.Option(
            "--fold-bn",
            help="Report each layer with the batch normalisation behind it, where the file or --model shows which.",
            rich_help_panel=_GEOMETRY,
        ),
    ] = False
    fold_bn_by_order: Annotated[
        bool,
        typer.Option(
            "--fold-bn-by-order",
            help="As --fold-bn, and where nothing shows it take the norm whose keys come right behind the layer's.",
            rich_help_panel=_GEOMETRY,
        ),
    ] = False

    @property
    def spatial_size(self) -> tuple[int, ...] | None:
        """The size: one number for every axis, or one an axis."""
        return None if self.size is None else parse_size(self.size)

    @property
    def fold(self) -> Literal["known", "by-order"] | None:
        """Which norms to fold in."""
        return "by-order" if self.fold_bn_by_order else "known" if self.fold_bn else None


@dataclass(frozen=True)
class Computing:
    """Where and how finely to compute."""

    device: Annotated[
        str,
        typer.Option(
            "--device",
            metavar="auto|cpu|cuda|cuda:1",
            callback=checked_device,
            help="Where to compute; auto takes a GPU if there is one.",
            rich_help_panel=_COMPUTING,
        ),
    ] = "auto"
    dtype: Annotated[
        Dtype, typer.Option("--dtype", help="Precision of the arithmetic.", rich_help_panel=_COMPUTING)
    ] = Dtype.float64
    tol: Annotated[
        float,
        typer.Option(
            "--tol",
            metavar="WIDTH",
            callback=checked_tolerance,
            help="Width to reach of the certified interval: upper / lower - 1.",
            rich_help_panel=_COMPUTING,
        ),
    ] = 1e-3
    memory: Annotated[
        str,
        typer.Option(
            "--memory",
            metavar="BYTES",
            callback=checked_memory,
            help="Budget for what is in work at one time: 2GiB, 500MB or plain bytes.",
            rich_help_panel=_COMPUTING,
        ),
    ] = "1GiB"
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            metavar="N",
            min=1,
            help="Threads, or processes where many layers make these faster. Without it one a CPU.",
            rich_help_panel=_COMPUTING,
            show_default=False,
        ),
    ] = None
    no_cache: Annotated[
        bool,
        typer.Option(
            "--no-cache",
            help="Compute everything anew, and keep nothing for later calls; see convsv cache --help.",
            rich_help_panel=_COMPUTING,
        ),
    ] = False


@dataclass(frozen=True)
class Output:
    """Where results go, and in which form."""

    format: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="auto|table|tsv|json|jsonl|csv|markdown|html",
            help="Form of standard output; auto is a table on a terminal and tab-separated lines elsewhere.",
            rich_help_panel=_OUTPUT,
        ),
    ] = "auto"
    output: Annotated[
        list[str],
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write a report to a file: .json .jsonl .csv .tsv .md or .html. Repeatable.",
            rich_help_panel=_OUTPUT,
            show_default=False,
        ),
    ] = field(default_factory=list)
    sort: Annotated[
        str | None,
        typer.Option(
            "--sort",
            metavar="COLUMN",
            help="Order of the layers: numbers from the largest, words from A. For instance norm_upper.",
            rich_help_panel=_OUTPUT,
            show_default=False,
        ),
    ] = None
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress, notes or warnings.", rich_help_panel=_OUTPUT)
    ] = False
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="More notes, and tracebacks of errors.", rich_help_panel=_OUTPUT)
    ] = False


@dataclass(frozen=True)
class Spectra:
    """Whole spectra, for the verbs that compute them."""

    values: Annotated[
        bool,
        typer.Option("--values", help="Put whole spectra into JSON and JSON Lines.", rich_help_panel=_OUTPUT),
    ] = False
    spectra: Annotated[
        str | None,
        typer.Option(
            "--spectra",
            metavar="FILE.h5|.npz",
            help="Write whole spectra as arrays, a dataset a layer and method.",
            rich_help_panel=_OUTPUT,
            show_default=False,
        ),
    ] = None


@dataclass(frozen=True)
class Planning:
    """How long to compute, and whether at all."""

    budget: Annotated[
        float,
        typer.Option(
            "--budget",
            metavar="SECONDS",
            min=0,
            help="Time for certifying one layer's norm; where it runs out the interval is wider. 0 for no limit.",
            rich_help_panel=_COMPUTING,
        ),
    ] = 60.0
    dask: Annotated[
        str | None,
        typer.Option(
            "--dask",
            metavar="ADDRESS",
            help="Compute on a dask cluster: tcp://host:8786, or local:2 for two processes here. --memory is a task's.",
            rich_help_panel=_COMPUTING,
            show_default=False,
        ),
    ] = None
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Compute nothing: estimate what each layer would cost, and the sum, from shapes alone.",
            rich_help_panel=_COMPUTING,
        ),
    ] = False


@dataclass(frozen=True)
class Exact:
    """How much of the exact spectrum to compute."""

    top: Annotated[
        int | None,
        typer.Option(
            "--top",
            metavar="K",
            min=1,
            help="Only the K largest values. Without it all of them where that is cheap, else 6.",
            rich_help_panel=_EXACT,
            show_default=False,
        ),
    ] = None
    trailing: Annotated[
        int,
        typer.Option(
            "--trailing",
            metavar="K",
            min=0,
            help="Beside the largest values the K smallest ones.",
            rich_help_panel=_EXACT,
            show_default=False,
        ),
    ] = 0
    full: Annotated[
        bool,
        typer.Option(
            "--full", help="All values, whatever the time, as far as --memory allows.", rich_help_panel=_EXACT
        ),
    ] = False
    density: Annotated[
        bool,
        typer.Option(
            "--density",
            help="Also how all values are distributed, with error bars; into JSON.",
            rich_help_panel=_EXACT,
        ),
    ] = False

    @property
    def is_asked_for(self) -> bool:
        """Whether any of these was given."""
        return self != Exact()
