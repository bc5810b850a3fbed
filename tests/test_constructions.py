"""What constructions promise, confirmed by the analysis of what they return."""

from __future__ import annotations

import pytest
import torch

from convsv import Geometry, operator_norm, spectrum
from convsv.constructions import cayley, compress, factors, flat_spectrum, low_rank, truncate
from convsv.errors import UsageError
from convsv.spectra import SpectrumOptions

SHAPES = [(4, 4, 3, 3), (5, 3, 3, 2), (3, 5, 2, 3), (3, 2, 4), (2, 3, 2, 2, 1)]


def random_kernel(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


def circle(size: tuple[int, ...], taps: tuple[int, ...]) -> Geometry:
    padding = tuple((k // 2, (k - 1) // 2) for k in taps)
    return Geometry(size, (1,) * len(size), padding, "circular")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cayley_is_orthogonal_at_its_size(shape: tuple[int, ...]) -> None:
    size = tuple(5 + axis for axis in range(len(shape) - 2))
    kernel = cayley(random_kernel(shape), size)
    assert kernel.shape == (*shape[:2], *size)
    found = spectrum(kernel, circle(size, size), options=SpectrumOptions(values=True))
    assert found.count == min(shape[:2]) * int(torch.tensor(size).prod())
    assert found.max == pytest.approx(1, abs=1e-12)
    assert found.min == pytest.approx(1, abs=1e-12)


def test_cayley_is_orthogonal_at_no_other_size_and_says_so() -> None:
    kernel = cayley(random_kernel((3, 3, 3, 3)), (6, 6))
    assert operator_norm(kernel).upper > 1.01


@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_truncation_moves_singular_values_by_no_more_than_it_says(shape: tuple[int, ...]) -> None:
    size, support = (6, 5), (3, 3)
    kernel, most = truncate(cayley(random_kernel(shape), size), support)
    assert kernel.shape == (*shape[:2], *support)
    found = spectrum(kernel, circle(size, support), options=SpectrumOptions(values=True))
    assert found.max <= 1 + most
    assert found.min >= 1 - most
    whole, nothing = truncate(kernel, support)
    assert torch.equal(whole, kernel)
    assert nothing == pytest.approx(0, abs=1e-12)


def test_cayley_has_a_gradient() -> None:
    kernel = random_kernel((3, 2, 2, 2)).requires_grad_()
    assert torch.autograd.gradcheck(lambda k: cayley(k, (3, 4)), kernel)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_factors_have_their_rank_at_every_frequency(shape: tuple[int, ...], stride: int) -> None:
    first, second = factors(random_kernel(shape), 2)
    product = torch.einsum("or,rik->oik", second.flatten(1), first.flatten(2)).reshape(shape)
    size = (6,) * (len(shape) - 2)
    geometry = Geometry(size, (stride,) * len(size), circle(size, shape[2:]).padding, "circular")
    values = spectrum(product, geometry, options=SpectrumOptions(values=True)).values
    assert values is not None
    points = (6 // stride) ** len(size)
    assert (values[2 * points :] <= 1e-12 * values[0]).all()
    one, other = operator_norm(first, geometry, tol=1e-6), operator_norm(product, geometry, tol=1e-6)
    assert one.upper == pytest.approx(other.upper, rel=2e-6)


def test_low_rank_reports_what_is_beyond_and_is_nearer_than_factors() -> None:
    kernel = random_kernel((4, 4, 3, 3))
    found = low_rank(kernel, 2)
    assert found.reached is not None
    assert found.reached.beyond is not None
    assert found.reached.beyond < 0.1
    first, second = factors(kernel, 2)
    product = torch.einsum("or,rik->oik", second.flatten(1), first.flatten(2)).reshape(kernel.shape)
    assert torch.linalg.vector_norm(found.kernel - kernel) < torch.linalg.vector_norm(product - kernel)
    norm = operator_norm(found.kernel)
    assert found.norm.lower <= norm.upper
    assert norm.lower <= found.norm.upper


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_flat_spectrum_is_flatter_and_within_its_norm(dtype: torch.dtype) -> None:
    kernel = random_kernel((4, 3, 3, 3), dtype)
    geometry = Geometry((8, 8), (2, 2), ((1, 1), (1, 1)))
    before = spectrum(kernel, circle((8, 8), (3, 3)))
    found = flat_spectrum(kernel, geometry, max_norm=0.5)
    assert found.kernel.dtype == dtype
    assert found.norm.upper <= 0.5
    assert operator_norm(found.kernel, geometry).lower <= 0.5
    assert found.reached is not None
    assert found.reached.largest / found.reached.smallest < before.max / before.min


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_compressed_kernel_has_the_norm_of_its_core(shape: tuple[int, ...]) -> None:
    tensor = compress(random_kernel(shape), (2, 2))
    size = (4,) * (len(shape) - 2)
    geometry = Geometry(size, (2,) * len(size), ((1, 1),) * len(size))
    core, full = (operator_norm(kernel, geometry, tol=1e-6) for kernel in (tensor.core, tensor.full()))
    assert core.lower <= full.upper
    assert full.lower <= core.upper
    clipped = tensor.clipped(0.5, geometry)
    assert operator_norm(clipped.core, geometry).lower <= 0.5
    assert operator_norm(clipped.full(), geometry, tol=1e-5).upper <= 0.5
    assert operator_norm(clipped.full(), geometry).lower >= 0.49


def test_all_channels_compress_to_the_kernel_itself() -> None:
    kernel = random_kernel((4, 3, 3, 3))
    assert torch.allclose(compress(kernel, (4, 3)).full(), kernel)


def test_what_cannot_be_made() -> None:
    kernel = random_kernel((4, 3, 3, 3))
    with pytest.raises(UsageError, match="size"):
        cayley(kernel, (2, 8))
    with pytest.raises(UsageError, match="support"):
        truncate(kernel, (4, 3))
    with pytest.raises(UsageError, match="rank"):
        factors(kernel, 5)
    with pytest.raises(UsageError, match="ranks"):
        compress(kernel, (5, 3))
