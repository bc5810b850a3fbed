"""The shapes at which the layers of a Keras model are applied, by following the graph in its configuration.

Models stand in models, a layer may be applied many times, and a model at several sizes.

What is known of a tensor's shape, strongest first: what the graph states about it, what follows from the layers before
(:mod:`_keras_shapes`), what the layer that takes it was built with. A length that nobody tells stays unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from convsv.checkpoints._content import printable
from convsv.checkpoints._keras_graph import Place, Plan, read_plan
from convsv.checkpoints._keras_layer import (
    CONVOLUTIONS,
    LARGEST,
    MAX_DEPTH,
    MAX_RANK,
    Config,
    Shape,
    class_name_of,
    config_of,
    is_foreign,
    layers_of,
    name_of,
)
from convsv.checkpoints._keras_shapes import output_shapes
from convsv.checkpoints._keras_spatial import Call

__all__ = ["InputShapes", "follow"]

_MOST_ITEMS = 1 << 21
"""How much may be written about the calls of all models together: 100,000 calls and more."""
_MORE_CALLS = 100_000
"""How many tensors may go into layers that are applied once more because their model is, at another shape."""
_SIZES_KEPT = 100
"""At how many sizes a layer is reported."""
_NORMALISING_WRAPPERS = ("SpectralNormalization", "WeightNormalization")


@dataclass(frozen=True)
class InputShapes:
    """At what shapes layers are applied.

    Attributes:
        by_layer: the distinct shapes by the identity (``id``) of the layer's entry, in the order of the calls. Of
            convolutions only.
        problems: what could not be followed, one line each.
    """

    by_layer: Mapping[int, tuple[tuple[int | None, ...], ...]]
    problems: tuple[str, ...]


def follow(model: object) -> InputShapes:
    """Return the input shapes of all convolutions of a model.

    Args:
        model: a parsed configuration. The time is linear in its length, whatever it says.
    """
    walk = _Walk()
    try:
        if isinstance(model, dict):
            walk.apply(model, _Arguments())
    except _TooManyError:
        walk.seen.clear()
        walk.problem("the configuration", "its models have too many calls: sizes are not followed")
    return InputShapes({layer: tuple(shapes) for layer, shapes in walk.seen.items()}, walk.problems)


class _TooManyError(Exception):
    """The calls exceed what is followed."""


@dataclass(frozen=True)
class _Arguments:
    """What a layer is applied to.

    Attributes:
        shapes: of the tensors.
        keys: their names, where they are given by name.
        arrays: whether arrays of constants are among them.
        alone: whether the layer is called once, so that what it was built with is about this call.
    """

    shapes: tuple[Shape, ...] = ()
    keys: tuple[str, ...] = ()
    arrays: bool = False
    alone: bool = True


def _shape(value: object) -> tuple[Shape, bool]:
    """Return a stated shape, and whether it is one; lengths that cannot be are unknown."""
    if not isinstance(value, list):
        return None, True
    if len(value) > MAX_RANK:
        return None, False
    good = [n is None or (type(n) is int and 0 < n < LARGEST) for n in value]
    return tuple(n if fine else None for n, fine in zip(value, good, strict=True)), all(good)


def _merge(stronger: Shape, weaker: Shape) -> Shape:
    if stronger is None or weaker is None or len(stronger) != len(weaker):
        return weaker if stronger is None else stronger
    return tuple(b if a is None else a for a, b in zip(stronger, weaker, strict=True))


# ------------------------------------------------------------------------------------------------------------- walking


class _Walk:
    """One walk through a model and those within it."""

    def __init__(self) -> None:
        self.seen: dict[int, dict[tuple[int | None, ...], None]] = {}
        self._problems: dict[str, list[str]] = {}
        self._odd: set[int] = set()
        self._plans: dict[int, Plan] = {}
        self._results: dict[tuple[int, tuple[Shape, ...], tuple[str, ...]], tuple[Shape, ...]] = {}
        self._entered: set[int] = set()
        self._unread = _MOST_ITEMS
        self._left = _MORE_CALLS
        self._depth = 0

    @property
    def problems(self) -> tuple[str, ...]:
        """What was found wrong, a line a kind."""
        return tuple(
            f"{places[0]}: {what}" + (f" (and {len(places) - 1} more)" if len(places) > 1 else "")
            for what, places in self._problems.items()
        )

    def problem(self, where: str, what: str) -> None:
        """Note what is wrong."""
        self._problems.setdefault(what, []).append(where)

    def stated(self, value: object, layer: Config) -> Shape:
        """Return a shape that the configuration states; note where it cannot be one."""
        shape, good = _shape(value)
        if not good and id(value) not in self._odd:
            self._odd.add(id(value))
            where = printable(name_of(layer)) or "the configuration"
            self.problem(where, "its input shape is stated with lengths that cannot be: they are left out")
        return shape

    def spend(self, items: int) -> None:
        """Take note of what was read.

        Raises:
            _TooManyError: that is more than is followed.
        """
        self._unread -= items
        if self._unread < 0:
            raise _TooManyError

    def apply(self, layer: Config, given: _Arguments) -> tuple[Shape, ...]:
        """Return the shapes of what a layer returns, and note what it is applied to.

        Raises:
            _TooManyError: the calls exceed what is followed.
        """
        self._left -= 1 + len(given.shapes)
        if self._left < 0:
            raise _TooManyError
        if self._depth > MAX_DEPTH:
            return (None,)
        class_name, config = class_name_of(layer), config_of(layer)
        shapes = self._with_hints(layer, given.shapes) if given.alone else given.shapes
        if layers_of(layer):
            return self._model(layer, _Arguments(shapes, given.keys))
        inner = config.get("layer")
        if isinstance(inner, dict):
            return self._wrapped(layer, inner, shapes)
        if class_name in CONVOLUTIONS and shapes and shapes[0] is not None:
            self._note(layer, shapes[0])
        if class_name == "InputLayer":
            return shapes[:1] or (None,)
        if is_foreign(layer):
            return (None,)
        return output_shapes(Call(class_name, config, shapes, given.arrays))

    def _note(self, layer: Config, shape: tuple[int | None, ...]) -> None:
        noted = self.seen.setdefault(id(layer), {})
        if shape in noted or len(noted) < _SIZES_KEPT:
            noted[shape] = None
        elif id(noted) not in self._odd:
            self._odd.add(id(noted))
            self.problem(printable(name_of(layer)), f"is called at over {_SIZES_KEPT} sizes: the rest are left out")

    def _with_hints(self, layer: Config, shapes: tuple[Shape, ...]) -> tuple[Shape, ...]:
        """Complete what is known of the inputs by what the layer was built with."""
        config, build = config_of(layer), layer.get("build_config")
        hints = [config.get("batch_input_shape"), config.get("batch_shape")]
        hints += [build.get("input_shape")] if isinstance(build, dict) else []
        for hint in hints:
            several = hint if isinstance(hint, list) and hint and all(isinstance(one, list) for one in hint) else [hint]
            stated = [self.stated(one, layer) for one in several]
            if not shapes:
                shapes = tuple(stated) if any(stated) else ()
            elif len(stated) == len(shapes):
                shapes = tuple(_merge(a, b) for a, b in zip(shapes, stated, strict=True))
        return shapes

    # Models and wrappers ------------------------------------------------------------------------------------------

    def _model(self, model: Config, given: _Arguments) -> tuple[Shape, ...]:
        key = id(model), given.shapes, given.keys
        if key not in self._results:
            self._depth += 1
            self._results[key] = self._enter(model, given)
            self._depth -= 1
        return self._results[key]

    def _enter(self, model: Config, given: _Arguments) -> tuple[Shape, ...]:
        class_name, config = class_name_of(model), config_of(model)
        if class_name in ("Sequential", "Merge") and id(model) not in self._entered:
            self._entered.add(id(model))
            self.spend(10 * len(layers_of(model)))
            self._left += 3 * len(layers_of(model))
        if class_name == "Sequential":
            return self._sequential(model, given)
        if class_name == "Merge":  # the branches of Keras 1's Sequential
            branches = tuple(self.apply(branch, _Arguments())[0] for branch in layers_of(model))
            return output_shapes(Call(class_name, config, branches))
        if class_name in ("Functional", "Model") or "input_layers" in config:
            return self._functional(model, given)
        return (None,)

    def _sequential(self, model: Config, given: _Arguments) -> tuple[Shape, ...]:
        built = self.stated(config_of(model).get("build_input_shape"), model)
        shapes: tuple[Shape, ...] = given.shapes
        for position, layer in enumerate(layers_of(model)):
            if position == 0 and built is not None and class_name_of(layer) != "InputLayer":
                own = self._with_hints(layer, shapes)
                shapes = (_merge(own[0] if own else None, built),)
            shapes = self.apply(layer, _Arguments(shapes))
        return shapes

    def _functional(self, model: Config, given: _Arguments) -> tuple[Shape, ...]:
        plan = self._plans.get(id(model))
        if plan is None:
            plan = self._plans[id(model)] = read_plan(model, self)
            self._left += sum(2 + len(sources) for sources in plan.sources.values())
            if plan.circular:
                where = printable(name_of(model)) or "the model"
                self.problem(where, "layers depend on their own output: what goes into them is not followed")
        entering = self._entering(plan, given)
        results: dict[Place, tuple[Shape, ...]] = {}
        for place in plan.order:
            layer = plan.layers[place[0]]
            if place in entering:
                results[place] = self.apply(layer, _Arguments((entering[place],)))
                continue
            sources = plan.sources[place]
            shapes = tuple(_merge(stated, _output(results, source, at)) for source, at, stated in sources)
            taken = _Arguments(shapes, *plan.others[place], alone=place[0] not in plan.shared)
            results[place] = self.apply(layer, taken)
        return tuple(_output(results, source, at) for source, at in plan.outputs) or (None,)

    @staticmethod
    def _entering(plan: Plan, given: _Arguments) -> dict[Place, Shape]:
        inputs = plan.inputs
        if given.keys and len(given.keys) == len(inputs):
            names = {name_of(plan.layers[place[0]]): place for place in inputs if place is not None}
            if names.keys() == set(given.keys):
                inputs = [names[key] for key in given.keys]
        if len(inputs) != len(given.shapes):
            return {}
        return {place: shape for place, shape in zip(inputs, given.shapes, strict=True) if place is not None}

    def _wrapped(self, wrapper: Config, inner: Config, shapes: tuple[Shape, ...]) -> tuple[Shape, ...]:
        class_name, config = class_name_of(wrapper), config_of(wrapper)
        self._depth += 1
        try:
            if class_name == "TimeDistributed":
                outputs = self.apply(inner, _Arguments(tuple(map(_one_step, shapes[:1]))))
                x = shapes[0] if shapes else None
                return tuple(_all_steps(x, output) for output in outputs)
            if class_name == "Bidirectional":
                output, *states = self.apply(inner, _Arguments(shapes[:1]))
                backward = config.get("backward_layer")
                if isinstance(backward, dict):
                    self.apply(backward, _Arguments(shapes[:1]))
                return _both_ways(output, config.get("merge_mode"), len(states))
            known = class_name in _NORMALISING_WRAPPERS
            outputs = self.apply(inner, _Arguments(shapes[:1] if known else ()))
            return outputs if known else (None,)
        finally:
            self._depth -= 1


def _output(results: Mapping[Place, tuple[Shape, ...]], source: Place | None, at: int) -> Shape:
    shapes = results.get(source, ()) if source is not None else ()
    return shapes[at] if 0 <= at < len(shapes) else None


def _one_step(shape: Shape) -> Shape:
    # TimeDistributed hides the time axis from what it wraps.
    return (shape[0], *shape[2:]) if shape and len(shape) > 1 else None


def _all_steps(x: Shape, output: Shape) -> Shape:
    return (output[0], x[1], *output[1:]) if x and output and len(x) > 1 else None


def _both_ways(output: Shape, mode: object, states: int) -> tuple[Shape, ...]:
    unknown: tuple[Shape, ...] = (None,) * (2 * states)
    if mode is None:
        return (output, output, *unknown)
    if mode == "concat" and output:
        output = (*output[:-1], None if output[-1] is None else 2 * output[-1])
    return (output, *unknown)
