"""Differentiable bounds, the penalty and the projection, against finite differences, the catalogue and the oracle."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import cases
from convsv import operator_norm
from convsv.bounds import BOUNDS, bounds_of
from convsv.differentiable import (
    GRADIENTS,
    WITHOUT_GRADIENT,
    NormBall,
    SpectralClip,
    _bound,
    bounded,
    geometry_of,
    layer_bound,
    layer_bounds,
    norm_bound,
    spectral_penalty,
)
from convsv.differentiable import clip as clip_module
from convsv.errors import ComputationError, UnavailableError, UsageError
from convsv.execution import Execution
from convsv.geometry import Geometry
from convsv.results import Bound

CPU = Execution(device="cpu", jobs=1)
CASES = cases.GRID[::9] + list(cases.NAMED.values())
SHARED = sorted(name for name in GRADIENTS if name in BOUNDS)


def kernel_of(case: cases.Case) -> Tensor:
    return torch.from_numpy(case.kernel()).requires_grad_()


def model() -> nn.Sequential:
    """One convolution of each sort, small."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.Conv2d(6, 6, 3, padding=1, groups=6),
        nn.Conv2d(6, 8, 1),
        nn.Conv2d(8, 8, 4, stride=2, padding=1),
        nn.Conv2d(8, 8, 3, dilation=2, padding="same"),
        nn.Conv2d(8, 8, 3, padding=2, padding_mode="reflect"),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular", stride=2),
        nn.ConvTranspose2d(8, 6, 4, stride=2, padding=1),
        nn.Flatten(2),
        nn.Conv1d(6, 4, 5),
    )


# -------------------------------------------------------------------------------------------------------------- bounds


def test_every_bound_is_differentiable_or_says_why_not() -> None:
    assert {name for name in BOUNDS if name not in GRADIENTS} == set(WITHOUT_GRADIENT)
    assert all(WITHOUT_GRADIENT.values())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_values_are_those_of_the_catalogue(case: cases.Case) -> None:
    found = bounds_of(case.layer(), SHARED, execution=CPU)
    for name, result in found.items():
        if isinstance(result, Bound):
            value = norm_bound(kernel_of(case), case.geometry, name).detach()
            # What is certified has slack for rounding; how near two searches for an estimate end is up to their stop.
            near = 1e-8 if result.guarantee == "certified" else 1e-6
            assert float(value) == pytest.approx(result.value, rel=near), name
        else:
            with pytest.raises(UnavailableError):
                norm_bound(kernel_of(case), case.geometry, name)


@pytest.mark.parametrize("case", CASES[::3], ids=lambda case: case.id)
def test_gradients_agree_with_finite_differences(case: cases.Case) -> None:
    for name in GRADIENTS:
        kernel = kernel_of(case)
        try:
            norm_bound(kernel, case.geometry, name)
        except UnavailableError:
            continue
        # Along random directions: entry by entry a search would have to be repeated for every entry of the kernel.
        assert torch.autograd.gradcheck(
            lambda k, name=name: norm_bound(k, case.geometry, name), kernel, eps=1e-6, atol=1e-5, fast_mode=True
        ), name


@pytest.mark.parametrize("name", list(GRADIENTS))
def test_zero_has_a_gradient_of_zero(name: str) -> None:
    kernel = torch.zeros(2, 3, 3, 3, requires_grad=True)
    value = norm_bound(kernel, None, name)
    value.backward()
    assert value.detach() == 0
    assert kernel.grad is not None
    assert not kernel.grad.any()


@pytest.mark.parametrize("name", list(GRADIENTS))
def test_equal_maximisers_give_a_subgradient(name: str) -> None:
    """At the identity all singular values are equal: u v* of one has trace 1 there, and so has any mixture."""
    kernel = torch.zeros(3, 3, 3, 3, dtype=torch.float64)
    kernel[:, :, 1, 1] = torch.eye(3, dtype=torch.float64)
    kernel.requires_grad_()
    value = norm_bound(kernel, None, name)
    (slope,) = torch.autograd.grad(value, kernel)
    assert torch.isfinite(slope).all()
    # Every bound is homogeneous of degree 1: Euler's theorem holds for each element of the subdifferential.
    assert float((slope * kernel.detach()).sum()) == pytest.approx(float(value.detach()), rel=1e-9)


@pytest.mark.parametrize("name", [name for name, entry in GRADIENTS.items() if entry.direct])
def test_layers_together_are_what_each_is_by_its_graph(name: str) -> None:
    """Shapes alike and not, groups, strides, scales, a kernel of zeros and one in half precision: nothing mixes."""
    torch.manual_seed(0)
    alike = [nn.Conv2d(6, 4, 3, groups=2, stride=2, dilation=2) for _ in range(3)]
    others = [nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, stride=2), nn.Conv2d(8, 8, 3, groups=8), nn.Conv1d(9, 2, 1)]
    large = [nn.Conv2d(60, 50, 3, stride=2), nn.ConvTranspose2d(50, 60, 2, stride=2), nn.Conv3d(2, 3, (1, 2, 3))]
    layers = [*alike, *others, *large]
    weights = [layer.weight.detach().double() for layer in layers]
    weights[1], weights[3], weights[4] = weights[1] * 1e-30, torch.zeros_like(weights[3]), weights[4].half()
    pairs = [(w.requires_grad_(), geometry_of(layer)) for w, layer in zip(weights, layers, strict=True)]
    together = layer_bounds(pairs, name)
    slopes = torch.autograd.grad(together.sum(), weights)
    without = dataclasses.replace(GRADIENTS[name], direct=None)
    for pair, value, slope in zip(pairs, together.detach(), slopes, strict=True):
        alone = _bound._together(without, [pair], None)
        (expected,) = torch.autograd.grad(alone.sum(), pair[0])
        assert float(value) == pytest.approx(float(alone.detach()), rel=1e-12)
        assert torch.allclose(slope, expected, rtol=1e-8 if slope.dtype == torch.float64 else 2e-3, atol=1e-10)


def test_second_derivatives_are_refused() -> None:
    kernel = torch.randn(2, 2, 3, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(norm_bound(kernel), kernel, create_graph=True)
    with pytest.raises(RuntimeError, match="once, not twice"):
        slope.sum().backward()


def test_a_certified_value_is_that_of_the_catalogue_with_the_same_gradient() -> None:
    case = cases.NAMED["strided and dilated"]
    kernel = kernel_of(case)
    for name in ("singla2021", "tap_sum"):
        plain, certified = (norm_bound(kernel, case.geometry, name, certified=flag) for flag in (False, True))
        found = bounds_of(case.layer(), [name], execution=CPU)[name]
        assert isinstance(found, Bound)
        assert float(certified.detach()) == found.value
        slopes = [torch.autograd.grad(value, kernel)[0] for value in (plain, certified)]
        assert torch.equal(*slopes)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scale_does_not_matter(scale: float) -> None:
    kernel = torch.randn(3, 2, 3, 3)
    for name in GRADIENTS:
        geometry = Geometry((6, 6), (1, 1), ((1, 1), (1, 1)))
        one, other = (float(norm_bound(k, geometry, name)) for k in (kernel, kernel.double() * scale))
        assert other == pytest.approx(one * scale, rel=1e-9)


@pytest.mark.parametrize(
    ("bound", "message"),
    [("gouk2018", "no gradient"), ("nothing", "unknown"), ("delattre2023", "one input size")],
)
def test_what_cannot_be_asked_for(bound: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        spectral_penalty(nn.Conv2d(1, 1, 3), bound)


def test_nan_is_refused() -> None:
    with pytest.raises(UnavailableError, match="NaN"):
        norm_bound(torch.full((1, 1, 3), torch.nan))


# ------------------------------------------------------------------------------------------------------------- modules


@pytest.mark.parametrize("index", [i for i, m in enumerate(model()) if not isinstance(m, nn.Flatten)])
def test_geometry_is_read_from_modules(index: int) -> None:
    """The module itself is the oracle: its matrix, at some size, has a norm below every upper bound of the layer."""
    layer = model().double()[index]
    dims = layer.weight.ndim - 2
    size = (7,) if dims == 1 else (6, 5)
    layer.bias = None
    inputs = torch.eye(int(layer.in_channels * np.prod(size)), dtype=torch.float64)
    matrix = layer(inputs.reshape(-1, layer.in_channels, *size)).flatten(1).detach()
    norm = float(torch.linalg.matrix_norm(matrix, 2))
    for name, entry in GRADIENTS.items():
        if entry.side == "upper" and entry.holds_for == "any size":
            assert norm <= float(layer_bound(layer.weight.detach(), geometry_of(layer), name)) * (1 + 1e-9), name


def test_the_penalty_is_the_sum_of_bounds() -> None:
    network = model()
    layers = [module for module in network if not isinstance(module, nn.Flatten)]
    total = sum(float(layer_bound(m.weight.detach(), geometry_of(m), "singla2021")) for m in layers)
    penalty = spectral_penalty(network, "singla2021")
    assert penalty.shape == ()
    assert penalty.dtype == torch.float32
    assert float(penalty.detach()) == pytest.approx(total, rel=1e-6)
    penalty.backward()
    assert all(m.weight.grad is not None and m.weight.grad.any() for m in layers)


def test_the_penalty_starts_at_its_target_and_chooses_layers() -> None:
    network = model()

    def penalty(**options: Any) -> float:
        return float(spectral_penalty(network, **options).detach())

    one = penalty(include=["3"])
    assert penalty(target=one + 1, include=["3"]) == 0
    assert penalty(target=one - 2, include=["3"]) == pytest.approx(2, rel=1e-5)
    assert penalty(target=one - 2, squared=True, include=["3"]) == pytest.approx(4, rel=1e-5)
    assert penalty(exclude=["3"]) + one == pytest.approx(penalty(), rel=1e-6)
    assert spectral_penalty(nn.Linear(2, 2)) == 0


def test_autocast_does_not_reach_the_bound() -> None:
    network = model()
    plain = spectral_penalty(network, "singla2021")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(spectral_penalty(network, "singla2021"), plain)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # asked for by torch's own tracer
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_the_penalty_under_compile(backend: str) -> None:
    layer, images = nn.Conv2d(2, 3, 3), torch.ones(1, 2, 5, 5)

    def loss() -> Tensor:
        return layer(images).sum() + spectral_penalty(layer)

    slopes = [
        torch.autograd.grad(function(), layer.weight)[0] for function in (loss, torch.compile(loss, backend=backend))
    ]
    assert torch.allclose(*slopes)
    assert torch.allclose(torch.compile(loss, backend=backend)(), loss())


def test_weights_are_read_through_parametrisations() -> None:
    layer = parametrizations.weight_norm(nn.Conv2d(2, 3, 3))
    penalty = spectral_penalty(layer)
    expected = norm_bound(layer.weight.detach(), geometry_of(layer))
    assert float(penalty.detach()) == pytest.approx(float(expected), rel=1e-6)
    penalty.backward()
    assert all(parameter.grad is not None for name, parameter in layer.named_parameters() if name != "bias")


# ------------------------------------------------------------------------------------------------------------ clipping


def assert_within(network: nn.Module, radius: float) -> int:
    """The norm of each layer, certified by another route and far more sharply, is at most the radius."""
    count = 0
    for module in network.modules():
        if hasattr(module, "padding_mode"):
            count += 1
            assert layer_bound(module.weight.detach(), geometry_of(module), "norm") <= radius
            assert operator_norm(module.weight, geometry_of(module), tol=1e-4).lower <= radius
    return count


@pytest.mark.parametrize(
    ("method", "dtype"),
    [
        ("scale", torch.float64),
        ("scale", torch.float32),
        ("scale", torch.float16),
        ("scale", torch.bfloat16),
        ("nearest", torch.float32),
    ],
)
def test_after_a_clip_no_layer_is_above_the_norm(method: str, dtype: torch.dtype) -> None:
    network = model().to(dtype)
    found = SpectralClip(network, 0.5, method=method).clip()
    assert set(found) == {str(i) for i in range(10) if i != 8}
    assert all(value <= 0.5 for value in found.values())
    assert assert_within(network, 0.5) == 9


def test_a_clip_leaves_alone_what_is_within() -> None:
    network = model()
    before = copy.deepcopy(network.state_dict())
    SpectralClip(network, 100.0).clip()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_a_layer_far_within_needs_no_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    network = model()

    def refuse(*_: Any) -> float:
        raise AssertionError("certified at more cost")

    monkeypatch.setattr(clip_module, "certified_upper", refuse)
    found = SpectralClip(network, 50.0).clip()
    for name, module in network.named_children():
        if name in found:
            norm = operator_norm(module.weight, geometry_of(module), tol=1e-4)
            assert norm.lower <= found[name] <= 50.0


def test_steps_are_counted_and_stored() -> None:
    network = model()
    clip = SpectralClip(network, 0.5, every=3)
    assert [clip.step() for _ in range(5)] == [False, False, True, False, False]
    other = SpectralClip(network, 0.5, every=3)
    other.load_state_dict(clip.state_dict())
    assert other.step()


def training_run(hook: Callable[[nn.Module], SpectralClip]) -> tuple[nn.Module, int]:
    network = model()
    clip, checked = hook(network), 0
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(1)
    for _ in range(12):
        optimizer.zero_grad()
        network(torch.randn(4, 1, 8, 8, generator=generator)).square().mean().neg().backward()
        optimizer.step()
        if clip.step():
            checked += assert_within(network, clip.max_norm)
    return network, checked


def test_no_layer_is_above_the_norm_after_any_clip_of_a_run() -> None:
    assert training_run(lambda network: SpectralClip(network, 0.7, every=2))[1] == 6 * 9


def test_two_runs_end_with_the_same_bits() -> None:
    one, other = (training_run(lambda network: SpectralClip(network, 0.7, every=5))[0] for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(one.parameters(), other.parameters(), strict=True))


def test_tied_weights_of_different_geometry_suit_both() -> None:
    one, other = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, stride=2, padding_mode="reflect", padding=2)
    other.weight = one.weight
    network = nn.Sequential(one, other)
    for method in ("scale", "nearest"):
        SpectralClip(network, 0.3, method=method).clip()
        assert assert_within(network, 0.3) == 2


def test_a_clip_writes_through_a_parametrisation_or_refuses() -> None:
    layer = parametrizations.weight_norm(nn.Conv2d(2, 3, 3))
    SpectralClip(layer, 0.2).clip()
    assert assert_within(layer, 0.2) == 1
    stubborn = parametrizations.spectral_norm(nn.Conv2d(2, 3, 3))
    with pytest.raises(ComputationError, match="does not keep"):
        SpectralClip(stubborn, 0.2).clip()
    with pytest.raises(UsageError, match="hook"):
        SpectralClip(torch.nn.utils.spectral_norm(nn.Conv2d(2, 3, 3)), 0.2)


# ---------------------------------------------------------------------------------------------------------------- ball


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bound", ["singla2021", "norm"])
def test_a_bounded_layer_is_within_the_norm_and_uses_it(bound: str, dtype: torch.dtype) -> None:
    network = model()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(4)
    network.to(dtype)
    for module in network:
        if not isinstance(module, nn.Flatten):
            bounded(module, 0.4, bound)
    assert assert_within(network, 0.4) == 9
    if bound == "norm" and dtype == torch.float32:
        norms = [float(layer_bound(m.weight.detach(), geometry_of(m), "norm")) for m in network if hasattr(m, "stride")]
        assert min(norms) >= 0.4 * (1 - 2e-3)


@pytest.mark.parametrize("bound", ["singla2021", "norm"])
def test_a_bounded_layer_stays_within_while_it_learns_to_grow(bound: str) -> None:
    torch.manual_seed(0)
    layer = bounded(nn.Conv2d(3, 4, 3, padding=1), 0.5, bound)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    images = torch.randn(2, 3, 6, 6)
    outputs = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = -layer(images).square().mean()
        outputs.append(-loss.item())
        loss.backward()
        optimizer.step()
        assert assert_within(layer, 0.5) == 1
    assert outputs[-1] > outputs[0]


def test_the_ball_leaves_alone_what_is_within_and_gives_back_what_is_assigned() -> None:
    layer = nn.Conv2d(2, 2, 3)
    weight = layer.weight.detach().clone()
    bounded(layer, 100.0)
    assert torch.equal(layer.weight, weight)
    layer.weight = weight * 0.5
    assert torch.equal(layer.weight, weight * 0.5)


def test_the_gradient_through_the_ball_agrees_with_finite_differences() -> None:
    ball = NormBall(geometry_of(nn.Conv2d(3, 2, 3)), 0.5)
    weight = torch.randn(2, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ball, weight, eps=1e-6, atol=1e-6)


def test_autocast_does_not_reach_the_ball() -> None:
    layer = bounded(nn.Conv2d(2, 3, 3), 0.1)
    weight = layer.weight.detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer.weight.detach(), weight)


@pytest.mark.filterwarnings("ignore:The .grad attribute")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_the_ball_under_compile(backend: str) -> None:
    layer, images = bounded(nn.Conv2d(2, 3, 3), 0.1), torch.ones(1, 2, 5, 5)
    weight = layer.parametrizations["weight"].original
    outputs = [function(images) for function in (layer, torch.compile(layer, backend=backend))]
    assert torch.allclose(*outputs)
    assert torch.allclose(*(torch.autograd.grad(output.square().sum(), weight)[0] for output in outputs))


@pytest.mark.parametrize("bound", ["miyato2018", "grishina2024", "delattre2023", "gouk2018"])
def test_what_cannot_bound_a_ball(bound: str) -> None:
    with pytest.raises(UsageError):
        bounded(nn.Conv2d(1, 1, 3), 1.0, bound)
