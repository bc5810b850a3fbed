"""The judge of network bounds: no slope that is ever measured is above them, for every rule and random networks."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from flint import arb, ctx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - as everybody calls it

import convsv
from convsv.errors import UsageError
from convsv.network import RULES
from convsv.network.activations import CONSTANTS
from convsv.network.pooling import axis_windows, most_windows
from convsv.network.robustness import certified_accuracy, certified_radii
from convsv.network.unbounded import REASONS

ROUNDING = 1 + 1e-9
"""What a measured norm may be too large by: its own rounding, in double precision."""


class Function(nn.Module):
    """A function as a model."""

    def __init__(self, function: Callable[[Tensor], Tensor], **tensors: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def steepest(model: nn.Module, shape: tuple[int, ...], points: int = 12, seed: int = 0) -> float:
    """Return the largest norm of the Jacobian that is met: at random points, and by walking uphill from the best."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    best, where = 0.0, torch.zeros(shape, dtype=torch.float64)
    for number in range(points):
        x = torch.randn(shape, generator=generator, dtype=torch.float64) * (0.1, 1.0, 4.0)[number % 3]
        found = _slope(model, x)
        best, where = max((best, where), (found, x), key=lambda pair: pair[0])
    for _ in range(points):
        x = where + torch.randn(shape, generator=generator, dtype=torch.float64) * 0.3
        found = _slope(model, x)
        best, where = max((best, where), (found, x), key=lambda pair: pair[0])
    return max(best, _ratio(model, shape, generator))


def _slope(model: nn.Module, x: Tensor) -> float:
    jacobian: Any = torch.autograd.functional.jacobian(model, x, vectorize=True)
    return float(torch.linalg.matrix_norm(jacobian.reshape(-1, x.numel()), 2))


def _ratio(model: nn.Module, shape: tuple[int, ...], generator: torch.Generator) -> float:
    """Return the largest quotient of distances that gradient ascent finds."""
    pair = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)]
    optimizer = torch.optim.Adam(pair, lr=0.05)
    best = 0.0
    for _ in range(25):
        x, y = pair
        quotient = (model(x) - model(y)).norm() / (x - y).norm()
        best = max(best, quotient.item())
        if not quotient.item() or not quotient.requires_grad:
            break
        optimizer.zero_grad()
        (-quotient.log()).backward()
        optimizer.step()
    return best


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ------------------------------------------------------------------------------------------------------- every rule


@dataclass(frozen=True)
class Case:
    """One operation: its kind, what does it, on which shape, and how near a measured slope is to come."""

    kind: str
    function: Callable[[Tensor], Tensor] | nn.Module
    shape: tuple[int, ...] = (1, 3, 6)
    near: float = 0.9
    rounding: float = ROUNDING

    @property
    def model(self) -> nn.Module:
        return self.function if isinstance(self.function, nn.Module) else Function(self.function)


def normed(module: nn.Module) -> nn.Module:
    """Return a batch normalisation with statistics that are not those of a new one."""
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(random(*tensor.shape, seed=len(name)).abs() + 0.1)
    return module


ELEMENTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "relu6": F.relu6, "abs": torch.abs, "negative": torch.neg, "tanhshrink": F.tanhshrink,
    "softshrink": F.softshrink, "tanh": torch.tanh, "softsign": F.softsign, "sin": torch.sin, "cos": torch.cos,
    "atan": torch.atan, "softplus": F.softplus, "logsigmoid": F.logsigmoid, "celu": F.celu, "sigmoid": torch.sigmoid,
    "erf": torch.erf, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "silu": F.silu,
    "mish": F.mish, "hardswish": F.hardswish, "selu": F.selu, "clamp": lambda x: x.clamp(-1, 1),
}  # fmt: skip
CASES = [
    *(Case(kind, function, (1, 40), 0.5) for kind, function in ELEMENTWISE.items()),
    Case("leaky_relu", lambda x: F.leaky_relu(x, 1.7)),
    Case("leaky_relu", lambda x: F.rrelu(x, 0.1, 0.3)),
    Case("elu", lambda x: F.elu(x, 2.0), near=0.8),
    Case("prelu", nn.PReLU(3, 1.3)),
    Case("hardsigmoid", F.hardsigmoid, rounding=1 + 2.0**-23),  # torch takes 1/6 in single precision there
    Case("softmax", lambda x: F.softmax(x, dim=-1), (1, 2), 0.5),
    Case("softmax", lambda x: F.softmin(x, dim=1), (1, 2), 0.5),
    Case("log_softmax", lambda x: F.log_softmax(x, dim=-1), (1, 5), 0.8),
    Case("logsumexp", lambda x: torch.logsumexp(x, dim=-1), (1, 5), 0.7),
    Case("conv", nn.Conv2d(2, 3, 3, padding=1), (1, 2, 5, 5), 0.99),
    Case("conv", nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (1, 2, 6, 6), 0.99),
    Case("conv", nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (1, 2, 5, 5), 0.6),
    Case("conv", nn.Conv1d(4, 6, 3, stride=2, padding="valid", groups=2), (1, 4, 9), 0.99),
    Case("conv", nn.ConvTranspose1d(4, 2, 4, stride=2, padding=1), (1, 4, 6), 0.99),
    Case("linear", nn.Linear(6, 4), (1, 6), 0.999),
    Case("linear", lambda x: x @ random(6, 5), (1, 3, 6), 0.999),
    Case("linear", lambda x: random(4, 3) @ x, (1, 3, 6), 0.999),
    Case("batch_norm", normed(nn.BatchNorm1d(3)), (1, 3, 6), 0.999),
    Case("conv", nn.Sequential(nn.Conv2d(2, 3, 3), normed(nn.BatchNorm2d(3))), (1, 2, 5, 5), 0.98),
    Case("conv", nn.Sequential(nn.ConvTranspose1d(4, 6, 3), normed(nn.BatchNorm1d(6))), (1, 4, 5), 0.98),
    Case("conv", nn.Sequential(nn.Conv1d(4, 6, 3, groups=2), normed(nn.BatchNorm1d(6))), (1, 4, 5), 0.98),
    Case("linear", nn.Sequential(nn.Linear(5, 4), normed(nn.BatchNorm1d(4))), (1, 5), 0.999),
    Case("scale", lambda x: x * random(3, 1), near=0.999),
    Case("scale", lambda x: 2.5 * x / -0.5, near=0.999),
    Case("scale", lambda x: x / random(6), near=0.999),
    Case("scale", lambda x: x * torch.tensor([[1.0, -2.0]]), (1, 1), 0.7),
    Case("centred_norm", lambda x: F.layer_norm(x, (6,), random(6), None, 0.5), (1, 6), 0.5),
    Case("centred_norm", lambda x: F.group_norm(x, 2, random(4), None, 0.5), (1, 4, 3), 0.3),
    Case("centred_norm", lambda x: F.instance_norm(x, eps=0.5), (1, 2, 4), 0.5),
    Case("centred_norm", lambda x: F.rms_norm(x, (6,), random(6), 0.5), (1, 6), 0.5),
    Case("add", lambda x: x + torch.sin(x)),
    Case("add", lambda x: torch.sub(x, torch.tanh(x), alpha=3), near=0.2),
    Case("add", lambda x: 3 - x),
    Case("add", lambda x: x + x.amax(-1, keepdim=True), near=0.6),
    Case("extreme", lambda x: torch.maximum(x, -x), near=0.5),
    Case("extreme", lambda x: torch.max(x, torch.zeros(1))),
    Case("concat", lambda x: torch.cat([x, torch.sin(x)], 1), near=0.9),
    Case("concat", lambda x: torch.stack([x, x, x]), near=0.999),
    Case("product", lambda x: x * torch.sigmoid(2 * x), (1, 40), 0.8),
    Case("product", lambda x: F.hardsigmoid(x) * x, (1, 40), 0.6),
    Case("product", lambda x: x * torch.tanh(F.softplus(x)), (1, 40), 0.8),
    Case("product", lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))), (1, 40), 0.4),
    Case("identity", lambda x: F.dropout(x.clone().contiguous(), 0.3, False), near=0.999),
    Case("reshape", lambda x: x.flatten(1).reshape(3, 6).t().unsqueeze(0).permute(2, 0, 1), near=0.999),
    Case("reshape", lambda x: F.pixel_shuffle(x.view(1, 18, 1, 1), 3), near=0.999),
    Case("slice", lambda x: x[:, 1:, ::2], near=0.999),
    Case("expand", lambda x: x.expand(5, 3, 6), near=0.999),
    Case("expand", lambda x: x.repeat(1, 2, 3), near=0.999),
    Case("gather", lambda x: x.index_select(-1, torch.tensor([0, 5, 5, 5, 2])), near=0.999),
    Case("pad", lambda x: F.pad(x, (2, -1), value=3.0), near=0.999),
    Case("pad", lambda x: F.pad(x, (3, 1), mode="reflect"), near=0.999),
    Case("pad", lambda x: F.pad(x, (4, 1), mode="replicate"), near=0.999),
    Case("pad", lambda x: F.pad(x, (2, 3), mode="circular"), near=0.999),
    Case("nearest", lambda x: F.interpolate(x, scale_factor=3), near=0.999),
    Case("nearest", lambda x: F.interpolate(x[..., None], size=(12, 4)), near=0.999),
    Case("max_pool", lambda x: F.max_pool1d(x, 3, 1, 1), (1, 1, 9), 0.8),
    Case("max_pool", lambda x: F.max_pool2d(x, 3, 2, 1), (1, 1, 6, 6), 0.5),
    Case("max_pool", lambda x: F.max_pool1d(x, 2, 2, dilation=3, ceil_mode=True), (1, 1, 12), 0.7),
    Case("adaptive_max_pool", lambda x: F.adaptive_max_pool2d(x, (3, 2)), (1, 1, 5, 5), 0.4),
    Case("maximum", lambda x: x.amax((1, 2)), near=0.999),
    Case("maximum", lambda x: x.min(1).values, near=0.999),
    Case("average_pool", lambda x: F.avg_pool1d(x, 3, 2, 1), (1, 2, 9), 0.999),
    Case("average_pool", lambda x: F.avg_pool2d(x, (3, 2), ceil_mode=True, padding=1, count_include_pad=False),
         (1, 2, 7, 6), 0.999),
    Case("average_pool", lambda x: F.avg_pool2d(x, 3, 2, ceil_mode=True, padding=1), (1, 1, 6, 7), 0.999),
    Case("average_pool", lambda x: F.avg_pool2d(x, 2, divisor_override=3), (1, 1, 6, 6), 0.999),
    Case("adaptive_average_pool", lambda x: F.adaptive_avg_pool2d(x, (3, 2)), (1, 2, 7, 5), 0.999),
    Case("mean", lambda x: x.mean((1, 2)), near=0.999),
    Case("mean", lambda x: x.mean(axis=2), near=0.999),
    Case("sum", lambda x: x.sum(-1), near=0.999),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.kind)
def test_no_slope_of_an_operation_is_above_its_bound(case: Case) -> None:
    model = case.model.double()
    bound = convsv.network_bound(model, torch.zeros(case.shape, dtype=torch.float64))
    assert bound.upper is not None, bound.unavailable
    assert case.kind in {operation.kind for operation in bound.operations}
    measured = steepest(model, case.shape)
    assert measured <= bound.upper * case.rounding
    assert measured >= bound.upper * case.near, "the bound is looser than it should be"


def test_every_rule_is_judged() -> None:
    judged = {case.kind for case in CASES}
    assert judged | REASONS.keys() == set(RULES)


# ---------------------------------------------------------------------------------------- slopes by interval arithmetic


SLOPES: dict[str, Callable[[arb], arb]] = {
    "erf": lambda x: 2 * (-x * x).exp() / arb.pi().sqrt(),
    "gelu": lambda x: (1 + (x / arb(2).sqrt()).erf()) / 2 + x * (-x * x / 2).exp() / (2 * arb.pi()).sqrt(),
    "gelu_tanh": lambda x: (1 + _inner(x).tanh()) / 2 + x / 2 * _bend(x) / _inner(x).cosh() ** 2,
    "silu": lambda x: _sigmoid(x) * (1 + x * _sigmoid(-x)),
    "mish": lambda x: _gate(x) + x * (1 - _gate(x) ** 2) * _sigmoid(x),
}


def _sigmoid(x: arb) -> arb:
    return 1 / (1 + (-x).exp())


def _inner(x: arb) -> arb:
    return (2 / arb.pi()).sqrt() * (x + arb("0.044715") * x**3)


def _bend(x: arb) -> arb:
    return (2 / arb.pi()).sqrt() * (1 + 3 * arb("0.044715") * x**2)


def _gate(x: arb) -> arb:
    return (1 + x.exp()).log().tanh()


@pytest.mark.parametrize("kind", SLOPES)
def test_the_slopes_of_smooth_functions_are_below_their_constants_everywhere(kind: str) -> None:
    """On [-12, 12] by intervals; further out each of them is within 1e-2 of 0 or 1, which all constants allow for."""
    ctx.prec = 64
    limit = CONSTANTS[kind][0]
    waiting = [(-12.0, 12.0)]
    while waiting:
        low, high = waiting.pop()
        middle = (low + high) / 2
        slope = abs(SLOPES[kind](arb(middle, (high - low) / 2)))
        if slope <= arb(limit):
            continue
        assert high - low > 1e-6, f"the slope near {middle} is {slope}"
        waiting += [(low, middle), (middle, high)]


# ------------------------------------------------------------------------------------------------- pooling by counting


@given(k=st.integers(1, 5), s=st.integers(1, 4), d=st.integers(1, 4))
def test_max_pooling_counts_windows(k: int, s: int, d: int) -> None:
    windows = [{start + t * d for t in range(k)} for start in range(0, 80, s)]
    assert most_windows(k, s, d) == max(sum(place in window for window in windows) for place in range(30, 50))


@given(n=st.integers(3, 12), k=st.integers(1, 4), s=st.integers(1, 4), p=st.integers(0, 2), counted=st.booleans(),
       ceil=st.booleans())  # fmt: skip
@settings(deadline=None)
def test_average_pooling_is_the_matrix_that_torch_applies(
    n: int, k: int, s: int, p: int, counted: bool, ceil: bool
) -> None:
    p = min(p, k // 2)
    if n + 2 * p < k:
        return
    unit = torch.eye(n, dtype=torch.float64)[:, None, :]
    columns = F.avg_pool1d(unit, k, s, p, ceil_mode=ceil, count_include_pad=counted)[:, 0, :]
    matrix = axis_windows(n, columns.shape[1], k, s, (p, p), counted=counted)
    np.testing.assert_allclose(matrix, columns.T.numpy(), rtol=1e-12)


# -------------------------------------------------------------------------------------------------- random networks


@st.composite
def networks(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    """Return a small network of one or two spatial axes, and the shape of its input."""
    dims, channels = draw(st.integers(1, 2)), draw(st.sampled_from([2, 4]))
    torch.manual_seed(draw(st.integers(0, 10**6)))
    parts = draw(st.lists(st.sampled_from(sorted(PARTS)), min_size=1, max_size=5))
    layers: list[nn.Module] = []
    now = channels
    for part in parts:
        layer, now = PARTS[part](dims, now)
        layers.append(layer)
    return nn.Sequential(*layers).double().eval(), (1, channels, *(8,) * dims)


def _conv(dims: int, given_: int, made: int, *args: Any, **kwargs: Any) -> nn.Module:
    return (nn.Conv1d, nn.Conv2d)[dims - 1](given_, made, *args, **kwargs)


class Residual(nn.Module):
    """x + f(x), or both side by side."""

    def __init__(self, inner: nn.Module, *, joined: bool = True) -> None:
        super().__init__()
        self.inner, self.joined = inner, joined

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return F.relu(x + y) if self.joined else torch.cat([x, y], 1)


def _norm(dims: int, channels: int) -> nn.Module:
    return normed((nn.BatchNorm1d, nn.BatchNorm2d)[dims - 1](channels))


PARTS: dict[str, Callable[[int, int], tuple[nn.Module, int]]] = {
    "conv": lambda d, c: (_conv(d, c, 3, 3, padding=1), 3),
    "grouped": lambda d, c: (_conv(d, c, 2 * c, 3, groups=c, padding=2, dilation=2), 2 * c),
    "strided": lambda d, c: (nn.Sequential(_conv(d, c, 4, 2, stride=2, padding=1), nn.ReLU()), 4),
    "transposed": lambda d, c: (
        (nn.ConvTranspose1d, nn.ConvTranspose2d)[d - 1](c, 2, 3, stride=1, padding=1), 2,
    ),
    "norm": lambda d, c: (nn.Sequential(_conv(d, c, 4, 1), _norm(d, 4), nn.LeakyReLU(0.2)), 4),
    "max": lambda d, c: ((nn.MaxPool1d, nn.MaxPool2d)[d - 1](3, 1, 1), c),
    "mean": lambda d, c: ((nn.AvgPool1d, nn.AvgPool2d)[d - 1](3, 1, 1), c),
    "residual": lambda d, c: (Residual(nn.Sequential(_conv(d, c, c, 3, padding=1), nn.Tanh())), c),
    "bottleneck": lambda d, c: (Residual(nn.Sequential(_norm(d, c), nn.GELU(), _conv(d, c, c, 1))), c),
    "dense": lambda d, c: (Residual(_conv(d, c, 2, 3, padding=1), joined=False), c + 2),
    "silu": lambda d, c: (nn.SiLU(), c),
}  # fmt: skip


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(networks())
def test_no_slope_of_a_random_network_is_above_its_bound(drawn: tuple[nn.Module, tuple[int, ...]]) -> None:
    model, shape = drawn
    bound = convsv.network_bound(model, shape)
    assert bound.upper is not None, bound.unavailable
    assert steepest(model, shape, points=4) <= bound.upper * ROUNDING
    if abs(math.log(bound.upper)) > 1e-6:
        assert sum(operation.share or 0.0 for operation in bound.operations) == pytest.approx(1.0)


def test_a_chain_of_linear_layers_is_above_the_norm_of_their_product() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(7, 9), nn.Linear(9, 5), nn.Linear(5, 4)).double()
    weights = [layer.weight.detach() for layer in model]
    exact = float(torch.linalg.matrix_norm(weights[2] @ weights[1] @ weights[0], 2))
    alone = [float(torch.linalg.matrix_norm(weight, 2)) for weight in weights]
    bound = convsv.network_bound(model, (1, 7))
    assert bound.upper is not None
    assert exact <= bound.upper
    assert math.prod(alone) <= bound.upper <= math.prod(alone) * (1 + 1e-6)


def test_a_diamond_and_a_block_have_the_bound_of_the_block_by_itself() -> None:
    torch.manual_seed(4)
    inner = nn.Conv2d(3, 3, 3, padding=1).double()
    before = nn.Conv2d(2, 3, 1).double()
    block = convsv.network_bound(nn.Sequential(before, Residual(inner)), (1, 2, 6, 6))
    first, second = (convsv.network_bound(m, s).upper for m, s in ((before, (1, 2, 6, 6)), (inner, (1, 3, 6, 6))))
    assert first is not None
    assert second is not None
    assert block.upper == pytest.approx(first * (1 + second), rel=1e-12)
    by_name = {operation.name: operation for operation in block.operations}
    assert by_name["1.inner"].through == pytest.approx(second / (1 + second))


def test_factors_are_shown_as_they_are_and_outputs_by_name() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            h = torch.relu(self.a(x))
            return {"hidden": h, "scores": self.b(h)}

    model = Two()
    bound = convsv.network_bound(model, (1, 3), output="scores")
    assert bound.outputs.keys() == {"hidden", "scores"}
    assert [(o.name, o.kind) for o in bound.operations] == [("a", "linear"), ("relu", "relu"), ("b", "linear")]
    assert bound.upper == bound.outputs["scores"]
    assert convsv.network_bound(model, (1, 3), output="relu").upper == bound.outputs["hidden"]
    with pytest.raises(UsageError, match="hidden, scores"):
        convsv.network_bound(model, (1, 3), output="nothing")


class InPlace(nn.Module):
    """A residual block as it is often written: everything in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv1d(3, 3, 3, padding=1), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        kept = x
        y = self.relu(x)
        y = self.conv(y)
        y += kept
        return self.relu(y).mul_(3.0)


def test_operations_in_place_are_what_they_are() -> None:
    torch.manual_seed(6)
    model = InPlace().double()
    bound = convsv.network_bound(model, (1, 3, 6))
    conv = convsv.network_bound(model.conv, (1, 3, 6)).upper
    assert conv is not None
    assert bound.upper == pytest.approx(3 * conv * (1 + conv))


# --------------------------------------------------------------------------------------------------------- refusals


def _alias(x: Tensor) -> Tensor:
    part = x.clone()
    view = part[:, :2]
    part.mul_(3.0)
    return view + 1


def _written(x: Tensor) -> Tensor:
    made = torch.zeros(1, 3, 6, dtype=x.dtype)
    made[:, :, :3] = 5 * x[:, :, :3]
    return made


def _branching(x: Tensor) -> Tensor:
    return 100 * x if x.sum() > 0 else x


def _left_torch(x: Tensor) -> Tensor:
    return torch.from_numpy(x.detach().numpy() * 100)


class Doubling(torch.autograd.Function):
    """A function that torch's modes do not see."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0] * 2


REFUSED: dict[str, tuple[Callable[[Tensor], Tensor] | nn.Module, str]] = {
    "alias": (_alias, "in place"),
    "written": (_written, "in place"),
    "branching": (_branching, "asks for values"),
    "numpy": (_left_torch, "asks for values"),
    "product": (lambda x: x * torch.tanh(x), "product"),
    "square": (lambda x: x * x, "product"),
    "gate of its own": (lambda x: x * torch.tanh(F.softplus(x, 2.0)), "product"),
    "gate of another": (lambda x: x * torch.sigmoid(x + 1), "product"),
    "matmul": (lambda x: x @ x.mT, "product"),
    "attention": (nn.MultiheadAttention(6, 2, batch_first=True), "attention|rule|product"),
    "exp": (torch.exp, "exp: its slope"),
    "early identity": (nn.Softplus(threshold=1.0), "jumps"),
    "where": (lambda x: torch.where(x > 0, x, -100 * x), "where|jumps"),
    "round": (lambda x: x.round(), "no rule"),
    "cast": (lambda x: x.long().double(), "jumps"),
    "random": (lambda x: F.dropout(x, 0.5), "random"),
    "statistics": (nn.BatchNorm1d(3, track_running_stats=False), "statistics"),
    "normalise": (F.normalize, "length"),
    "flat norm": (lambda x: F.layer_norm(x, (6,), eps=0.0), "deviation"),
    "bilinear": (lambda x: F.interpolate(x, scale_factor=2, mode="linear"), "rule"),
    "uneven": (lambda x: F.interpolate(x, scale_factor=2.1), "rule"),
    "unknown argument": (lambda x: torch.sum(x, dim=1, dtype=None, out=torch.zeros(1, 6, dtype=x.dtype)), "rule"),
    "picked by itself": (lambda x: x[:, x[0, :, 0] > 0], "rule|values|jumps"),
    "divided": (lambda x: 1 / x, "rule"),
    "scripted": (nn.Sequential(torch.jit.script(nn.ReLU()), nn.Tanh()), "scripted"),
    "computed weight": (lambda x: F.conv1d(x, x.reshape(3, 1, 6)[:, :, :3], groups=3), "computed"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_bound_is_named_with_the_reason(name: str) -> None:
    function, said = REFUSED[name]
    model = function if isinstance(function, nn.Module) else Function(function)
    arguments = [(1, 3, 6)] * (3 if name == "attention" else 1)
    bound = convsv.network_bound(model.double(), *arguments)
    assert bound.upper is None
    assert bound.unavailable
    assert re.search(said, bound.unavailable), bound.unavailable


def test_what_modes_of_torch_do_not_see_is_not_taken_for_a_constant() -> None:
    bound = convsv.network_bound(Function(lambda x: Doubling.apply(x) + x), (1, 3))
    assert bound.upper is None or bound.upper >= 3


def test_a_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(), nn.Sequential(nn.ReLU()).eval())
    model.train()
    model[2].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    convsv.network_bound(model, (1, 3))
    assert [m.training for m in model.modules()] == [True, True, True, False, True] or model[2].training is False
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_weights_that_are_not_finite_have_no_bound() -> None:
    model = nn.Linear(3, 3)
    model.weight.data[0, 0] = math.nan
    bound = convsv.network_bound(model, (1, 3))
    assert bound.upper is None
    assert "NaN" in (bound.unavailable or "")


# ----------------------------------------------------------------------------------------------- certified robustness


def test_no_step_within_a_certified_radius_changes_the_class() -> None:
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    bound = convsv.network_bound(model, (1, 4))
    assert bound.upper is not None
    x = random(40, 4)
    scores = model(x).detach()
    labels = scores.argmax(1)
    radii = certified_radii(scores.numpy(), labels.numpy(), bound.upper)
    assert (radii > 0).all()
    for row, label, radius in zip(x, labels, radii, strict=True):
        step = row.clone().requires_grad_()
        for _ in range(20):  # downhill, projected onto the ball
            out = model(step)
            margin = out[label] - torch.cat([out[:label], out[label + 1 :]]).max()
            (gradient,) = torch.autograd.grad(margin, step)
            moved = step.detach() - 0.3 * radius * gradient / gradient.norm().clamp(min=1e-9) - row
            step = (row + moved * min(1.0, radius / float(moved.norm()))).requires_grad_()
            assert model(step).argmax() == label


def test_radii_of_one_linear_layer_are_exact_for_two_classes() -> None:
    scores, labels = np.array([[3.0, 1.0], [0.0, 1.0], [1.0, 1.0]]), np.array([0, 0, 1])
    np.testing.assert_allclose(certified_radii(scores, labels, 2.0), [2 / (2 * math.sqrt(2)), 0, 0], rtol=1e-12)
    assert certified_accuracy([0.5, 0.0, 0.2], 0.3) == pytest.approx(1 / 3)
    assert certified_radii(scores, labels, 0.0)[0] == math.inf
    with pytest.raises(UsageError, match="labels"):
        certified_radii(scores, labels[:2], 1.0)
    with pytest.raises(UsageError, match="negative"):
        certified_radii(scores, labels, math.nan)
