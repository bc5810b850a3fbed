"""Kernels on their way back into what a file holds of them, judged by PyTorch's modules that load the result."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from convsv.checkpoints import ModuleFacts
from convsv.checkpoints.discovery import find_layers
from convsv.errors import UnavailableError
from convsv.geometry import Geometry
from convsv.layer import ConvLayer, rounded_to, to_canonical
from parametrised import LAYERS, WRAPS, effective, trained
from statedicts import checkpoint, holding

Arrays = Mapping[str, NDArray[Any]]
EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def layer_in(arrays: Arrays, **facts: Any) -> ConvLayer:
    (layer,) = find_layers(checkpoint(holding(arrays), **facts))
    return layer


def edited(layer: ConvLayer, kernel: NDArray[np.float64], arrays: Arrays) -> dict[str, NDArray[Any]]:
    """Return the arrays with a layer's edits, each of the shape and dtype that it replaces."""
    new = dict(arrays)
    for edit in layer.stored_parts(kernel):
        old = arrays[edit.tensor.key]
        assert (edit.values.shape, edit.values.dtype) == (old.shape, old.dtype)
        new[edit.tensor.key] = edit.values
    return new


def numpy_of(tensor: torch.Tensor) -> NDArray[Any]:
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def torch_of(array: NDArray[Any]) -> torch.Tensor:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def state_of(module: Any) -> dict[str, NDArray[Any]]:
    return {f"conv.{key}": numpy_of(value.detach().clone()) for key, value in module.state_dict().items()}


def clipped_like(kernel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a kernel as clipping might leave it: smaller, turned a little, other in every entry."""
    noise = np.random.default_rng(5).normal(size=kernel.shape)
    return 0.4 * kernel + 0.1 * np.abs(kernel).mean() * noise


# ---------------------------------------------------------------------------------------- modules that load the result


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_module_that_loads_the_parts_has_the_wanted_kernel(layer: str, wrap: str, dtype: str) -> None:
    module = trained(layer, wrap, getattr(torch, dtype))
    arrays = state_of(module)
    found = layer_in(arrays)
    wanted = clipped_like(found.kernel())
    support = found.support()
    wanted = wanted if support is None else wanted * support
    new = edited(found, wanted, arrays)
    module.load_state_dict({key.removeprefix("conv."): torch_of(value) for key, value in new.items()})
    seen = to_canonical(effective(module.eval()), "OIK", 1)
    assert np.abs(seen - wanted).max() <= 16 * EPS[dtype] * np.abs(wanted).max()


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("dtype", EPS)
def test_reader_sees_bit_for_bit_what_was_foretold(layer: str, wrap: str, dtype: str) -> None:
    arrays = {
        key: rounded_to(np.float64(value), dtype)
        for key, value in state_of(trained(layer, wrap, torch.float32)).items()
    }
    found = layer_in(arrays)
    wanted = clipped_like(found.kernel())
    foretold = found.as_stored(wanted)
    seen = layer_in(edited(found, wanted, arrays)).kernel()
    assert np.array_equal(foretold, seen)
    support = found.support()
    assert (
        np.abs(seen - (wanted if support is None else wanted * support)).max() <= 4 * EPS[dtype] * np.abs(wanted).max()
    )


@pytest.mark.parametrize("wrap", WRAPS)
def test_storing_what_is_stored_changes_no_bit(wrap: str) -> None:
    arrays = state_of(trained("conv2d", wrap, torch.float32))
    found = layer_in(arrays)
    changed = {edit.tensor.key for edit in found.stored_parts(found.kernel())}
    # The divisor of spectral_norm becomes 1: there the length of a weight is a convention.
    assert changed <= ({key for key in arrays if "spectral" in wrap and "bias" not in key})


@pytest.mark.parametrize("wrap", WRAPS)
def test_storing_again_what_is_seen_changes_nothing_more(wrap: str) -> None:
    arrays = state_of(trained("conv2d", wrap, torch.float32))
    found = layer_in(arrays)
    once = edited(found, clipped_like(found.kernel()), arrays)
    twice = edited(layer_in(once), layer_in(once).kernel(), once)
    for key, value in once.items():
        assert np.abs(np.float64(twice[key]) - value).max() <= 2.0**-22 * np.abs(value).max()


# -------------------------------------------------------------------------------------------------------- the parts


def weight_norm_arrays(shape: tuple[int, ...] = (4, 3, 3, 3), dtype: str = "float32") -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(1)
    v, g = rng.normal(size=shape), rng.uniform(0.5, 2, size=(shape[0], *[1] * (len(shape) - 1)))
    return {"c.weight_v": v.astype(dtype), "c.weight_g": g.astype(dtype)}


def test_weight_norm_keeps_the_length_of_its_directions() -> None:
    arrays = weight_norm_arrays()
    layer = layer_in(arrays)
    new = edited(layer, clipped_like(layer.kernel()), arrays)
    lengths = [np.linalg.norm(np.float64(a["c.weight_v"]).reshape(4, -1), axis=1) for a in (arrays, new)]
    assert lengths[1] == pytest.approx(lengths[0], rel=1e-6)


def test_scaling_a_weight_normed_kernel_moves_its_magnitudes_only() -> None:
    arrays = weight_norm_arrays()
    layer = layer_in(arrays)
    new = edited(layer, layer.kernel() / 4, arrays)
    assert np.array_equal(new["c.weight_v"], arrays["c.weight_v"])
    assert np.array_equal(new["c.weight_g"], arrays["c.weight_g"] / 4)


def test_negative_magnitude_stays_negative() -> None:
    arrays = weight_norm_arrays()
    arrays["c.weight_g"][1] *= -1
    layer = layer_in(arrays)
    new = edited(layer, layer.kernel() / 2, arrays)
    assert np.array_equal(new["c.weight_v"], arrays["c.weight_v"])
    assert np.array_equal(new["c.weight_g"], arrays["c.weight_g"] / 2)


def test_filter_that_vanishes_keeps_its_direction_and_gives_no_nan() -> None:
    arrays = weight_norm_arrays()
    layer = layer_in(arrays)
    wanted = clipped_like(layer.kernel())
    wanted[0, 2] = 0
    new = edited(layer, wanted, arrays)
    assert np.array_equal(new["c.weight_v"][2], arrays["c.weight_v"][2])
    assert new["c.weight_g"][2] == 0
    assert not layer_in(new).kernel()[0, 2].any()


def test_filter_that_had_vanished_comes_back() -> None:
    arrays = weight_norm_arrays()
    arrays["c.weight_g"][2] = 0
    layer = layer_in(arrays)
    wanted = clipped_like(layer.kernel())
    wanted[0, 2] = 1
    assert layer.as_stored(wanted) == pytest.approx(wanted, rel=1e-6, abs=1e-7)


def spectral_arrays(shape: tuple[int, ...] = (4, 3, 3, 3)) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(2)
    weight = rng.normal(size=shape).astype(np.float32)
    u, _, vt = np.linalg.svd(weight.reshape(shape[0], -1))
    return {"c.weight_orig": weight, "c.weight_u": u[:, 0], "c.weight_v": vt[0]}


def test_spectral_norm_stores_the_kernel_itself_and_divides_by_one() -> None:
    arrays = spectral_arrays()
    layer = layer_in(arrays)
    wanted = clipped_like(layer.kernel())
    new = edited(layer, wanted, arrays)
    assert np.array_equal(new["c.weight_orig"], np.float32(wanted[0]))
    divisor = np.float64(new["c.weight_u"]) @ new["c.weight_orig"].reshape(4, 27) @ np.float64(new["c.weight_v"])
    assert divisor == pytest.approx(1, abs=2.0**-24)
    assert np.array_equal(new["c.weight_v"], arrays["c.weight_v"])
    assert "eval mode" in " ".join(layer.writeback.notes if layer.writeback else ())


@pytest.mark.parametrize("sign", [-1.0, 0.0], ids=["negative divisor", "a divisor near zero"])
def test_vectors_that_fit_the_new_kernel_badly_are_replaced(sign: float) -> None:
    arrays = spectral_arrays()
    layer = layer_in(arrays)
    v = np.float64(arrays["c.weight_v"])
    rows = layer.kernel()[0].reshape(4, 27)
    along = np.outer(rows @ v, v)  # what the vector v sees of the kernel
    wanted = (rows - along + sign * along).reshape(1, 4, 3, 3, 3)
    assert layer.as_stored(wanted) == pytest.approx(wanted, rel=1e-6, abs=1e-7)


def test_zero_kernel_cannot_go_through_spectral_norm() -> None:
    layer = layer_in(spectral_arrays())
    with pytest.raises(UnavailableError, match="0 by 0"):
        layer.as_stored(np.zeros((1, 4, 3, 3, 3)))


def test_vectors_of_a_square_kernel_are_still_read_along_the_same_axis() -> None:
    rng = np.random.default_rng(7)
    for _ in range(50):
        arrays = spectral_arrays((6, 6, 3))
        layer = layer_in(arrays)
        wanted = rng.normal(size=(1, 6, 6, 3)) * 10 ** rng.uniform(-3, 3)
        assert np.abs(layer.as_stored(wanted) - wanted).max() <= 1e-6 * np.abs(wanted).max()


def test_masked_entries_stay_what_they_are() -> None:
    rng = np.random.default_rng(3)
    arrays = {
        "c.weight_orig": rng.normal(size=(4, 3, 3, 3)).astype(np.float32),
        "c.weight_mask": rng.integers(0, 2, size=(4, 3, 3, 3)).astype(np.float32),
    }
    layer = layer_in(arrays)
    support = layer.support()
    assert support is not None
    assert np.array_equal(support[0], arrays["c.weight_mask"] != 0)
    wanted = clipped_like(layer.kernel())
    new = edited(layer, wanted, arrays)
    hidden = arrays["c.weight_mask"] == 0
    assert np.array_equal(new["c.weight_orig"][hidden], arrays["c.weight_orig"][hidden])
    assert np.array_equal(new["c.weight_orig"][~hidden], np.float32(wanted[0])[~hidden])
    assert np.array_equal(layer.as_stored(wanted), np.float32(wanted * support))


def test_copy_of_the_effective_kernel_follows_it() -> None:
    arrays = weight_norm_arrays()
    arrays["c.weight"] = np.zeros((4, 3, 3, 3), np.float32)
    layer = layer_in(arrays)
    new = edited(layer, clipped_like(layer.kernel()), arrays)
    assert np.array_equal(new["c.weight"], np.float32(layer_in(new).kernel()[0]))


LOCKED: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "SAGAN's spectral norm": (
        {"c.module.weight_bar": (4, 3, 3, 3), "c.module.weight_u": (4,), "c.module.weight_v": (27,)},
        "every forward pass",
    ),
    "spectral norm without v": (
        {"c.weight": (4, 3, 3, 3), "c.weight_orig": (4, 3, 3, 3), "c.weight_u": (4,)},
        "last used",
    ),
    "orthogonal": (
        {"c.parametrizations.weight.original": (4, 3, 3, 3), "c.parametrizations.weight.0.base": (3, 3)},
        "orthogonal",
    ),
}


@pytest.mark.parametrize("case", LOCKED)
def test_kernel_that_cannot_be_written_back_says_why(case: str) -> None:
    shapes, words = LOCKED[case]
    layer = layer_in({key: np.ones(shape, np.float32) for key, shape in shapes.items()})
    for ask in (layer.stored_parts, layer.as_stored):
        with pytest.raises(UnavailableError, match=words):
            ask(np.ones((1, 4, 3, 3, 3)))


@pytest.mark.parametrize(
    ("shapes", "classes"),
    [
        ({"sn/d/kernel:0": (3, 3, 2, 4), "sn/vector_u:0": (1, 4)}, {}),
        ({"sn/d/kernel:0": (3, 3, 2, 4), "sn/sn_u:0": (1, 4)}, {}),
        (
            {"layers/sn/layer/vars/0": (3, 3, 2, 4), "layers/sn/vars/0": (3, 3, 2, 4), "layers/sn/vars/1": (1, 4)},
            {"layers/sn/vars": "SpectralNormalization"},
        ),
    ],
    ids=["TensorFlow's Keras", "TensorFlow addons", "Keras 3"],
)
def test_kernel_in_keras_spectral_normalisation_is_not_touched(
    shapes: dict[str, tuple[int, ...]], classes: dict[str, str]
) -> None:
    other = {"plain/kernel:0": (3, 3, 2, 4)}
    arrays = {key: np.ones(shape, np.float32) for key, shape in {**shapes, **other}.items()}
    modules = [ModuleFacts(path, name) for path, name in classes.items()]
    wrapped, plain = find_layers(checkpoint(holding(arrays), file_format="keras", modules=modules))
    with pytest.raises(UnavailableError, match="SpectralNormalization"):
        wrapped.stored_parts(np.ones((1, 4, 2, 3, 3)))
    assert len(plain.stored_parts(np.ones((1, 4, 2, 3, 3)))) == 1


# ------------------------------------------------------------------------------------------------------ plain tensors


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("layout", ["OIK", "KIO", "KCM"])
def test_plain_kernel_is_rounded_where_it_lies(layout: str, dtype: str, groups: int) -> None:
    shape = {"OIK": (4, 6, 3, 5), "KIO": (3, 5, 6, 4), "KCM": (3, 5, 4, 2)}[layout]
    key = {"OIK": "c.weight", "KIO": "c/kernel:0", "KCM": "c/depthwise_kernel:0"}[layout]
    values = rounded_to(np.random.default_rng(4).normal(size=shape), dtype)
    (layer,) = find_layers(
        checkpoint(holding({key: values}), file_format="pytorch" if layout == "OIK" else "keras"),
    )
    wanted = clipped_like(layer.kernel())
    (edit,) = layer.stored_parts(wanted)
    assert (edit.tensor.key, edit.values.shape, edit.values.dtype) == (key, shape, values.dtype)
    assert np.array_equal(
        to_canonical(edit.values.astype(np.float64), layer.layout, layer.geometry.groups), layer.as_stored(wanted)
    )
    (same,) = layer.stored_parts(layer.kernel())
    assert np.array_equal(same.values, values)


def test_weight_that_the_dtype_cannot_hold_is_refused() -> None:
    layer = layer_in({"c.weight": np.ones((2, 2, 3, 3), np.float16)})
    with pytest.raises(UnavailableError, match=r"1e\+06 cannot be stored as float16"):
        layer.as_stored(np.full((1, 2, 2, 3, 3), 1e6))


def test_layer_made_by_hand_rounds_but_has_nothing_to_store() -> None:
    array = np.ones((2, 2, 3), np.float32)
    layer = ConvLayer("k", "k", array.shape, "float32", "OIK", Geometry((8,), (1,), ((1, 1),)), lambda: array)
    wanted = np.full((1, 2, 2, 3), 0.1)
    assert np.array_equal(layer.as_stored(wanted), np.float32(wanted))
    with pytest.raises(UnavailableError, match="in no file"):
        layer.stored_parts(wanted)


# ----------------------------------------------------------------------------------------------------------- rounding

SMALL = ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"]


def grid(dtype: str) -> list[Fraction]:
    """Return all finite values of a dtype, ascending."""
    exact = np.dtype(getattr(ml_dtypes, dtype, dtype))
    bits = np.arange(1 << 8 * exact.itemsize).astype(np.uint16 if exact.itemsize == 2 else np.uint8)
    values = bits.view(exact).astype(np.float32)
    return sorted({Fraction(float(x)) for x in values[np.isfinite(values)]})


GRIDS = {dtype: grid(dtype) for dtype in SMALL}


@pytest.mark.parametrize("dtype", SMALL)
@given(st.integers(0), st.sampled_from([-(2.0**-45), -(2.0**-30), 0.0, 2.0**-45, 2.0**-30]), st.floats(0, 1))
def test_rounding_takes_the_nearest_value_once(dtype: str, at: int, nudge: float, share: float) -> None:
    values = GRIDS[dtype]
    low, high = values[at % (len(values) - 1)], values[at % (len(values) - 1) + 1]
    for part in (Fraction(1, 2), Fraction(share)):
        x = float(low + (high - low) * part) * (1 + nudge)
        if not low <= Fraction(x) <= high:
            continue
        (rounded,) = rounded_to(np.array([x]), dtype).astype(np.float32)
        error = abs(Fraction(float(rounded)) - Fraction(x))
        assert error == min(Fraction(x) - low, high - Fraction(x))


def test_rounding_of_a_tie_goes_to_the_even_value() -> None:
    assert rounded_to(np.array([1 + 2.0**-8, 1 + 3 * 2.0**-8]), "bfloat16").astype(float).tolist() == [1.0, 1 + 2.0**-6]


@pytest.mark.parametrize("dtype", [">f8", "<f8", ">f4", ">f2"])
def test_byte_order_is_no_matter_of_rounding(dtype: str) -> None:
    values = np.random.default_rng(0).normal(size=100)
    assert np.array_equal(rounded_to(values, dtype), values.astype(dtype))
