"""Which tensors are convolution kernels, and which are only shaped like one.

A candidate is a tensor of three to five axes. First come the rules of :data:`RULES`, by name and in order: each gives
a reason why the candidate is no kernel, or nothing. What no rule refuses is a kernel, with a note where that leans on
the shape alone: reporting a tensor too many is a nuisance, dropping a convolution is an error.

A class that the file states decides over names and shapes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from convsv.checkpoints import StoredTensor
from convsv.checkpoints.naming import Place
from convsv.layer import Layout

__all__ = ["AXES", "RULES", "Candidate", "is_convolution", "is_ema", "is_kernel_name", "refusal", "remark"]

AXES = (3, 4, 5)
"""Numbers of axes a kernel can have: one to three spatial ones."""


@dataclass(frozen=True)
class Candidate:
    """A tensor of three to five axes, and what is around it.

    Attributes:
        tensor: the tensor.
        place: its key, taken apart; the leaf is what the tensor is in its module (``weight``, ``kernel``, ``bias``).
        class_name: class of the owning module, ``""`` when the file does not say.
        layout: what the axes mean, if it is a kernel.
        module: the tensors of its module by leaf, itself included.
        children: names of the modules inside it.
    """

    tensor: StoredTensor
    place: Place
    class_name: str = ""
    layout: Layout = "OIK"
    module: Mapping[str, StoredTensor] = field(default_factory=dict)
    children: frozenset[str] = frozenset()

    @property
    def leaf(self) -> str:
        """What the tensor is called in its module."""
        return self.place.leaf

    @property
    def named_kernel(self) -> bool:
        """Whether it has a name that kernels have."""
        return is_kernel_name(self.leaf)

    @property
    def kernel_size(self) -> tuple[int, ...]:
        """Spatial taps."""
        return self.tensor.shape[2:] if self.layout == "OIK" else self.tensor.shape[:-2]

    @property
    def floating(self) -> bool:
        """Whether the stored numbers are real floating-point ones."""
        return self.tensor.dtype.startswith(("float", "bfloat"))

    @property
    def vector(self) -> bool:
        """Whether at most one axis is longer than 1: a vector made to broadcast."""
        return sum(n != 1 for n in self.tensor.shape) <= 1

    @property
    def bias_size(self) -> int | None:
        """Length of the module's bias vector."""
        bias = self.module.get("bias")
        return bias.shape[0] if bias is not None and len(bias.shape) == 1 else None


Rule: TypeAlias = Callable[[Candidate], "str | None"]
RULES: dict[str, Rule] = {}
"""Rule name -> function that returns why a candidate is no kernel, in the order they are asked."""


def refusal(candidate: Candidate) -> tuple[str, str] | None:
    """Return (rule, reason) of the first rule that refuses a candidate, or ``None``: then it is a kernel.

    A kernel of a class that is known to be a convolution is refused in an optimizer only.
    """
    known = candidate.named_kernel and is_convolution(candidate.class_name)
    if known and candidate.leaf == "kernel_oik":
        return None  # the file itself says what it is used for
    for name, rule in RULES.items():
        reason = None if known and rule is not _optimizer else rule(candidate)
        if reason:
            return name, reason
    return None


def remark(candidate: Candidate) -> str | None:
    """Return what to note about an accepted kernel, if its being one leans on the shape alone."""
    if is_convolution(candidate.class_name):
        return None
    if not candidate.named_kernel:
        return "taken for a kernel by its shape"
    shape = candidate.tensor.shape
    bias = candidate.bias_size
    if len(shape) == 3 and bias is None and (max(candidate.kernel_size) > 256 or (shape[0] == 1 < shape[2])):
        return "may be a matrix, or a stack of matrices"
    if candidate.layout == "OIK" and bias not in (None, shape[0]) and shape[1] and bias % shape[1]:
        return f"its bias has {bias} entries, which fits no convolution of shape {shape}"
    if len(shape) == 4 and candidate.children & {"affine", "modulation"}:
        return "the network may modulate this kernel by its input"
    return None


def is_convolution(class_name: str) -> bool:
    """Tell whether a class of that name is a convolution (``Conv2d``, ``Conv2DTranspose``, ``StdConv2dSame``)."""
    return bool(_CONVOLUTION.search(class_name))


def is_kernel_name(leaf: str) -> bool:
    """Tell whether kernels are called so in their module (``weight``, ``kernel``, ``depthwise_kernel``)."""
    return bool(_KERNEL.fullmatch(leaf))


def is_ema(part: str) -> bool:
    """Tell whether a part of a path says "moving average of the weights" (``ema``, ``params_ema``, ``model_ema``)."""
    return bool(_EMA.search(part))


def _rule(name: str) -> Callable[[Rule], Rule]:
    def add(rule: Rule) -> Rule:
        RULES[name] = rule
        return rule

    return add


_KERNEL = re.compile(r"weights?|[wW]|kernels?|filters?|(depthwise|pointwise|recurrent)_kernel|kernel_oik")
_CONVOLUTION = re.compile(r"Conv[A-Za-z_]*[123][dD]|Convolution[123][dD]")
_EMA = re.compile(r"(?i)(^|[_\-])(ema|swa)([_\-]|$)|^averaged_model$|^shadow_params$")

# ---------------------------------------------------------------------------------------- what training leaves behind

_OPTIMIZER = re.compile(
    r"(?i)optimi[sz]er|(^|[_\-])optims?([_\-]|$)|^opt(_states?|_?\w)?$"
    r"|^(lr_)?schedulers?$|^(grad_)?scaler$|^grad(ient)?s?$"
)
_SLOT = re.compile(
    r"(max_)?exp_avg(_sq)?|exp_inf|momentum_buffer|square_avg|grad_avg|acc_delta|step_sizes?|prev(_grad)?|ax|eta|mu"
    r"|momentum|velocity|accumulator|rms|vhat"
)
_KERAS_OPTIMIZER = re.compile(r"(training|AdamW?|Nadam|Adamax|SGD|RMSprop|Adagrad|Adadelta|Ftrl|Lion)(_\d+)?")


@_rule("optimizer state")
def _optimizer(c: Candidate) -> str | None:
    parts = (*c.tensor.container, *c.place.owner)
    for part in parts:
        if _OPTIMIZER.search(part):
            return f"inside {part!r}"
    slots = (*c.place.owner, c.leaf)
    if any(_SLOT.fullmatch(part) for part in slots) and not c.named_kernel:
        return "an optimizer's running statistics"
    if any(part in ("exp_avg", "exp_avg_sq", "momentum_buffer") for part in slots):
        return "an optimizer's running statistics"
    if c.place.separator == "/" and any(_KERAS_OPTIMIZER.fullmatch(part) for part in c.place.owner[:1]):
        return f"inside {c.place.owner[0]!r}"
    return None


# --------------------------------------------------------------------------------------------------- what the file says

_OTHER_CLASS = re.compile(
    r"(Bilinear|Linear|Dense|Embedding|EmbeddingBag|PReLU|Attention|RNN|LSTM|GRU)$|^(RNN|LSTM|GRU|LocallyConnected)"
    r"|(Batch|Layer|Group|Instance|RMS|RMSNorm|Response)_?Norm(alization)?|^SpectralNormalization$"
)


@_rule("module class")
def _module_class(c: Candidate) -> str | None:
    if c.class_name and not is_convolution(c.class_name) and _OTHER_CLASS.search(c.class_name):
        return f"its module is a {c.class_name}"
    return None


@_rule("operand")
def _operand(c: Candidate) -> str | None:
    told = c.leaf == "operand" and c.class_name and not is_convolution(c.class_name)
    return f"an operand of {c.class_name}, which is no convolution" if told else None


# ------------------------------------------------------------------------------------------------ what the names say
# Names of parameters that are not called "weight" or "kernel", and of modules where the shape leaves a doubt.

_POSITION = re.compile(
    r"(?i)pos(ition(al)?)?_?(emb|enc|bias|table|code)|positional|relative_(pos|coords|att)|rel_(pos|bias)"
    r"|absolute_pos|rotary|rope|sinusoid|freqs?(_cis)?$|^pe$|^rpb$"
)
_TOKEN = re.compile(
    r"(?i)(^|_)(cls|class|tokens?|embed(ding)?s?|quer(y|ies)|latents?|prompts?|registers?|codebooks?|memory)(_tokens?)?$"
)
_BUFFER = re.compile(
    r"(?i)(^|_)(masks?|running_(mean|var|cov)|moving_(mean|variance)|mean|std|var|shift|num_batches\w*)$|^masks?_"
)
_ANCHOR = re.compile(r"(?i)^(anchors?|anchor_(grid|points)|cell_anchors|priors?|grids?|strides?|default_boxes)$")
_PROTOTYPE = re.compile(r"(?i)^(prototypes?(_\w+)?|centers|centroids)$")
_TRANSFORM = re.compile(
    r"(?i)(^|_)(i?stft|i?fft|i?dft|mel|window|fbanks?|filterbanks?|dct|dwt|wavelets?|(forward|inverse)_basis|basis)(_|$)"
)
_NOISE = re.compile(r"(?i)^(noise|const|constant|input)(_\w+)?$")
_NORM = re.compile(r"(?i)(^|_)(layer|batch|group|instance|rms)?_?norm(\d+\w*)?$|^(ln|bn|gn|in)_?\d*$|norm$")
_MANY_TAPS = 32
"""More taps than a projection has when it is a 1-d convolution."""
_PROJECTION = re.compile(
    r"(?i)(^|_)(in|out|q|k|v|o|qkv|kv|gate|up|down|gate_up)_proj(ection)?$"
    r"|^(query|key|value|qkv|out|attention_output|fc\d*|linear\d*|dense(_\d+)?|experts?|einsum_dense(_\d+)?)$"
)


@_rule("bias")
def _bias(c: Candidate) -> str | None:
    return "a bias" if re.search(r"(?i)(^|_)bias(es)?(_|$)", c.leaf) else None


@_rule("position table")
def _position(c: Candidate) -> str | None:
    table = not c.named_kernel and _POSITION.search(c.leaf)
    module = len(c.tensor.shape) == 3 and c.tensor.shape[0] == 1 and c.named_kernel and _POSITION.search(c.place.parent)
    return "a table of positions" if table or module else None


@_rule("token or embedding")
def _token(c: Candidate) -> str | None:
    if not c.named_kernel:
        return "learned tokens or embeddings" if _TOKEN.search(c.leaf) else None
    owner = re.search(r"(?i)(token|word|query|label|class|time)_?emb|^(wte|wpe|embeddings?|codebook)$", c.place.parent)
    return "an embedding" if owner and len(c.tensor.shape) == 3 else None


@_rule("buffer")
def _buffer(c: Candidate) -> str | None:
    return "a mask or statistic" if not c.named_kernel and _BUFFER.search(c.leaf) else None


@_rule("anchors")
def _anchors(c: Candidate) -> str | None:
    return "anchors or a grid" if not c.named_kernel and _ANCHOR.search(c.leaf) else None


@_rule("prototypes")
def _prototypes(c: Candidate) -> str | None:
    return "prototypes" if not c.named_kernel and _PROTOTYPE.search(c.leaf) else None


@_rule("transform basis")
def _transform(c: Candidate) -> str | None:
    return "the basis of a fixed transform" if not c.named_kernel and _TRANSFORM.search(c.leaf) else None


@_rule("constant input")
def _noise(c: Candidate) -> str | None:
    return "a constant or noise input" if not c.named_kernel and _NOISE.search(c.leaf) else None


@_rule("recurrent")
def _recurrent(c: Candidate) -> str | None:
    return "a recurrent weight" if re.fullmatch(r"weight_(ih|hh|hr)_l\d+(_reverse)?", c.leaf) else None


@_rule("normalisation")
def _normalisation(c: Candidate) -> str | None:
    bias = c.module.get("bias")
    if bias is not None and bias.shape == c.tensor.shape:
        return "its bias has the same shape"
    if c.module.keys() & {"running_mean", "moving_mean"}:
        return "its module keeps running statistics"
    if c.named_kernel and _NORM.search(c.place.parent) and (c.vector or len(c.tensor.shape) == 3):
        return f"the scale of {c.place.parent!r}"
    return None


@_rule("linear")
def _linear(c: Candidate) -> str | None:
    """Refuse a stack of matrices: three axes, more than one tap, and a bias or name that no convolution has."""
    if len(c.tensor.shape) != 3 or not c.named_kernel or math.prod(c.kernel_size) == 1:
        return None
    bias = c.module.get("bias")
    out, inputs = c.tensor.shape[:2] if c.layout == "OIK" else c.tensor.shape[:0:-1]
    if bias is not None and len(bias.shape) == 1:
        fits = bias.shape[0] == out or (inputs and bias.shape[0] % inputs == 0)
        return None if fits else f"a matrix: its bias has {bias.shape[0]} entries"
    if bias is not None:
        return f"a stack of matrices: its bias has shape {bias.shape}"
    if "experts" in c.place.owner or (_PROJECTION.search(c.place.parent) and c.kernel_size[0] > _MANY_TAPS):
        return f"a stack of matrices in {c.place.parent!r}"
    return None


# ------------------------------------------------------------------------------------------------- what the shapes say


@_rule("not floating point")
def _not_floating(c: Candidate) -> str | None:
    """Refuse whole and complex numbers, except where the name says that it is a kernel: that is reported."""
    listed = c.named_kernel and re.search("int|complex", c.tensor.dtype)
    return None if c.floating or listed or c.tensor.problem else f"its dtype is {c.tensor.dtype}"


@_rule("broadcast vector")
def _vector(c: Candidate) -> str | None:
    return "a vector made to broadcast" if not c.named_kernel and c.vector else None


@_rule("feature map")
def _feature_map(c: Candidate) -> str | None:
    leading = c.tensor.shape[0] == 1 and not c.named_kernel
    return "no name of a kernel, and a leading axis of 1" if leading else None


@_rule("unnamed")
def _unnamed(c: Candidate) -> str | None:
    """Refuse three axes without a kernel's name: stacks of matrices are far more frequent there."""
    if c.named_kernel or len(c.tensor.shape) > 3 or re.search(r"(?i)conv|kernel|filter", c.leaf):
        return None
    return "three axes, and no name of a kernel"
