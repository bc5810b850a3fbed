"""The tensor norm bound: the kernel as a tensor of d + 2 ways instead of a matrix."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from convsv.bounds import Problem, bound

__all__ = ["ROUNDS", "STARTS", "alternate", "contract", "grishina2024", "tensor_norm"]

STARTS = 4
"""Random starts."""
ROUNDS = 200
"""Most rounds from each."""


@bound(
    "grishina2024",
    side="upper",
    guarantee="estimate",
    holds_for="any size",
    cost="c_out c_in k^d a round and start",
    reference="E. Grishina, M. Gorbunov, M. Rakhuba: Tight and Efficient Upper Bound on Spectral Norm of Convolutional "
    "Layers, ECCV 2024",
)
def grishina2024(problem: Problem) -> float:
    """sqrt(prod K) times the spectral norm of K as a complex tensor of d + 2 ways.

    The theorem is an upper bound: u^T F(w) v is the tensor applied to u, v and one vector of phases an axis. The norm
    of a tensor is NP-hard, and alternating maximisation ends in a local maximum, which is below it: the computed value
    may lie below the layer's norm. Hence an estimate. Random starts (here 4) make that rare, not impossible.
    """
    kernel = problem.form.kernel
    return float(tensor_norm(kernel, STARTS, ROUNDS).max()) * math.sqrt(math.prod(kernel.shape[3:]))


def tensor_norm(kernel: Tensor, starts: int, rounds: int, tolerance: float = 1e-9) -> Tensor:
    """Return the best local maximum that alternating maximisation (higher-order power method) finds, ``(G,)``.

    The arguments are those of :func:`alternate`.
    """
    return alternate(kernel, starts, rounds, tolerance)[0].amax(1)


def alternate(kernel: Tensor, starts: int, rounds: int, tolerance: float = 1e-9) -> tuple[Tensor, list[Tensor]]:
    """Return local maxima ``(G, S)`` of the tensor's product with unit vectors, and the vectors ``(G, S, n)``.

    Args:
        kernel: ``(G, O, I, *K)`` real.
        starts: number of random starts.
        rounds: largest number of rounds, each of which updates every way once.
        tolerance: relative gain of a round below which to stop.
    """
    generator = torch.Generator().manual_seed(0)
    tensor = torch.complex(kernel, torch.zeros_like(kernel))
    groups, ways = kernel.shape[0], tuple(kernel.shape[1:])
    vectors = []
    for length in ways:
        parts = torch.randn(2, groups, starts, length, generator=generator, dtype=torch.float64).to(kernel)
        vectors.append(_normalised(torch.complex(parts[0], parts[1])))
    value = kernel.new_zeros(groups, starts)
    for _ in range(rounds):
        before = value
        for way in range(len(ways)):
            gradient = contract(tensor, vectors, way).conj()
            value = torch.linalg.vector_norm(gradient, dim=-1)
            vectors[way] = _normalised(gradient)
        if bool((value - before <= tolerance * value).all()):
            break
    return value, vectors


def contract(tensor: Tensor, vectors: list[Tensor], kept: int) -> Tensor:
    """Apply the tensor ``(G, *ways)`` to all vectors ``(G, S, n)`` but one: ``(G, S, n_kept)``."""
    names = "abcdefgh"[: len(vectors)]
    others = [way for way in range(len(vectors)) if way != kept]
    # The widest ways first: what is left is small.
    others.sort(key=lambda way: -vectors[way].shape[-1])
    starts = vectors[kept].shape[1]
    result, left = tensor[:, None].expand(-1, starts, *tensor.shape[1:]), names
    for way in others:
        rest = left.replace(names[way], "")
        result = torch.einsum(f"gs{left},gs{names[way]}->gs{rest}", result, vectors[way])
        left = rest
    return result


def _normalised(vectors: Tensor) -> Tensor:
    lengths = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / torch.where(lengths > 0, lengths, torch.ones_like(lengths))
