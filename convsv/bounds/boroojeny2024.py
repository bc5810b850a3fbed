"""PowerQR: subspace iteration with products only."""

from __future__ import annotations

import torch

from convsv.bounds import Problem, bound
from convsv.bounds._iterations import certified_lower, random_inputs
from convsv.linalg import eigenpairs
from convsv.operator import ConvOperator

__all__ = ["boroojeny2024"]

_VECTORS = 8
_ROUNDS = 20


@bound(
    "boroojeny2024",
    side="lower",
    guarantee="certified",
    holds_for="layer",
    cost="20 products of 8 vectors with the layer and its adjoint",
    reference="A. Ebrahimpour-Boroojeny, M. Telgarsky, H. Sundaram: Spectrum Extraction and Clipping for Implicitly "
    "Linear Layers, AISTATS 2024",
)
def boroojeny2024(problem: Problem) -> float:
    """The largest ||A v|| over the vectors of 20 rounds of PowerQR, V <- Q of A^T A V, 8 vectors from a random start.

    The paper gets A^T by automatic differentiation of the layer; here it is the exact adjoint. Extracted values are
    lower bounds of the true ones of their rank.
    """
    operator = ConvOperator(problem.kernel, problem.geometry)
    vectors = random_inputs(operator, _VECTORS)
    for _ in range(_ROUNDS):
        product = operator.adjoint(operator.apply(vectors)).flatten(1)
        vectors = torch.linalg.qr(product.T)[0].T.reshape(-1, *operator.input_shape)
    # The leading Ritz vector of the subspace, rather than its first column.
    images = operator.apply(vectors).flatten(1)
    best = eigenpairs(images @ images.T)[1][:, -1] @ vectors.flatten(1)
    return certified_lower(problem, problem.geometry, best.reshape(1, *operator.input_shape))
