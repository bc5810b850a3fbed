"""Carrying the constants along the graph, and how much each operation adds to the result."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from convsv.analysis import AnalysisOptions, certified_upper
from convsv.errors import ComputationError, ContradictionError, GeometryError, UnavailableError, UsageError
from convsv.graph import Network, Operation, Shape
from convsv.layer import ConvLayer
from convsv.network import RULES, Join, Step
from convsv.network._fusing import fused
from convsv.results import NetworkBound, OperationBound
from convsv.rounding import DOUBLE, above

__all__ = ["bound_network"]

_REASONS = 3


def bound_network(
    network: Network, options: AnalysisOptions | None = None, *, output: str | None = None
) -> NetworkBound:
    """Return a certified Lipschitz constant of a network, and each operation's part in it.

    Args:
        network: its graph, in inference.
        options: how narrowly to certify the layers, and where; the methods do not count.
        output: name of an output, or of any operation; the first output when None.

    Raises:
        UsageError: there is no such output.
        CheckpointError: a tensor could not be read.
        ContradictionError: two certified statements exclude each other.

    Guarantee:
        Certified: every factor is rounded up, and so is every product and sum. The shares are estimates.
    """
    chosen = _chosen(network, output)
    network = fused(network, None if chosen in network.outputs else chosen)
    work = _Work(network, options or AnalysisOptions())
    values = {*network.outputs.values(), network.outputs.get(chosen, chosen)}
    wanted = {operation.name for value in values for operation in network.leading_to(value)}
    for operation in network.operations:
        if operation.name in wanted:
            work.bound(operation)
    value = network.outputs.get(chosen, chosen)
    reason, failed = work.why_not(value)
    upper = None if reason else work.upper[value]
    return NetworkBound(
        output=chosen,
        upper=upper,
        outputs={name: None if network.problem else work.upper.get(made) for name, made in network.outputs.items()},
        inputs=network.inputs,
        operations=work.rows(value, upper),
        unavailable=reason,
        failed=failed,
        notes=network.notes,
    )


def _chosen(network: Network, output: str | None) -> str:
    """Return the name of the output that is asked for.

    Raises:
        UsageError: there is no such output, or none at all.
    """
    if output is None:
        if not network.outputs:
            raise UsageError("no output of the network depends on its input")
        return next(iter(network.outputs))
    if output not in network.outputs and all(output != operation.name for operation in network.operations):
        known = ", ".join(network.outputs)
        raise UsageError("the network has no such output or operation", found=output, advice=f"its outputs: {known}")
    return output


@dataclass
class _Bounded:
    """An operation with its bound.

    Attributes:
        factor: of several inputs, the most that joining them adds.
        flow: for each input, by how many percent the bound falls if the input's falls by one.
        parts: the logarithm of the factor that is the operation's own.
    """

    factor: float
    of: str
    flow: tuple[float, ...]
    own: float


@dataclass
class _Work:
    """The constants of the values so far, as the rules see what is around them."""

    network: Network
    options: AnalysisOptions
    upper: dict[str, float] = field(default_factory=dict)
    bounded: dict[str, _Bounded] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    failures: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.upper.update(dict.fromkeys(self.network.inputs, 1.0))
        self._makers = {operation.name: operation for operation in self.network.operations}
        self._norms: dict[int, tuple[ConvLayer, tuple[float, str]]] = {}

    # ------------------------------------------------------------------------------------------ what the rules ask

    def maker(self, value: str) -> Operation | None:
        return self._makers.get(value)

    def shape(self, value: str) -> Shape | None:
        maker = self._makers.get(value)
        return self.network.inputs.get(value) if maker is None else maker.shape

    def layer_norm(self, layer: ConvLayer) -> tuple[float, str]:
        known = self._norms.get(id(layer))
        if known is None:
            known = self._norms[id(layer)] = layer, certified_upper(layer, self.options)
        return known[1]

    # -------------------------------------------------------------------------------------------------- the bounds

    def bound(self, operation: Operation) -> None:
        """Bound one operation whose inputs are done; note why not, where it has no bound.

        Raises:
            ContradictionError: two certified statements exclude each other.
        """
        missing = any(value not in self.upper for value in operation.inputs)
        if missing and operation.kind in _COSTLY:
            return  # for the reason of an earlier one
        try:
            step = self._step(operation)
            if missing:
                return  # of whose own reasons there are none
            upper, bounded = self._joined(operation, step)
        except (UnavailableError, GeometryError) as error:
            self.reasons[operation.name] = error.what if error.found is None else f"{error.what} (found {error.found})"
            return
        except ContradictionError:
            raise
        except (ArithmeticError, MemoryError, RuntimeError, ComputationError) as error:
            self.reasons[operation.name] = str(error).splitlines()[0] if str(error) else type(error).__name__
            self.failures.add(operation.name)
            return
        self.upper[operation.name], self.bounded[operation.name] = upper, bounded

    def _step(self, operation: Operation) -> Step:
        """Ask the rule.

        Raises:
            UnavailableError: there is none, or it has no bound.
        """
        if operation.kind not in RULES:
            raise UnavailableError(f"no rule is known for {operation.called or operation.kind}")
        return RULES[operation.kind].compute(operation, self)

    def _joined(self, operation: Operation, step: Step) -> tuple[float, _Bounded]:
        """Return the constant of what an operation makes.

        Raises:
            UnavailableError: it is larger than any float.
        """
        parts = [_product(c, self.upper[v]) for c, v in zip(step.factors, operation.inputs, strict=True)]
        upper, of = _join(parts, step.join), step.of
        if step.shortcut is not None:
            earlier, factor, what = step.shortcut
            if earlier in self.upper and (shorter := _product(factor, self.upper[earlier])) < upper:
                upper, of = shorter, what
        if not math.isfinite(upper):
            raise UnavailableError("the bound is larger than any floating-point number")
        given = [self.upper[value] for value in operation.inputs]
        flow = _flow(parts, step.join)
        joined = math.fsum(w * math.log(g) for w, g in zip(flow, given, strict=True) if w and g)
        own = math.log(upper) - joined if upper > 0 else -math.inf
        alone = len(given) == 1 and given[0] > 0
        factor = (
            1.0
            if alone and upper == given[0]
            else above(upper / given[0])
            if alone
            else above(math.exp(own))
            if upper
            else 0.0
        )
        return upper, _Bounded(factor if upper else 0.0, of, flow, own)

    def why_not(self, value: str) -> tuple[str | None, bool]:
        """Return why a value has no constant, and whether one could only not be computed."""
        if self.network.problem:
            return self.network.problem, False
        if value in self.upper:
            return None, False
        found = [o.name for o in self.network.leading_to(value) if o.name in self.reasons]
        shown = "; ".join(f"{name}: {self.reasons[name]}" for name in found[:_REASONS])
        more = f"; and {len(found) - _REASONS} more" if len(found) > _REASONS else ""
        return shown + more, any(name in self.failures for name in found)

    def rows(self, value: str, upper: float | None) -> tuple[OperationBound, ...]:
        """Return the operations that a value depends on, each with its part in the value's constant."""
        chosen = list(self.network.leading_to(value))
        through = self._through(value, chosen) if upper else {}
        whole = math.log(upper) if upper else 0.0
        return tuple(self._row(operation, through, whole) for operation in chosen)

    def _row(self, operation: Operation, through: Mapping[str, float], whole: float) -> OperationBound:
        bounded, flows = self.bounded.get(operation.name), through.get(operation.name)
        share = None
        if bounded is not None and flows is not None and abs(whole) > _NO_LOGARITHM:
            share = flows * bounded.own / whole if flows else 0.0
        return OperationBound(
            operation.name,
            operation.kind,
            operation.inputs,
            factor=bounded.factor if bounded else None,
            upper=self.upper.get(operation.name),
            of=bounded.of if bounded else "",
            through=flows,
            share=share,
            unavailable=self.reasons.get(operation.name),
        )

    def _through(self, value: str, chosen: Sequence[Operation]) -> dict[str, float]:
        """Return the elasticity of a value's constant in each operation's factor."""
        found = dict.fromkeys((operation.name for operation in chosen), 0.0)
        found[value] = 1.0
        for operation in reversed(chosen):
            for source, flow in zip(operation.inputs, self.bounded[operation.name].flow, strict=True):
                if source in found:
                    found[source] += found[operation.name] * flow
        return found


_COSTLY = ("conv", "linear")
"""Kinds of operations that are not looked at where nothing can come of it."""
_NO_LOGARITHM = 1e-9
"""A network whose constant is this near to 1 has no logarithm to share out."""


def _factor(upper: float, given: Sequence[float], own: float) -> float:
    """Return what an operation multiplies by, rounded up; with several inputs that is the exponential of its part."""
    if upper == 0:
        return 0.0
    if len(given) > 1 or not given[0]:
        return above(math.exp(own), 4)
    return 1.0 if upper == given[0] else above(upper / given[0])


def _product(factor: float, constant: float) -> float:
    return constant if factor == 1 else 0.0 if 0 in (factor, constant) else above(factor * constant)


def _join(parts: Sequence[float], join: Join) -> float:
    if len(parts) == 1:
        return parts[0]
    if join == "sum":
        return above(math.fsum(parts))
    return above(math.hypot(*parts) * (1 + 8 * DOUBLE), 2)


def _flow(parts: Sequence[float], join: Join) -> tuple[float, ...]:
    """Return the elasticity of a join in each of its parts."""
    largest = max(parts, default=0.0)
    if not largest:
        return (0.0,) * len(parts)
    power = 1 if join == "sum" else 2
    weights = [(part / largest) ** power for part in parts]
    return tuple(weight / math.fsum(weights) for weight in weights)
