"""Weights that are stored in parts: what the layer multiplies with, from what the file holds.

PyTorch recomputes some weights on every forward pass. Their state dicts hold the ingredients only, and this module
puts them together as the module does in ``eval()`` mode, in float64:

==========================================================  ==========================================================
ingredients (``weight`` may be any parameter's name)        effective weight
==========================================================  ==========================================================
``weight_g``, ``weight_v``                                  ``g v / ||v||``: weight_norm (Salimans, Kingma 2016)
``parametrizations.weight.original0``, ``.original1``       the same, ``original0`` being ``g``
``weight_orig``, ``weight_u``, ``weight_v``                 ``W / (u^T W v)``: spectral_norm (Miyato et al. 2018)
``weight_bar``, ``weight_u``, ``weight_v``                  the same, as SAGAN's code names it
``parametrizations.weight.original``, ``.0._u``, ``.0._v``  the same
``weight_orig``, ``weight_mask``                            ``W * mask``: torch.nn.utils.prune
==========================================================  ==========================================================

What the file cannot tell (an orthogonal parametrisation's map, a class without state) becomes a problem in words.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from convsv.checkpoints import StoredTensor
from convsv.checkpoints._steps import Array, Mask, SpectralNorm, Step, WeightNorm, row_axes
from convsv.checkpoints._writeback import InParts, Locked
from convsv.errors import UnavailableError
from convsv.layer import Writeback

__all__ = ["Parametrised", "find_parametrised"]


@dataclass(frozen=True)
class Parametrised:
    """One weight that is stored in parts.

    Attributes:
        owner: path of the module that owns it, ``""`` at the top.
        parameter: name of the parameter that is recomputed, mostly ``weight``.
        direction: the stored tensor with the shape of the effective weight.
        parts: the other tensors that belong to it.
        how: what was done, for a note.
        read: returns the effective weight in float64; raises what reading raises, and ``UnavailableError``
            when there is a problem.
        writeback: how another effective weight goes back into the parts.
        problem: why the effective weight is not known, if so.
    """

    owner: str
    parameter: str
    direction: StoredTensor
    parts: tuple[StoredTensor, ...]
    how: str
    read: Callable[[], Array] = field(repr=False, compare=False)
    writeback: Writeback = field(repr=False, compare=False)
    problem: str | None = None


def find_parametrised(tensors: Iterable[StoredTensor], classes: Mapping[str, str]) -> list[Parametrised]:
    """Return the weights stored in parts among the tensors of one container.

    Args:
        tensors: tensors with dotted keys.
        classes: class names by module path, where the file knows them; they name unknown parametrisations and
            tell a transposed convolution.

    Returns:
        One entry a weight whose effective value is recomputed from parts, in stored order.
    """
    container = _index(tensors, classes)
    found = []
    for key in container.tensors:
        stem, dash, suffix = key.rpartition("_")
        recipe = _RECIPES.get(suffix) if dash else None
        weight = recipe(container, stem) if recipe else None
        if weight is not None:
            found.append(weight)
    found.extend(_stack(container, stem) for stem in container.stacks)
    return found


# ------------------------------------------------------------------------------------------------------------ recipes


@dataclass(frozen=True)
class _Container:
    """The tensors of one container by key, its classes by path, and its ``parametrizations.*`` by their common path."""

    tensors: Mapping[str, StoredTensor]
    classes: Mapping[str, str]
    stacks: Mapping[str, dict[str, StoredTensor]]
    steps: Mapping[str, dict[str, str]]

    def row_axis(self, owner: str) -> int | None:
        """Return the axis PyTorch's spectral_norm takes for rows, when the owner's class is known."""
        name = self.classes.get(owner, "")
        return (1 if "transpose" in name.lower() else 0) if name else None


def _index(tensors: Iterable[StoredTensor], classes: Mapping[str, str]) -> _Container:
    index = {tensor.key: tensor for tensor in tensors}
    stacks: dict[str, dict[str, StoredTensor]] = {}
    for key, tensor in index.items():
        match = _STACK.fullmatch(key)
        if match:
            stacks.setdefault(match["stem"], {})[match["inside"]] = tensor
    # A step without any original is not a parametrisation that anything could be computed from.
    stacks = {stem: inside for stem, inside in stacks.items() if "original" in inside or "original1" in inside}
    steps: dict[str, dict[str, str]] = {}
    for path, name in classes.items():
        stem, _, number = path.rpartition(".")
        if stem in stacks:
            steps.setdefault(stem, {})[number] = name
    return _Container(index, classes, stacks, steps)


def _weight_norm(container: _Container, stem: str) -> Parametrised | None:
    g, v = container.tensors.get(f"{stem}_g"), container.tensors[f"{stem}_v"]
    if g is None:
        return None
    stale = container.tensors.get(stem)
    parts = (g,) if stale is None else (g, stale)
    recipe = _Recipe("weight_norm", [WeightNorm(g)], _weight_norm_problem(v, g), parts[1:])
    return _assemble(stem, v, parts, recipe)


def _original(container: _Container, stem: str, suffix: str = "orig") -> Parametrised | None:
    weight = container.tensors[f"{stem}_{suffix}"]
    u, v, mask, stale = (container.tensors.get(stem + end) for end in ("_u", "_v", "_mask", ""))
    parts = tuple(part for part in (u, v, mask, stale) if part is not None)
    if u is not None and v is not None:
        steps = [SpectralNorm(u, v, container.row_axis(stem.rpartition(".")[0]))]
        copies = () if stale is None else (stale,)
        locked = _ALWAYS_ITERATES if suffix == "bar" else None
        recipe = _Recipe("spectral_norm", steps, _spectral_norm_problem(weight, u, v), copies, locked)
        return _assemble(stem, weight, parts, recipe)
    if mask is not None:
        wrong = f"{mask.key} has shape {mask.shape}, not {weight.shape}" if mask.shape != weight.shape else None
        copies = () if stale is None else (stale,)
        return _assemble(stem, weight, parts, _Recipe("a pruning mask", [Mask(mask)], wrong, copies))
    if stale is not None:
        # Early versions of spectral_norm store the weight they last used beside the original.
        parts = (weight, *(part for part in parts if part is not stale))
        locked = f"{stale.key} is only the weight last used: PyTorch computes it anew, and from what is not in the file"
        return _assemble(stem, stale, parts, _Recipe("the weight last used", locked=locked))
    problem = f"{weight.key} is stored without what the layer computes its weight from"
    return _assemble(stem, weight, parts, _Recipe("unknown", problem=problem))


def _stack(container: _Container, stem: str) -> Parametrised:
    """Put together ``parametrizations.<name>``: steps applied one after the other to the original(s)."""
    before, _, name = stem.rpartition("parametrizations.")
    owner = before.removesuffix(".")
    inside, classes = container.stacks[stem], container.steps.get(stem, {})
    pair = "original1" in inside
    direction = inside["original1" if pair else "original"]
    state: dict[str, dict[str, StoredTensor]] = {number: {} for number in classes}
    for key, tensor in inside.items():
        number, _, rest = key.partition(".")
        if rest:
            state.setdefault(number, {})[rest] = tensor

    steps: list[Step] = []
    names, problem = [], None
    if pair and not state.get("0") and classes.get("0", "_WeightNorm") == "_WeightNorm" and "original0" in inside:
        state["0"] = {"g": inside["original0"]}
    for number in map(str, range(max(len(state), 1))):
        parts = state.get(number, {})
        if parts.keys() == {"g"} and pair:
            problem = problem or _weight_norm_problem(direction, parts["g"])
            steps.append(WeightNorm(parts["g"]))
            names.append("weight_norm")
        elif parts.keys() == {"_u", "_v"} and classes.get(number, "_SpectralNorm") == "_SpectralNorm":
            problem = problem or _spectral_norm_problem(direction, parts["_u"], parts["_v"])
            steps.append(SpectralNorm(parts["_u"], parts["_v"], container.row_axis(owner)))
            names.append("spectral_norm")
        else:
            problem = problem or _unknown_step(name, number, classes.get(number, ""), parts)
    others = tuple(tensor for tensor in inside.values() if tensor is not direction)
    return _assemble(before + name, direction, others, _Recipe(" then ".join(names) or "unknown", steps, problem))


def _unknown_step(name: str, number: str, class_name: str, state: Mapping[str, StoredTensor]) -> str:
    where = f"parametrizations.{name}.{number}"
    if class_name == "_Orthogonal" or state.keys() == {"base"}:
        return f"{where} is an orthogonal parametrisation, whose map is not in the file"
    what = class_name or (f"a class with {', '.join(sorted(state))}" if state else "a class without state")
    return f"{where} is an unknown parametrisation ({what})"


_RECIPES: Mapping[str, Callable[[_Container, str], Parametrised | None]] = {
    "v": _weight_norm,
    "orig": _original,
    "bar": lambda container, stem: _original(container, stem, "bar"),
}
_ALWAYS_ITERATES = (
    "this spectral_norm (weight_bar) divides the weight by its own norm in every forward pass, in eval mode too: "
    "what is stored does not decide how large it is"
)
_STACK = re.compile(r"(?P<stem>(?:.*\.)?parametrizations\.[^.]+)\.(?P<inside>.+)", re.DOTALL)

# -------------------------------------------------------------------------------------------------------------- parts


@dataclass(frozen=True)
class _Recipe:
    """What turns the direction into the effective weight, or why nothing does."""

    how: str
    steps: Sequence[Step] = ()
    problem: str | None = None
    copies: Sequence[StoredTensor] = ()
    locked: str | None = None


def _assemble(stem: str, direction: StoredTensor, parts: tuple[StoredTensor, ...], recipe: _Recipe) -> Parametrised:
    owner, _, name = stem.rpartition(".")
    blocked = next((f"{t.key}: {t.problem}" for t in (direction, *parts) if t.problem), None)
    problem = blocked or recipe.problem
    made = InParts(direction, recipe.steps, recipe.copies)
    locked = problem or recipe.locked

    def read() -> Array:
        if problem:
            raise UnavailableError(problem, tensor=direction.key)
        return made.read()

    return Parametrised(owner, name, direction, parts, recipe.how, read, Locked(locked) if locked else made, problem)


def _weight_norm_problem(v: StoredTensor, g: StoredTensor) -> str | None:
    flat = g.shape in ((), (1,), v.shape[:1])
    fits = len(g.shape) == len(v.shape) and all(a in (1, b) for a, b in zip(g.shape, v.shape, strict=True))
    return None if flat or fits else f"{g.key} has shape {g.shape}, which does not fit {v.shape}"


def _spectral_norm_problem(weight: StoredTensor, u: StoredTensor, v: StoredTensor) -> str | None:
    if row_axes(weight.shape, math.prod(u.shape), math.prod(v.shape)):
        return None
    return f"{u.key} and {v.key} have shapes {u.shape} and {v.shape}, which do not fit {weight.shape}"
