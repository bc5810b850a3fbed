"""The library: the command line's verbs as functions that take kernels and return values.

Kernels are torch tensors or numpy arrays in PyTorch's layout, ``(c_out, c_in / groups, *K)``, or for a transposed
layer ``(c_in, c_out / groups, *K)``. Nothing here prints, exits or reads a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray

from convsv.analysis import AnalysisOptions, analyze_layer, method_names
from convsv.bounds import bounds_of
from convsv.clipping import Clipped
from convsv.editing import ClipPlan, clip_one
from convsv.errors import GeometryError, UnavailableError, UsageError
from convsv.execution import Execution
from convsv.geometry import Geometry, GeometryFacts, Origin, resolve
from convsv.layer import ConvLayer, from_canonical
from convsv.results import Bound, Interval, LayerReport, NetworkBound, Spectrum, Unavailable
from convsv.spectra import DEFAULT, SPECTRA, SpectrumOptions

if TYPE_CHECKING:
    from convsv.graph import Network

    Kernel: TypeAlias = "torch.Tensor" | NDArray[Any]

__all__ = ["analyze", "bounds", "clip", "layer_of", "network_bound", "operator_norm", "spectrum"]


def layer_of(
    kernel: Kernel | ConvLayer, geometry: Geometry | GeometryFacts | None = None, *, name: str = "kernel"
) -> ConvLayer:
    """Return a kernel as a layer.

    Args:
        kernel: torch tensor or numpy array, ``(c_out, c_in / groups, *K)``, floating; or a layer.
        geometry: complete, or what is known of it; the rest is assumed.
        name: what to call it in reports and errors.

    Raises:
        GeometryError: the kernel has no spatial axis, or the geometry does not fit it.
        UsageError: it is no floating-point array, or a layer is given with another geometry.
    """
    if isinstance(kernel, ConvLayer):
        if geometry is not None:
            raise UsageError("a layer brings its own geometry", tensor=kernel.name, advice="leave the argument out")
        return kernel
    if hasattr(kernel, "detach"):
        tensor: Any = kernel
        _refuse_dtype(str(tensor.dtype), tensor.is_floating_point())
        stored = np.asarray(tensor.detach().cpu().double())
    else:
        stored = np.asarray(kernel)
        halves = ("bfloat16", "float8_e4m3fn", "float8_e5m2")
        is_ours = stored.dtype.name in halves or (stored.dtype.kind == "f" and stored.dtype.itemsize <= 8)
        _refuse_dtype(str(stored.dtype), is_ours)
    if stored.ndim < 3:
        raise GeometryError(
            "a kernel needs two channel axes and at least one spatial axis", found=f"shape {stored.shape}"
        )
    size = stored.shape[2:]
    if not isinstance(geometry, Geometry):
        sources: list[tuple[Origin, GeometryFacts]] = [] if geometry is None else [("option", geometry)]
        geometry = resolve(size, sources)
    if geometry.dims != len(size):
        raise GeometryError("the geometry has another number of axes", found=f"{geometry.dims} for kernel {size}")
    if stored.shape[0] % geometry.groups:
        raise GeometryError("groups must divide the channels", found=f"groups {geometry.groups} for {stored.shape}")
    return ConvLayer(name, name, stored.shape, stored.dtype.name, "OIK", geometry, lambda: stored)


def _refuse_dtype(dtype: str, is_ours: bool) -> None:
    """Refuse integers, complex numbers and extended precision.

    Raises:
        UsageError: it is one of these.
    """
    if not is_ours:
        advice = "convert it first"
        raise UsageError("a kernel must be floating point, of at most 64 bits", found=dtype, advice=advice)


def operator_norm(
    kernel: Kernel | ConvLayer, geometry: Geometry | GeometryFacts | None = None, *, tol: float = 1e-3
) -> Interval:
    """Return a certified interval of the operator norm of a convolution of any input size.

    Args:
        kernel: torch tensor or numpy array, ``(c_out, c_in / groups, *K)``, floating; or a layer.
        geometry: its stride, dilation, groups ...; without one, stride 1 and one group, whose norm bounds that of
            every stride, dilation, number of groups and input size with zero or ordinary circular padding.
        tol: wanted relative width, upper / lower - 1.

    Returns:
        The interval; ``assumes`` names what each end leans on.

    Raises:
        GeometryError: the geometry does not fit the kernel.
        UsageError: the kernel is not floating point.
        UnavailableError: a weight is NaN or infinite.

    Guarantee:
        Certified, rounding included (see ``convsv.certificate``).
    """
    report = analyze_layer(layer_of(kernel, geometry), AnalysisOptions(tol=tol))
    if report.norm is None:
        raise UnavailableError(report.unavailable["norm"])
    return report.norm


def spectrum(
    kernel: Kernel | ConvLayer,
    geometry: Geometry | GeometryFacts | None = None,
    *,
    method: str = "circulant",
    options: SpectrumOptions = DEFAULT,
    execution: Execution | None = None,
) -> Spectrum:
    """Return the singular values of a convolution by one method.

    Args:
        kernel: torch tensor or numpy array, ``(c_out, c_in / groups, *K)``, floating; or a layer.
        geometry: its geometry; its ``size`` counts (32 on each axis where it is silent).
        method: a name in the registry of methods.
        options: what is wanted of it, as ``SpectrumOptions(top=10, trailing=3)``, ``SpectrumOptions(density=True)`` or
            ``SpectrumOptions(values=False)``, statistics only; unless told, whole spectra where they are affordable.
        execution: device, dtype, memory budget and threads; None for the defaults.

    Raises:
        UsageError: there is no such method, or the kernel is not floating point.
        GeometryError: the geometry does not fit the kernel.
        UnavailableError: this layer has no such spectrum, with the reason.
    """
    if method not in SPECTRA:
        raise UsageError("unknown method", found=method, advice=f"use one of {', '.join(SPECTRA)}")
    found = SPECTRA[method].compute(layer_of(kernel, geometry), execution or Execution(), options)
    return found if options.values else found.without_whole_values()


def bounds(
    kernel: Kernel | ConvLayer, geometry: Geometry | GeometryFacts | None = None, *, names: Sequence[str] | None = None
) -> dict[str, Bound | Unavailable]:
    """Return published bounds of the operator norm by name.

    Args:
        kernel: torch tensor or numpy array, ``(c_out, c_in / groups, *K)``, floating; or a layer.
        geometry: its geometry.
        names: which; all when None.

    Raises:
        UsageError: the kernel is not floating point, or there is no such bound.
        GeometryError: the geometry does not fit the kernel.
        UnavailableError: a weight is NaN or infinite.
    """
    layer = layer_of(kernel, geometry)
    try:
        return bounds_of(layer, names)
    except KeyError as error:
        raise UsageError(str(error.args[0])) from None


def clip(
    kernel: Kernel | ConvLayer,
    max_norm: float,
    geometry: Geometry | GeometryFacts | None = None,
    *,
    method: str = "nearest",
    tol: float = 1e-3,
) -> Clipped:
    """Return a kernel moved as little as possible until its certified operator norm is at most ``max_norm``.

    Args:
        kernel: torch tensor or numpy array, ``(c_out, c_in / groups, *K)``, floating; or a layer.
        max_norm: the largest norm allowed, of any input size.
        geometry: its geometry.
        method: ``"nearest"``, ``"alternating"``, ``"sedghi"`` (the published single pass, which does not keep within
            the norm) or ``"scale"``.
        tol: relative width of the certified intervals; the norm ends within about as much of the largest allowed.

    Returns:
        What became of it. Its ``kernel`` is as the one given: tensor or array, shape, dtype and device; of a layer it
        is the stored layout in float64.

    Raises:
        UsageError: the kernel is not floating point, there is no such method, or ``max_norm`` is not positive.
        GeometryError: the geometry does not fit the kernel.
        UnavailableError: a weight is NaN or infinite, or the layer's file cannot hold another kernel.
        ComputationError: no kernel within the norm was found in its dtype.

    Guarantee:
        ``after.upper`` is certified for the kernel that is returned, rounded to its dtype. That no kernel within the
        norm is nearer than ``1 + gap`` allows is an estimate.
    """
    plan, layer = ClipPlan(max_norm, method=method, tol=tol), layer_of(kernel, geometry)
    if isinstance(kernel, ConvLayer):
        found = clip_one(layer, plan)
        return replace(found, kernel=from_canonical(found.kernel, layer.layout))
    if not isinstance(kernel, torch.Tensor):
        found = clip_one(layer, plan)
        return replace(found, kernel=from_canonical(found.kernel, "OIK").astype(np.asarray(kernel).dtype))
    found = clip_one(replace(layer, dtype=str(kernel.dtype).removeprefix("torch.")), plan)
    like: Any = torch.from_numpy(np.ascontiguousarray(from_canonical(found.kernel, "OIK"))).to(kernel)
    return replace(found, kernel=like)


def analyze(
    layers: Kernel | ConvLayer | Iterable[ConvLayer],
    geometry: Geometry | GeometryFacts | None = None,
    *,
    methods: Sequence[str] = (),
    tol: float = 1e-3,
    values: bool = False,
    spectra: SpectrumOptions = DEFAULT,
) -> list[LayerReport]:
    """Return a report a layer: the certified interval of the norm, and the spectra and bounds asked for.

    What a layer does not have is in its ``unavailable``, with the reason; where its weights cannot be read from the
    file, that is everything, and ``unread`` says why.

    Args:
        layers: what ``find_layers`` returns, one layer, or a kernel.
        geometry: of a kernel; layers bring their own.
        methods: names of spectra, and ``"bounds"``.
        tol: wanted relative width of the certified interval.
        values: whether to keep whole spectra.
        spectra: what else is wanted of them; its own ``values`` does not count.

    Raises:
        UsageError: there is no such method, or a kernel is not floating point.
        GeometryError: the geometry does not fit a kernel.
    """
    for name in methods:
        if name not in method_names():
            raise UsageError("unknown method", found=name, advice=f"use one of {', '.join(method_names())}")
    if isinstance(layers, ConvLayer):
        chosen: Iterable[ConvLayer] = [layers]
    elif isinstance(layers, np.ndarray) or hasattr(layers, "detach"):
        chosen = [layer_of(cast("Kernel", layers), geometry)]
    else:
        chosen = cast("Iterable[ConvLayer]", layers)
    options = AnalysisOptions(tuple(methods), tol=tol, values=values, spectra=spectra)
    return [analyze_layer(layer, options) for layer in chosen]


def network_bound(
    network: torch.nn.Module | Network,
    *inputs: torch.Tensor | Sequence[int],
    output: str | None = None,
    tol: float = 1e-3,
) -> NetworkBound:
    """Return a certified Lipschitz constant of a whole network in inference, and each operation's part in it.

    Args:
        network: a PyTorch model, or a graph: that of an ONNX file is ``open_checkpoint(path).network()``.
        inputs: for a model, the positional arguments of its ``forward`` for a batch of one, or their shapes: it is run
            once to see what it does. Nothing it does may depend on the values of its input but through torch.
        output: name of an output: a place in what the model returns (``"0"``), a key, an output of the graph, or any
            operation; the first output when None.
        tol: wanted relative width of the certified norm of each layer.

    Returns:
        ``upper`` with ``||f(x) - f(y)|| <= upper ||x - y||`` for all inputs x and y, in the Euclidean norm of all
        entries together; None where some operation has no bound, which ``unavailable`` then names.

    Raises:
        UsageError: there is no such output, or a graph is given with inputs.
        CheckpointError: a tensor could not be read.

    Guarantee:
        Certified, rounding included (see ``convsv.network``), for the real function that the network stands for.
    """
    from convsv.network.propagation import bound_network

    if isinstance(network, torch.nn.Module):
        from convsv.tracing import network_of

        network = network_of(network, inputs)
    elif inputs:
        raise UsageError("a graph brings the shapes of its inputs", advice="leave the inputs out")
    return bound_network(network, AnalysisOptions(tol=tol), output=output)
