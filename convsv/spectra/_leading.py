"""Leading and trailing singular values of a layer too large for a dense matrix.

Each block of each group is an operator of its own; Golub-Kahan-Lanczos starts from the windowed Bloch waves of the
group's peak. Trailing values, which it finds slowly, come from inverse iteration where the factor fits into memory
(:mod:`convsv.spectra._inverse`). What is found is only a proposal: the vectors are taken to float64 on the CPU, and two
products there give certified statements, whatever precision and device they came from. With V orthonormal vectors, the
i-th singular value of A V is at most the i-th of A (and, counted from the other end, at least), by Cauchy's
interlacing; and for a unit vector v and theta > 0, with rho = ||A^T A v - theta^2 v||, some eigenvalue sigma^2 of A^T A
lies within rho of theta^2, so that |sigma - theta| <= min(rho / theta, sqrt(rho)).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from convsv.bloch import bloch_waves
from convsv.certificate import Budget, certify_with_peak
from convsv.errors import UnavailableError
from convsv.execution import Execution, full_precision
from convsv.geometry import Geometry
from convsv.golub_kahan import (
    LanczosOptions,
    LinearOperator,
    PartialSVD,
    leading_singular_values,
    trailing_singular_values,
)
from convsv.linalg import singular_value_error
from convsv.operator import ConvOperator
from convsv.peaks import Peak
from convsv.results import Interval
from convsv.rounding import above, below
from convsv.spectra._blocks import AxisPart, Block
from convsv.spectra._inverse import Vectors, memory_needed, trailing_vectors
from convsv.symbol import NormalForm, normal_form

__all__ = ["Extremes", "Problem", "extreme_values"]

_TOLERANCE = 1e-6
"""Residual, relative to the norm, at which a value counts as found; its own error is far below."""
_PRODUCTS = 2000
"""Most products for one block."""
_SUBSPACE = 20
"""Dimension, beyond twice the number of values, at which the iteration restarts where the memory budget allows it."""
_TRAILING_SUBSPACE = 160
"""The same for trailing values by this iteration: they lie so close together that it takes a large subspace."""
_RANDOM_BLOCK = 2
"""Random vectors that the iteration for trailing values starts from: nothing is known about theirs."""
_CERTIFY = Budget(seconds=20.0)

Product: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Problem:
    """A layer, scaled, and the blocks that it consists of.

    Attributes:
        kernel: ``(G, O, I, *K)`` float64 on the CPU, largest entry near 1.
        geometry: the layer's.
        blocks: of one group, each as one part an axis.
        norm: certified interval of its size-free norm, and ``peak`` where that is attained.
        copies: upper bound of the norm of the padding.
        execution: where to compute.
    """

    kernel: Tensor
    geometry: Geometry
    blocks: Sequence[tuple[AxisPart, ...]]
    norm: Interval
    peak: Peak | None
    copies: float
    execution: Execution


@dataclass
class Extremes:
    """What was found: values with residuals, how, and at what cost.

    Attributes:
        pairs: ``(value, residual)``, one for each copy, not sorted.
        products: operator products spent.
        blocks: blocks worked on.
        converged: whether every residual reached the tolerance.
        lacking: bytes that inverse iteration would have needed, where it was not affordable.
    """

    pairs: list[tuple[float, float]] = field(default_factory=list)
    products: int = 0
    blocks: int = 0
    converged: bool = True
    lacking: int = 0

    def add(self, found: list[tuple[float, float]], copies: int, spent: Vectors) -> None:
        """Take the values of one block."""
        self.pairs += [pair for pair in found for _ in range(copies)]
        self.products += spent.products
        self.blocks += 1
        self.converged &= spent.converged


def extreme_values(problem: Problem, count: int, *, smallest: bool = False) -> Extremes:
    """Return the ``count`` largest or smallest singular values of all blocks together.

    A group whose norm is certified to be below what was found already is left out.

    Args:
        problem: the layer.
        count: how many; of the blocks' own, without zeros between the blocks.
        smallest: the smallest instead of the largest.

    Returns:
        At least ``count`` values if there are so many, the wanted ones among them; certified as the head of this
        module says.

    Raises:
        UnavailableError: the vectors do not fit into the memory budget.
    """
    found = Extremes()
    for group, upper, peak in _groups(problem):
        reached = sorted((value for value, _ in found.pairs), reverse=True)[count - 1 : count]
        if not smallest and reached and reached[0] >= upper:
            break
        for parts in problem.blocks:
            block = Block(problem.kernel[group], parts)
            if upper == 0:
                found.pairs += [(0.0, 0.0)] * min(count, block.copies * min(block.sides))
                continue
            wanted = min(-(-count // block.copies), *block.sides)
            if not smallest:
                spent = _leading(problem, block, _waves(problem, group, peak, block), wanted)
            elif (needed := memory_needed(block, wanted)) <= problem.execution.memory:
                spent = _inverse(problem, block, wanted, upper)
            else:
                found.lacking = max(found.lacking, needed)
                spent = _trailing(problem, block, wanted)
            found.add(_certified(block, spent.vectors, upper, smallest=smallest), block.copies, spent)
    return found


def _groups(problem: Problem) -> Iterator[tuple[int, float, Peak | None]]:
    """Yield groups with a certified upper bound of their norm and their peak, the largest bound first."""
    geometry, certified = problem.geometry, []
    if len(problem.kernel) == 1:
        yield 0, _times(problem.norm.upper, problem.copies), problem.peak
        return
    for group in range(len(problem.kernel)):
        form = normal_form(problem.kernel[group : group + 1], geometry.stride, geometry.dilation)
        norm, peak = certify_with_peak(form, execution=problem.execution, budget=_CERTIFY)
        certified.append((group, _times(norm.upper, problem.copies), peak))
    yield from sorted(certified, key=lambda found: -found[1])


def _times(upper: float, copies: float) -> float:
    return above(upper * copies, 2) if upper > 0 else 0.0


def _waves(problem: Problem, group: int, peak: Peak | None, block: Block) -> Tensor | None:
    """Return the windowed Bloch waves of a peak as inputs of a block."""
    if peak is None:
        return None
    geometry, kernel = problem.geometry, problem.kernel[group : group + 1].to(peak.vector.device)
    form: NormalForm = normal_form(kernel, geometry.stride, geometry.dilation)
    waves = bloch_waves(form, geometry, peak, geometry.forward_size(tuple(kernel.shape[3:])))
    # Without the window a wave is better only where padding copies.
    waves = waves[:2] if geometry.padding_mode == "zeros" else waves
    for axis, part in enumerate(block.parts, start=2):
        waves = waves.index_select(axis, torch.tensor(part.inputs, device=waves.device))
    return waves


class _Turned:
    """The adjoint of an operator as an operator."""

    def __init__(self, operator: LinearOperator) -> None:
        self.dtype, self.device = operator.dtype, operator.device
        self.input_shape, self.output_shape = operator.output_shape, operator.input_shape
        self.apply, self.adjoint = operator.adjoint, operator.apply


def _operator(problem: Problem, block: Block) -> LinearOperator:
    """Return a block as torch's convolution where it is a whole group, else as it is.

    That is several times faster than a product with the unfolded input.
    """
    convolution = ConvOperator(block.kernel[None], problem.geometry)
    whole: LinearOperator = _Turned(convolution) if problem.geometry.transposed else convolution
    alike = (whole.input_shape, whole.output_shape) == (block.input_shape, block.output_shape)
    return whole if alike else block


def _leading(problem: Problem, block: Block, start: Tensor | None, count: int) -> Vectors:
    """Find leading values, where and in which precision the user wants it."""
    there = block.to(problem.execution.torch_device, problem.execution.torch_dtype)
    options = _options(problem, there, count, _SUBSPACE + 2 * count)
    start = None if start is None else start.to(there.device, there.dtype)
    with full_precision():
        found = leading_singular_values(_operator(problem, there), count, start=start, options=options)
    return _smaller_side(there, found)


def _inverse(problem: Problem, block: Block, count: int, norm: float) -> Vectors:
    """Find trailing values by inverse iteration, in double precision."""
    there = block.to(problem.execution.torch_device, torch.float64)
    operator = _operator(problem, there)
    return trailing_vectors(_Turned(operator) if there.is_wide else operator, there, count, norm, _TOLERANCE)


def _trailing(problem: Problem, block: Block, count: int) -> Vectors:
    """Find trailing values by products alone, as far as they go."""
    there = block.to(problem.execution.torch_device, problem.execution.torch_dtype)
    random = torch.Generator().manual_seed(1)
    guesses = torch.randn(_RANDOM_BLOCK, *there.input_shape, generator=random, dtype=torch.float64)
    start = guesses.to(there.device, there.dtype)
    options = _options(problem, there, count, _TRAILING_SUBSPACE)
    with full_precision():
        found = trailing_singular_values(_operator(problem, there), count, start=start, options=options)
    return _smaller_side(there, found)


def _smaller_side(block: Block, found: PartialSVD) -> Vectors:
    return Vectors(found.left if block.is_wide else found.right, found.products, found.converged)


def _options(problem: Problem, there: Block, count: int, subspace: int) -> LanczosOptions:
    """Return how to run the iteration within the memory budget.

    Raises:
        UnavailableError: not even the smallest subspace fits into it.
    """
    vector = sum(there.sides) * there.dtype.itemsize
    least = 2 * count + 8
    affordable = problem.execution.memory // (2 * vector)
    if affordable < least:
        needed = 2 * least * vector
        raise UnavailableError(f"{count} singular vectors need {needed} bytes, more than the memory budget")
    return LanczosOptions(
        tolerance=max(_TOLERANCE, 64 * float(torch.finfo(there.dtype).eps)),
        products=_PRODUCTS,
        subspace=max(least, min(affordable, subspace)),
    )


# ------------------------------------------------------------------------------------------------------- certification


def _certified(block: Block, vectors: Tensor, norm: float, *, smallest: bool) -> list[tuple[float, float]]:
    """Return certified values and the distance of each to a true singular value, from products in float64.

    Args:
        block: the operator, float64 on the CPU.
        vectors: what the iteration found, of its smaller side: there A^T A has no eigenvalue but the squares of
            singular values.
        norm: upper bound of the block's norm.
        smallest: whether its values are the smallest: they are rounded up then, and else down.
    """
    forward: Product = block.adjoint if block.is_wide else block.apply
    backward: Product = block.apply if block.is_wide else block.adjoint
    shape = vectors.shape[1:]
    basis = torch.linalg.qr(vectors.to("cpu", torch.float64).flatten(1).T)[0].T
    rotation = torch.linalg.svd(forward(basis.reshape(-1, *shape)).flatten(1), full_matrices=False)[0]
    basis = rotation.T @ basis
    images = forward(basis.reshape(-1, *shape))
    values: list[float] = torch.linalg.svdvals(images.flatten(1)).tolist()
    backs = backward(images).flatten(1)

    count, length = basis.shape
    # Of inner products and norms this long, to first order with room for the second.
    summing = (length + max(block.sides) + 16) * float(torch.finfo(torch.float64).eps)
    skew = float((basis @ basis.T - torch.eye(count, dtype=torch.float64)).norm()) + count * summing
    wrong = singular_value_error((count, images[0].numel()), torch.float64, values[0])
    wrong += 2 * math.sqrt(count) * block.rounding
    found = []
    for value, vector, back in zip(values, basis, backs, strict=True):
        if smallest:
            theta = above((value + wrong) / math.sqrt(max(1 - skew, 0.5)), 4)
        else:
            theta = below((value - wrong) / math.sqrt(1 + skew), 4)
        rho = float((back - theta * theta * vector).norm()) * (1 + summing)
        # Both products err, the first one by what the second then stretches; and so do the difference and its norm.
        rho += 3 * block.rounding * (norm + value) + summing * (theta * theta + value * norm)
        rho /= 1 - skew
        found.append((theta, above(min(rho / theta if theta > 0 else math.inf, math.sqrt(rho)), 8)))
    return found
