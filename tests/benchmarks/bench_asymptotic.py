"""Estimated spectra of trained layers against the exact ones: a table ready for a figure.

    python tests/benchmarks/bench_asymptotic.py [--sizes 4 8 16] [--side 2304] [--rows FILE.tsv]

The layers of a trained ResNet-20, with their strides and zero padding, at sizes 4 to 32: the sorted values of

* circulant: circular padding at the same size (Sedghi et al. 2019), where the stride divides it;
* asymptotic: quantiles of the symbol, each variant of nodes and of branches (Yi 2020), the default marked *;
* two moments: x = q (alpha + (beta - alpha) (q / q_1)^2), alpha from the Frobenius norm, beta from the largest value;
* calibrated: what convsv makes of the symbol, a smaller copy and both moments;

against all values of the zero-padded matrix. Errors: l2 relative to the l2 norm, mean and largest relative to the
largest value, and of the smallest fifth the mean logarithmic one. A row of FILE.tsv is a layer, size and method; the
summary shows geometric means. Layers whose matrix calibrated itself decomposes, where it has no error, are counted
under "whole" and left out of all means. Matrices above --side rows are skipped.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from layers import CHECKPOINTS, Kernel

from cases import Case
from convsv.errors import UnavailableError
from convsv.execution import Execution, one_thread_a_call
from convsv.layer import ConvLayer
from convsv.results import Spectrum
from convsv.spectra._copies import affordable_copy
from convsv.spectra.asymptotic import MEASURED_BEST, QuantileVariant, asymptotic
from convsv.spectra.calibrated import calibrated
from convsv.spectra.circulant import circulant
from trained import at_size, errors, exact_values, resnet20

SIZES = (4, 6, 8, 12, 16, 24, 32)
EXECUTION = Execution("cpu")
COLUMNS = ("l2", "mean", "max", "log_small")
NODES: tuple[Any, ...] = ("i/n", "i/(n+1)", "(i-1/2)/n")
BRANCHES: tuple[Any, ...] = ("each", "all")

Row = tuple[str, int, str, bool, tuple[float, ...]]


def two_moments(layer: ConvLayer, exact: Kernel) -> Kernel:
    """Quantiles with the exact norm and Frobenius norm: the larger root of a quadratic equation for alpha."""
    middle = QuantileVariant("(i-1/2)/n", "hazen", "all")
    q = values(asymptotic(layer, EXECUTION, variant=middle))
    t, beta = (q / q[0]) ** 2, exact[0] / q[0]
    square, cross = np.sum((q * (1 - t)) ** 2), beta * np.sum(q * q * t * (1 - t))
    rest = beta**2 * np.sum((q * t) ** 2) - np.sum(exact**2)
    alpha = (-cross + math.sqrt(max(cross**2 - square * rest, 0.0))) / square
    return np.asarray(q * (alpha + (beta - alpha) * t))


def values(spectrum: Spectrum) -> Kernel:
    assert spectrum.values is not None
    return spectrum.values


def methods() -> dict[str, Callable[[ConvLayer, Kernel], Kernel]]:
    """Every method by the name it has in the table."""
    found: dict[str, Callable[[ConvLayer, Kernel], Kernel]] = {
        "circulant": lambda layer, _: values(circulant(layer, EXECUTION))
    }
    for branches in BRANCHES:
        for nodes in NODES:
            variant = QuantileVariant(nodes, MEASURED_BEST.interpolation, branches)
            name = f"asymptotic {nodes} {branches}{' *' if variant == MEASURED_BEST else ''}"
            found[name] = lambda layer, _, variant=variant: values(asymptotic(layer, EXECUTION, variant=variant))
    found["two moments"] = two_moments
    found["calibrated"] = lambda layer, _: values(calibrated(layer, EXECUTION))
    return found


def log_small(found: Kernel, exact: Kernel) -> float:
    """Mean logarithmic error of the smallest fifth; what is below a millionth of the largest value counts as that."""
    least, small = 1e-6 * exact[0], slice(int(0.8 * len(exact)), None)
    return float(np.abs(np.log((found[small] + least) / (exact[small] + least))).mean())


def measured(name: str, stored: Kernel, case: Case) -> Iterator[Row]:
    """Yield a row a method."""
    exact, layer = exact_values(case, stored), case.layer(stored)
    whole = affordable_copy(torch.from_numpy(stored[None]), case.geometry, EXECUTION) == case.geometry
    for method, compute in methods().items():
        try:
            found = compute(layer, exact)
        except UnavailableError:
            continue
        yield name, case.geometry.size[0], method, whole, (*errors(found, exact), log_small(found, exact))


def rows(sizes: tuple[int, ...], side: int) -> Iterator[Row]:
    """Yield all rows, sizes first."""
    layers = resnet20(CHECKPOINTS)
    for n in sizes:
        for name, stored in layers.items():
            case = at_size(name, stored, n)
            outputs = case.geometry.output_size(stored.shape[2:])
            if min(stored.shape[0] * math.prod(outputs), stored.shape[1] * n * n) <= side:
                yield from measured(name, stored, case)


def summary(found: list[Row]) -> Iterator[str]:
    """Yield the lines of the table of means."""
    cells: dict[tuple[int, str], list[tuple[float, ...]]] = defaultdict(list)
    whole: dict[int, set[str]] = defaultdict(set)
    for name, n, method, is_whole, error in found:
        if is_whole:
            whole[n].add(name)
        else:
            cells[n, method].append(error)
    yield f"{'n':>3} {'layers':>6} {'method':<28} " + " ".join(f"{column:>9}" for column in COLUMNS)
    for (n, method), error in cells.items():
        means = np.exp(np.log(np.maximum(np.array(error), 1e-12)).mean(0))
        yield f"{n:>3} {len(error):>6} {method:<28} " + " ".join(f"{mean:9.4f}" for mean in means)
    yield "whole: " + ", ".join(f"{len(names)} at {n}" for n, names in sorted(whole.items()))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--side", type=int, default=2304, help="largest matrix to decompose for exact values")
    parser.add_argument("--rows", type=Path, help="write every row here, tab-separated")
    chosen = parser.parse_args()
    if not CHECKPOINTS.is_dir():
        print(f"skipped: no checkpoints in {CHECKPOINTS}")
        return
    with one_thread_a_call():
        found = list(rows(tuple(chosen.sizes), chosen.side))
    if chosen.rows:
        head = "\t".join(("layer", "n", "method", "whole", *COLUMNS))
        lines = ["\t".join((name, str(n), method, str(w), *map(repr, e))) for name, n, method, w, e in found]
        chosen.rows.write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")
    print("\n".join(summary(found)))


if __name__ == "__main__":
    main()
