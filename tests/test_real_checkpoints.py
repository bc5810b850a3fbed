"""Real public checkpoints, and our own samples: what is found in them, and that their certified intervals are true."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from convsv.analysis import AnalysisOptions, analyze_layer
from convsv.checkpoints import find_checkpoints, open_checkpoint
from convsv.checkpoints.discovery import find_layers
from convsv.execution import Execution
from convsv.layer import ConvLayer

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "sample_checkpoints"
SHARED = ROOT.parent / "shared" / "checkpoints"

COUNTS = {
    "resnet20-cifar10.th": {"conv2d": 19},
    "ultraface-rfb320.pth": {"conv2d": 52},
    "ultraface-rfb320.onnx": {"conv2d": 52},
    "burn-mnist.pt": {"conv2d": 3},
    "burn-mnist.safetensors": {"conv2d": 3},
    "beattrack-tcn.ckpt": {"conv2d": 3, "conv1d": 35},
    "meshnet3d.pth": {"conv3d": 20},
    "mlperf-vww96.h5": {"conv2d": 27},
    "ssrnet-imdb.h5": {"conv2d": 14},
    "acoustic-ae.keras": {"conv2d": 4, "conv_transpose2d": 3},
    "snake-dqn.weights.h5": {"conv2d": 2},
    "vdsr-whole.pth": {"conv2d": 20},
    "taesana-encoder-fp16.pth": {"conv2d": 36},
}
POINTS = {1: (1024,), 2: (32, 32), 3: (16, 8, 8)}
"""1024 frequencies in every dimension."""


def layers_of(path: Path) -> tuple[ConvLayer, ...]:
    if path.suffix == ".onnx":
        pytest.importorskip("onnx")
    return find_layers(open_checkpoint(path))


def sup_on_grid(layer: ConvLayer) -> float:
    """The largest singular value of the polyphase symbol on 1024 frequencies, by numpy's FFT and SVD alone."""
    geometry, kernel = layer.geometry, layer.kernel()
    dims = geometry.dims
    dilated = np.zeros(
        (*kernel.shape[:3], *(d * (k - 1) + 1 for k, d in zip(kernel.shape[3:], geometry.dilation, strict=True)))
    )
    dilated[(..., *(slice(None, None, d) for d in geometry.dilation))] = kernel
    # On an axis of one tap the symbol is the same at every frequency.
    taps_an_axis = (-(-n // s) for n, s in zip(dilated.shape[3:], geometry.stride, strict=True))
    grid = tuple(n if taps > 1 else 1 for n, taps in zip(POINTS[dims], taps_an_axis, strict=True))
    parts = []
    for phase in itertools.product(*(range(s) for s in geometry.stride)):
        taps = dilated[(..., *(slice(t, None, s) for t, s in zip(phase, geometry.stride, strict=True)))]
        parts.append(np.fft.fftn(wrapped(taps, grid), grid, axes=tuple(range(3, 3 + dims))))
    symbol = np.moveaxis(np.concatenate(parts, axis=2), (1, 2), (-2, -1))
    smaller = symbol if symbol.shape[-1] <= symbol.shape[-2] else symbol.swapaxes(-1, -2)
    values = np.linalg.eigvalsh(smaller.conj().swapaxes(-1, -2) @ smaller)
    return math.sqrt(max(0.0, float(values.max())))


def wrapped(taps: NDArray[np.float64], grid: tuple[int, ...]) -> NDArray[np.float64]:
    """Taps folded onto a grid that is smaller than they are; numpy's FFT would cut them."""
    for axis, n in enumerate(grid, start=3):
        if taps.shape[axis] > n:
            pad = [(0, 0)] * taps.ndim
            pad[axis] = (0, -taps.shape[axis] % n)
            split = np.pad(taps, pad)
            taps = split.reshape(*split.shape[:axis], -1, n, *split.shape[axis + 1 :]).sum(axis)
    return taps


def checkpoints() -> list[Path]:
    samples = find_checkpoints(SAMPLES)
    return [*samples, *(SHARED / name for name in COUNTS)]


@pytest.mark.parametrize("name", COUNTS)
def test_every_convolution_is_found(name: str, shared_checkpoints: Path) -> None:
    kinds = [layer.kind for layer in layers_of(shared_checkpoints / name)]
    assert {kind: kinds.count(kind) for kind in kinds} == COUNTS[name]


@pytest.mark.parametrize("path", checkpoints(), ids=lambda path: path.name)
def test_the_certified_interval_holds_the_largest_value_on_1024_frequencies(path: Path) -> None:
    if not path.exists():
        pytest.skip("no folder of shared checkpoints beside the repository")
    options = AnalysisOptions(execution=Execution(jobs=1))
    for layer in layers_of(path):
        report, sup = analyze_layer(layer, options), sup_on_grid(layer)
        assert report.norm is not None, layer.name
        assert report.norm.upper >= sup * (1 - 1e-12), layer.name
        # The grid corollary: a trigonometric polynomial of degree d is nearly its maximum on some of N points.
        geometry = layer.geometry
        degrees = [
            -(-(d * (k - 1) + 1) // s) - 1
            for k, d, s in zip(layer.kernel_size, geometry.dilation, geometry.stride, strict=True)
        ]
        factor = math.prod(math.cos(math.pi * d / (2 * n)) for d, n in zip(degrees, POINTS[geometry.dims], strict=True))
        if max(degrees) < min(POINTS[geometry.dims]):
            assert report.norm.lower <= sup / factor * (1 + 1e-12), layer.name
        if not geometry.guessed("groups", "stride"):
            assert report.norm.width <= options.tol, layer.name


def report(*words: object) -> list[dict[str, Any]]:
    """The layers that a call of the program reports, less where their geometry was learned."""
    command = [sys.executable, "-m", "convsv", *map(str, words), "--quiet", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (checkpoint,) = json.loads(done.stdout)["checkpoints"]
    assert checkpoint["problems"] == []
    for layer in checkpoint["layers"]:
        del layer["geometry"]["origin"]
    return list(checkpoint["layers"])


def test_a_geometry_file_written_from_onnx_makes_the_state_dict_report_the_same(
    shared_checkpoints: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnx")
    model, weights = (shared_checkpoints / f"ultraface-rfb320.{end}" for end in ("onnx", "pth"))
    facts = tmp_path / "facts.toml"
    known = report("layers", model, "--write-geometry", facts)
    assert len(known) == 52
    assert report("layers", weights, "--geometry", facts) == known
    some = ("--include", "base_net.[07]*", "--include", "extras*")
    assert report("analyze", model, *some) == report("analyze", weights, "--geometry", facts, *some)
