"""Sources of geometry: who may say what about a layer, each under the name of its origin.

A new source is a function in :data:`SOURCES`. Which source wins is not decided here: :func:`convsv.geometry.resolve`
ranks the origins.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from convsv.checkpoints.sidecar import Sidecar
from convsv.checkpoints.traced import Trace
from convsv.errors import GeometryError, error_context
from convsv.geometry import Geometry, GeometryFacts, Origin, resolve
from convsv.layer import Layout

__all__ = ["SOURCES", "Channels", "GeometryOptions", "Subject", "depthwise", "overruled", "resolve_geometry"]


@dataclass(frozen=True)
class GeometryOptions:
    """What the caller states about geometry.

    Attributes:
        size: spatial input size of layers whose size nothing else tells; one number stands for every axis, and
            several hold for layers with as many axes.
        padding_mode: padding mode of every layer, over whatever else is said.
        sidecar: a geometry file, read.
        trace: what running the model told.
        fold: whether layers are reported with the batch normalisation behind them: ``"known"`` where the file or the
            trace shows it, ``"by-order"`` also where only the order of the keys suggests it.
    """

    size: tuple[int, ...] | None = None
    padding_mode: str | None = None
    sidecar: Sidecar | None = None
    trace: Trace | None = None
    fold: Literal["known", "by-order"] | None = None


@dataclass(frozen=True)
class Channels:
    """A weight seen from its neighbours.

    Attributes:
        out: output channels, as if it were a forward convolution of one group (or a matrix).
        inputs: input channels a group.
        pointwise: whether it has one tap only.
        name: its module's path.
        kernel: whether it is a convolution.
    """

    out: int
    inputs: int
    pointwise: bool
    name: str = ""
    kernel: bool = True

    @property
    def single_input(self) -> bool:
        """Whether each of several outputs reads one channel: depthwise, or the first layer of a one-channel input."""
        return self.kernel and self.inputs == 1 and self.out > 1


@dataclass(frozen=True)
class Subject:
    """A layer whose geometry is asked for.

    Attributes:
        name: its name.
        shape: stored shape.
        layout: what the stored axes mean.
        stored: what the file says.
        inferred: what the shapes around it say.
        traced: what a call of it in the running model says.
    """

    name: str
    shape: tuple[int, ...]
    layout: Layout
    stored: GeometryFacts = field(default_factory=GeometryFacts)
    inferred: GeometryFacts = field(default_factory=GeometryFacts)
    traced: GeometryFacts = field(default_factory=GeometryFacts)

    @property
    def kernel_size(self) -> tuple[int, ...]:
        """Spatial taps."""
        return self.shape[2:] if self.layout == "OIK" else self.shape[:-2]

    @property
    def rows(self) -> int:
        """The channels that groups divide: outputs of the forward convolution; inputs where each is a group."""
        return {"OIK": self.shape[0], "KIO": self.shape[-1], "KCM": self.shape[-2]}[self.layout]


Source: TypeAlias = Callable[[Subject, GeometryOptions], GeometryFacts]


def _stored(subject: Subject, _: GeometryOptions) -> GeometryFacts:
    """Return what the file says; a depthwise layout says that every channel is a group."""
    return replace(subject.stored, groups=max(subject.rows, 1)) if subject.layout == "KCM" else subject.stored


def _traced(subject: Subject, _: GeometryOptions) -> GeometryFacts:
    """Return what running the model says."""
    return subject.traced


def _inferred(subject: Subject, _: GeometryOptions) -> GeometryFacts:
    """Return what the shapes say."""
    return subject.inferred


def _sidecar(subject: Subject, options: GeometryOptions) -> GeometryFacts:
    """Return what the geometry file says."""
    if options.sidecar is None:
        return GeometryFacts()
    return options.sidecar.facts(subject.name, len(subject.kernel_size))


def _option(subject: Subject, options: GeometryOptions) -> GeometryFacts:
    """Return what the options say; the size holds for a fitting number of axes."""
    size = options.size
    if size is not None and len(size) == 1:
        return GeometryFacts(size=size[0], padding_mode=options.padding_mode)
    fits = size is not None and len(size) == len(subject.kernel_size)
    return GeometryFacts(size=size if fits else None, padding_mode=options.padding_mode)


SOURCES: Mapping[Origin, Source] = {
    "option": _option,
    "sidecar": _sidecar,
    "stored": _stored,
    "traced": _traced,
    "inferred": _inferred,
}
"""Origin -> what that source says about a layer."""


def resolve_geometry(subject: Subject, options: GeometryOptions) -> tuple[Geometry, str | None]:
    """Ask every source about a layer.

    Args:
        subject: the layer.
        options: what the caller states. A size among the options yields to every other source.

    Returns:
        The geometry, and what is wrong with the file's own statement, which is then left out.

    Raises:
        GeometryError: what the user states is impossible, or contradicts the weights; names the layer.
    """
    said: dict[Origin, GeometryFacts] = {}
    with error_context(tensor=subject.name):
        for origin, source in SOURCES.items():
            said[origin] = source(subject, options)
        if any(facts.size is not None for origin, facts in said.items() if origin != "option"):
            said["option"] = replace(said["option"], size=None)
        problem = _contradiction(subject, {"stored": said["stored"]})
        if problem:
            said["stored"] = GeometryFacts()
        wrong = _contradiction(subject, said)
        if wrong:
            raise wrong
        return resolve(subject.kernel_size, list(said.items())), str(problem) if problem else None


def overruled(kernel_size: tuple[int, ...], stored: GeometryFacts, traced: GeometryFacts) -> list[str]:
    """Return what running the model says otherwise than the file, whose word counts: ``"stride 1x1, not 2x2"``.

    Args:
        kernel_size: spatial taps.
        stored: what the file says.
        traced: what a call says; a size is that call's own.
    """
    said = {name: value for name, value in vars(stored).items() if value is not None and name != "size"}
    try:
        # The file's words in the trace's place: "same" becomes amounts, one number one an axis.
        ours = resolve(kernel_size, [("traced", traced), ("stored", replace(GeometryFacts(), **said))])
        theirs = resolve(kernel_size, [("traced", traced)])
    except GeometryError:
        return []
    return [
        f"{name} {_words(getattr(theirs, name))}, not {_words(getattr(ours, name))}"
        for name in said
        if getattr(traced, name) is not None and getattr(ours, name) != getattr(theirs, name)
    ]


def _words(value: object) -> str:
    if isinstance(value, tuple):
        return "x".join(":".join(map(str, item)) if isinstance(item, tuple) else str(item) for item in value)
    return str(value).lower()


def _contradiction(subject: Subject, said: Mapping[Origin, GeometryFacts]) -> GeometryError | None:
    try:
        geometry = resolve(subject.kernel_size, list(said.items()))
    except GeometryError as error:
        return error
    groups = geometry.groups
    if subject.layout == "KCM" and groups != max(subject.rows, 1):
        fits = "in a depthwise layer every channel is a group"
    elif subject.rows % groups:
        fits = "groups must divide the channels"
    else:
        return None
    return GeometryError(fits, found=f"groups {groups} for shape {subject.shape}")


# ---------------------------------------------------------------------------------------------- inferred from shapes

_SAYS_DEPTHWISE = re.compile(r"(?i)depth_?wise|(^|[._/])(conv_?dw|dw_?conv|dw)\d*($|[._/])")


def depthwise(weights: Sequence[Channels]) -> list[bool]:
    """Tell which kernels with one input channel a group are depthwise, and not layers that read one channel.

    Such a kernel is depthwise when its neighbours pass it as many channels as it has, or take them through one-tap
    weights, and it is neither the first of all nor the only one of its kind without a one-tap successor. A module
    that is called depthwise is.

    Args:
        weights: convolutions and matrices in the order of the network, as well as the file tells it.

    Returns:
        One truth value a weight.
    """
    alone = sum(weight.single_input for weight in weights) == 1
    answers: list[bool] = []
    before: Channels | None = None
    for index, weight in enumerate(weights):
        follower = weights[index + 1] if index + 1 < len(weights) else None
        taken = follower is not None and follower.pointwise and follower.inputs == weight.out
        given = before is not None and before.out == weight.out and not alone
        named = bool(_SAYS_DEPTHWISE.search(weight.name))
        answers.append(weight.single_input and (named or (index > 0 and (taken or given))))
        # Of a single-input kernel that is not depthwise it is unknown which axis is the output.
        before = weight if answers[-1] or not weight.single_input else None
    return answers
