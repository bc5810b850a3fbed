"""Discovery: which tensors are kernels, and what their layers are called."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convsv.checkpoints import ModuleFacts, open_checkpoint
from convsv.checkpoints.discovery import Discovery, discover, find_layers
from convsv.checkpoints.naming import Names
from convsv.checkpoints.rules import RULES, is_convolution, is_ema
from convsv.errors import UnavailableError
from convsv.geometry import Geometry, GeometryFacts
from statedicts import CATALOGUE, TORCHVISION_RESNET, Shapes, checkpoint, contained, holding, stored

CONV = (8, 4, 3, 3)


def names(found: Discovery) -> list[str]:
    return [layer.name for layer in found.layers]


def rules(found: Discovery) -> dict[str, str]:
    return {skipped.key: skipped.rule for skipped in found.skipped}


# ---------------------------------------------------------------------------------------------------- whole networks


@pytest.mark.parametrize("file_format", ["pytorch", "safetensors"])
@pytest.mark.parametrize("network", CATALOGUE)
def test_network_has_as_many_convolutions(network: str, file_format: str) -> None:
    shapes, count = CATALOGUE[network]
    assert len(discover(checkpoint(shapes, file_format=file_format)).layers) == count


@pytest.mark.parametrize("network", CATALOGUE)
def test_order_of_the_keys_does_not_change_what_is_found(network: str) -> None:
    shapes, _ = CATALOGUE[network]
    backwards = dict(reversed(list(shapes.items())))
    assert sorted(names(discover(checkpoint(backwards)))) == sorted(names(discover(checkpoint(shapes))))


REAL = {
    "resnet20-cifar10.th": ({"conv2d": 19}, 0),
    "ultraface-rfb320.pth": ({"conv2d": 52}, 18),
    "burn-mnist.pt": ({"conv2d": 3}, 0),
    "burn-mnist.safetensors": ({"conv2d": 3}, 0),
    "beattrack-tcn.ckpt": ({"conv2d": 3, "conv1d": 35}, 0),
    "meshnet3d.pth": ({"conv3d": 20}, 0),
    "mlperf-vww96.h5": ({"conv2d": 27}, 13),
    "ssrnet-imdb.h5": ({"conv2d": 14}, 0),
    "acoustic-ae.keras": ({"conv2d": 4, "conv_transpose2d": 3}, 0),
    "snake-dqn.weights.h5": ({"conv2d": 2}, 0),
    "vdsr-whole.pth": ({"conv2d": 20}, 0),
    "taesana-encoder-fp16.pth": ({"conv2d": 36}, 0),
}
"""File -> layers of each kind, and how many are grouped."""


@pytest.mark.parametrize("file", REAL)
def test_real_checkpoint_has_these_layers(file: str, shared_checkpoints: Path) -> None:
    kinds, grouped = REAL[file]
    found = discover(open_checkpoint(shared_checkpoints / file))
    assert Counter(layer.kind for layer in found.layers) == kinds
    assert sum(layer.geometry.groups > 1 for layer in found.layers) == grouped
    assert len(set(names(found))) == len(found.layers)
    assert not any(layer.problem for layer in found.layers)


def test_real_weight_normed_layers_are_computed_from_their_parts(shared_checkpoints: Path) -> None:
    found = discover(open_checkpoint(shared_checkpoints / "beattrack-tcn.ckpt"))
    normed = [layer for layer in found.layers if layer.weight.endswith("weight_v")]
    assert len(normed) == 22
    assert rules(found)[f"state_dict.{normed[0].name}.weight_g"] == "part of a weight"
    assert Counter(rules(found).values())["optimizer state"] == 120
    parts = {t.key: t for t in open_checkpoint(shared_checkpoints / "beattrack-tcn.ckpt").tensors}
    magnitude = parts[f"{normed[0].name}.weight_g"].read()
    kernel = normed[0].read()
    assert np.sqrt((kernel**2).sum(axis=(1, 2))) == pytest.approx(np.abs(magnitude).ravel(), rel=1e-12)


def test_real_keras_transposed_layers_have_the_names_of_the_configuration(shared_checkpoints: Path) -> None:
    layers = find_layers(open_checkpoint(shared_checkpoints / "acoustic-ae.keras"))
    transposed = {layer.name: layer for layer in layers if layer.geometry.transposed}
    assert sorted(transposed) == ["conv2d_transpose_15", "conv2d_transpose_16", "conv2d_transpose_17"]
    assert {layer.geometry.stride for layer in transposed.values()} == {(2, 2)}
    assert transposed["conv2d_transpose_17"].weight == "layers/conv2d_transpose_2/vars/0"


def test_real_pickled_modules_tell_stride_and_padding(shared_checkpoints: Path) -> None:
    layers = find_layers(open_checkpoint(shared_checkpoints / "vdsr-whole.pth"))
    assert {layer.geometry.padding for layer in layers} == {((1, 1), (1, 1))}
    assert {layer.geometry.origin["stride"] for layer in layers} == {"stored"}


# -------------------------------------------------------------------------------------------------------------- rules

REFUSED: Mapping[str, list[Shapes]] = {
    "optimizer state": [
        {"optimizer.state.0.exp_avg": CONV},
        {"optim/0/momentum": CONV},
        {"state.3.momentum_buffer": CONV},
        {"exp_avg_sq.conv1.weight": CONV},
    ],
    "bias": [{"attn.bias": (1, 1, 64, 64)}, {"attn.bias_k": (1, 1, 64)}, {"attention_biases": (4, 49, 49)}],
    "position table": [
        {"pos_embed": (1, 197, 192)},
        {"image_encoder.pos_embed": (1, 64, 64, 768)},
        {"embedder.position_embedding.weight": (1, 197, 192)},
        {"rel_pos_h": (8, 49, 49)},
        {"freqs_cis": (1024, 32, 2)},
    ],
    "token or embedding": [{"cls_token": (1, 1, 64)}, {"query_embed": (4, 100, 64)}, {"word_emb.weight": (4, 9, 16)}],
    "buffer": [{"attn_mask": (64, 49, 49)}, {"mask": (4, 4, 9, 9)}, {"running_cov": (4, 16, 16)}],
    "anchors": [{"anchor_grid": (3, 4, 5, 5)}, {"head.anchors": (3, 3, 2)}],
    "prototypes": [{"prototype_vectors": (200, 128, 2, 2)}],
    "transform basis": [{"stft.forward_basis": (1026, 4, 1024)}, {"mel_basis": (2, 80, 513)}],
    "constant input": [{"input.const": (512, 4, 4)}, {"noises.noise_1": (1, 1, 8, 8)}],
    "recurrent": [{"rnn.weight_ih_l0": (4, 512, 64)}],
    "normalisation": [
        {"ln.weight": (64, 32, 32), "ln.bias": (64, 32, 32)},
        {"block.norm.weight": (64, 1, 1)},
        {"block.0.weight": (1, 64, 1, 1), "block.0.running_mean": (64,)},
    ],
    "linear": [
        {"in_proj.weight": (1, 768, 2304)},
        {"experts.weight": (8, 512, 256)},
        {"branch.weight": (4, 16, 64), "branch.bias": (4, 64)},
        {"mix.weight": (1, 16, 65), "mix.bias": (65,)},
        {"encoder/query/kernel": (768, 12, 64)},
    ],
    "not floating point": [],
    "module class": [],
    "operand": [],
    "broadcast vector": [{"gamma": (1, 64, 1, 1)}, {"block.layer_scale_1": (64, 1, 1)}, {"alpha": (1, 1, 1)}],
    "feature map": [{"codevectors": (1, 640, 128)}, {"learned": (1, 16, 7, 7)}],
    "unnamed": [{"experts.w1_v": (8, 512, 256)}, {"triplane": (3, 32, 64)}],
}


def test_every_rule_has_an_example() -> None:
    assert set(REFUSED) == set(RULES)


@pytest.mark.parametrize(
    ("rule", "shapes"), [(rule, s) for rule, examples in REFUSED.items() for s in examples], ids=lambda v: str(v)[:60]
)
def test_rule_refuses(rule: str, shapes: Shapes) -> None:
    found = discover(checkpoint(shapes))
    assert not found.layers
    assert rules(found)[next(iter(shapes))] == rule


@pytest.mark.parametrize(
    "class_name", ["Linear", "Embedding", "LayerNorm", "BatchNorm2d", "MultiheadAttention", "LSTM"]
)
def test_class_that_is_no_convolution_decides_over_the_shape(class_name: str) -> None:
    found = discover(checkpoint({"m.weight": CONV}, modules=[ModuleFacts("m", class_name)]))
    assert rules(found) == {"m.weight": "module class"}


@pytest.mark.parametrize("class_name", ["Conv1d", "StdConv1d", "LazyConv1d"])
def test_class_that_is_a_convolution_decides_over_names(class_name: str) -> None:
    shapes = {"experts.in_proj.weight": (1, 768, 2304)}
    assert not discover(checkpoint(shapes)).layers
    found = discover(checkpoint(shapes, modules=[ModuleFacts("experts.in_proj", class_name)]))
    assert names(found) == ["experts.in_proj"]


def test_optimizer_state_is_refused_whatever_the_class() -> None:
    modules = [ModuleFacts("conv", "Conv2d", container=("optimizer",))]
    found = discover(checkpoint(contained({"conv.weight": CONV}, "optimizer"), modules=modules))
    assert rules(found) == {"optimizer.conv.weight": "optimizer state"}


@pytest.mark.parametrize(
    ("class_name", "expected"),
    {
        "Conv2d": True,
        "ConvTranspose3d": True,
        "Conv2DTranspose": True,
        "DepthwiseConv2D": True,
        "ParametrizedConv1d": True,
        "Convolution2D": True,
        "ScaledStdConv2dSame": True,
        "GCNConv": False,
        "TransformerConv": False,
        "Linear": False,
        "": False,
    }.items(),
)
def test_classes_that_are_convolutions(class_name: str, expected: bool) -> None:
    assert is_convolution(class_name) is expected


ACCEPTED: list[tuple[str, tuple[int, ...]]] = [
    ("patch_embed.proj.weight", (768, 3, 16, 16)),
    ("pos_embed.weight", (64, 1, 3, 3)),
    ("embeddings.patch_embedding.weight", (768, 3, 32, 32)),
    ("se.fc1.weight", (8, 32, 1, 1)),
    ("attn.query.weight", (8, 64, 1)),
    ("out.weight", (8, 64, 3)),
    ("head.weight", (1, 64, 1, 1)),
    ("mono.weight", (64, 1, 1)),
    ("norm.weight", (64, 32, 3, 3)),
    ("pos_conv.0.weight", (768, 48, 128)),
]


@pytest.mark.parametrize(("key", "shape"), ACCEPTED, ids=str)
def test_convolution_with_a_misleading_name_is_found(key: str, shape: tuple[int, ...]) -> None:
    assert [layer.weight for layer in discover(checkpoint({key: shape})).layers] == [key]


@pytest.mark.parametrize(
    ("key", "shape", "note"),
    [
        ("blur.filt", (64, 1, 3, 3), "taken for a kernel by its shape"),
        ("net.w_first", (16, 3, 5, 5), "taken for a kernel by its shape"),
        ("mix.weight", (1, 64, 512), "may be a matrix, or a stack of matrices"),
        ("stack.weight", (4, 64, 512), "may be a matrix, or a stack of matrices"),
    ],
)
def test_doubtful_tensor_is_reported_with_a_note(key: str, shape: tuple[int, ...], note: str) -> None:
    (layer,) = discover(checkpoint({key: shape})).layers
    assert note in layer.notes


def test_bias_that_fits_no_convolution_is_noted() -> None:
    (layer,) = discover(checkpoint({"conv.weight": (8, 4, 3, 3), "conv.bias": (7,)})).layers
    assert "7 entries" in layer.notes[0]


def test_convolutions_without_doubt_have_no_notes() -> None:
    assert not any(layer.notes for layer in discover(checkpoint(TORCHVISION_RESNET)).layers)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "float8_e4m3fn", "float8_e5m2"])
def test_every_floating_dtype_is_a_kernels(dtype: str) -> None:
    (layer,) = discover(checkpoint([stored("conv.weight", CONV, dtype=dtype)])).layers
    assert (layer.dtype, layer.problem) == (dtype, None)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32"])
def test_quantised_kernel_is_a_layer_with_a_problem(dtype: str) -> None:
    (layer,) = discover(checkpoint([stored("conv.weight", CONV, dtype=dtype)])).layers
    assert layer.problem is not None
    assert dtype in layer.problem
    with pytest.raises(UnavailableError, match="quantised"):
        layer.kernel()


@pytest.mark.parametrize(
    ("key", "dtype"), [("spectral.weights1", "complex64"), ("tiles", "int64"), ("conv.weight", "bool")]
)
def test_other_dtypes_are_refused(key: str, dtype: str) -> None:
    found = discover(checkpoint([stored(key, CONV, dtype=dtype)]))
    assert rules(found) == {key: "not floating point"}


def test_tensor_with_a_problem_becomes_a_layer_with_that_problem() -> None:
    (layer,) = discover(checkpoint([stored("conv.weight", CONV, dtype="qint8", problem="quantised by PyTorch")])).layers
    assert layer.problem == "quantised by PyTorch"


@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (8, 0, 3, 3), (8, 4, 0, 3)])
def test_kernel_without_weights_is_a_layer_with_a_problem(shape: tuple[int, ...]) -> None:
    (layer,) = discover(checkpoint({"conv.weight": shape})).layers
    assert layer.problem is not None
    assert "no weights" in layer.problem


@pytest.mark.parametrize("shape", [(), (3,), (3, 3), (2, 2, 2, 2, 2, 2)])
def test_tensors_of_other_numbers_of_axes_are_no_candidates(shape: tuple[int, ...]) -> None:
    found = discover(checkpoint({"conv.weight": shape}))
    assert (found.layers, found.skipped) == ((), ())


def test_checkpoint_without_convolutions_is_empty() -> None:
    assert discover(checkpoint({})) == Discovery((), (), ())


def test_modulated_kernel_is_a_layer_with_a_problem_and_its_own_shape() -> None:
    (layer,) = discover(checkpoint({"c.weight": (1, 6, 5, 3, 3), "c.modulation.weight": (5, 9)})).layers
    assert (layer.kind, layer.shape) == ("conv2d", (6, 5, 3, 3))
    assert layer.problem is not None
    assert "scaled anew" in layer.problem


# -------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("layer1.0.conv1.weight", "layer1.0.conv1"),
        ("module.layer1.conv.weight", "layer1.conv"),
        ("_orig_mod.layer1.conv.weight", "layer1.conv"),
        ("_orig_mod.module.layer1.conv.weight", "layer1.conv"),
        ("model.conv.weight", "model.conv"),
        ("net.module.conv.weight", "net.module.conv"),
        ("weight", "weight"),
        ("a/b.conv.weight", "a/b.conv"),
        ("schicht\n1.größe.weight", "schicht\n1.größe"),
        ("params/Conv_0/kernel", "params/Conv_0"),
    ],
)
def test_layer_is_named_by_its_module(key: str, name: str) -> None:
    (layer,) = discover(checkpoint({key: CONV}, file_format="safetensors")).layers
    assert (layer.name, layer.weight) == (name, key)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("conv2d/conv2d/kernel:0", "conv2d"),
        ("conv2d_1/conv2d_1_1/kernel:0", "conv2d_1"),
        ("conv2d/sequential/conv2d/kernel", "conv2d"),
        ("block/conv2d/kernel:0", "block/conv2d"),
        ("block/block/conv2d/kernel:0", "block/conv2d"),
        ("block/model/block/conv2d/kernel", "block/conv2d"),
        ("layers/conv2d_3/vars/0", "conv2d_3"),
        ("layers/functional/layers/conv2d/vars/0", "functional/conv2d"),
        ("v1.2/v1.2/kernel:0", "v1.2"),
    ],
)
def test_keras_layer_is_named_without_repetition(key: str, name: str) -> None:
    (layer,) = discover(checkpoint({key: (3, 3, 4, 8)}, file_format="keras")).layers
    assert (layer.name, layer.weight, layer.layout) == (name, key, "KIO")


def test_name_in_the_file_wins() -> None:
    modules = [ModuleFacts("layers/conv2d", "Conv2D", name="conv2d_30", variables={"layers/conv2d/vars/0": "kernel"})]
    (layer,) = discover(checkpoint({"layers/conv2d/vars/0": (3, 3, 4, 8)}, file_format="keras", modules=modules)).layers
    assert layer.name == "conv2d_30"


def test_separable_layer_is_two_layers() -> None:
    shapes = {
        "sep/sep/depthwise_kernel:0": (3, 3, 8, 2),
        "sep/sep/pointwise_kernel:0": (1, 1, 16, 32),
        "sep/sep/bias:0": (32,),
    }
    depthwise, pointwise = discover(checkpoint(shapes, file_format="keras")).layers
    assert (depthwise.name, depthwise.layout, depthwise.geometry.groups) == ("sep/depthwise", "KCM", 8)
    assert (pointwise.name, pointwise.layout, pointwise.geometry.groups) == ("sep/pointwise", "KIO", 1)


def test_numbered_variables_of_an_unknown_separable_layer_are_told_by_their_shapes() -> None:
    shapes = {"first/vars/0": (3, 3, 8, 2), "first/vars/1": (1, 1, 16, 32), "first/vars/2": (32,)}
    depthwise, pointwise = discover(checkpoint(shapes, file_format="keras")).layers
    assert (depthwise.name, depthwise.layout) == ("first/depthwise", "KCM")
    assert (pointwise.name, pointwise.layout) == ("first/pointwise", "KIO")


@pytest.mark.parametrize(("bias", "layout"), [((8,), "KCM"), ((1,), "KIO")])
def test_keras_bias_tells_a_depthwise_kernel(bias: tuple[int, ...], layout: str) -> None:
    shapes = {"first/vars/0": (3, 3, 8, 1), "first/vars/1": bias}
    (layer,) = discover(checkpoint(shapes, file_format="keras")).layers
    assert layer.layout == layout


def test_keras_attention_kernels_are_no_convolutions() -> None:
    shapes = {"mha/query_dense/vars/0": (64, 4, 16), "mha/query_dense/vars/1": (4, 16)}
    assert rules(discover(checkpoint(shapes, file_format="keras"))) == {"mha/query_dense/vars/0": "linear"}


def test_two_kernels_of_one_module_are_named_by_their_keys() -> None:
    found = discover(checkpoint({"mix.w_a": CONV, "mix.w_b": CONV, "conv.weight": CONV}))
    assert names(found) == ["mix.w_a", "mix.w_b", "conv"]


def test_wrapped_and_bare_copies_of_a_layer_keep_their_keys_apart() -> None:
    found = discover(checkpoint({"module.conv.weight": CONV, "conv.weight": CONV}))
    assert len(set(names(found))) == 2


def test_names_of_one_container_have_no_prefix() -> None:
    found = discover(checkpoint(contained({"conv.weight": CONV}, "state_dict"), [stored("epoch", ())]))
    assert names(found) == ["conv"]


def test_names_of_several_containers_begin_with_their_path() -> None:
    found = discover(
        checkpoint(contained({"conv.weight": CONV}, "generator"), contained({"conv.weight": CONV}, "nets", "critic"))
    )
    assert names(found) == ["generator.conv", "nets.critic.conv"]


@given(
    st.lists(
        st.tuples(
            st.lists(
                st.sampled_from(["module", "conv", "a", "ema", "weight", "parametrizations", "original", "0", ""]),
                max_size=5,
            ),
            st.sampled_from(
                ["weight", "weight_v", "weight_g", "weight_orig", "w", "original1", "original0", "kernel:0", "_u"]
            ),
            st.sampled_from(["a", "ema", "optimizer"]),
            st.lists(st.integers(0, 3), min_size=1, max_size=6).map(tuple),
        ),
        max_size=8,
        unique_by=lambda item: (tuple(item[0]), item[1], item[2]),
    ),
    st.sampled_from(["pytorch", "safetensors", "keras"]),
)
def test_every_candidate_is_a_layer_or_skipped_with_a_reason(
    entries: list[tuple[list[str], str, str, tuple[int, ...]]], file_format: str
) -> None:
    separator = "/" if file_format == "keras" else "."
    tensors = [stored(separator.join([*path, leaf]), shape, container=(box,)) for path, leaf, box, shape in entries]
    found = discover(checkpoint(tensors, file_format=file_format))
    assert len(found.layers) + len(found.skipped) == sum(len(t.shape) in (3, 4, 5) for t in tensors)
    assert len(set(names(found))) == len(found.layers)
    assert all(
        name and layer.geometry.dims == len(layer.kernel_size)
        for name, layer in zip(names(found), found.layers, strict=True)
    )
    assert all(skipped.rule and skipped.reason for skipped in found.skipped)


# ------------------------------------------------------------------------------------------------------------- copies


@pytest.mark.parametrize("container", ["ema", "params_ema", "model_ema", "g_ema", "ema_state_dict", "EMA"])
def test_moving_average_beside_its_weights_is_left_out(container: str) -> None:
    found = discover(
        checkpoint(contained({"conv.weight": CONV}, "params"), contained({"module.conv.weight": CONV}, container))
    )
    assert names(found) == ["conv"]
    assert [skipped.rule for skipped in found.skipped] == ["moving average"]
    assert found.problems == (
        f"1 kernels of the moving average {container!r} left out: what they average is in the file too",
    )


def test_moving_average_alone_is_used() -> None:
    found = discover(checkpoint(contained({"conv.weight": CONV}, "ema"), contained({"m": CONV}, "optimizer")))
    assert names(found) == ["conv"]


def test_moving_average_of_another_shape_is_reported() -> None:
    found = discover(checkpoint(contained({"conv.weight": CONV}, "a"), contained({"conv.weight": (8, 4, 5, 5)}, "ema")))
    assert names(found) == ["a.conv", "ema.conv"]


def test_moving_average_whose_names_lost_their_dots_is_recognised() -> None:
    shapes = {"model.unet.blocks.0.conv.weight": CONV, "model_ema.unetblocks0convweight": CONV}
    assert names(discover(checkpoint(shapes))) == ["model.unet.blocks.0.conv"]


@pytest.mark.parametrize(
    ("part", "expected"), [("ema", True), ("net-ema", True), ("swa_model", True), ("schema", False), ("emanet", False)]
)
def test_parts_that_say_moving_average(part: str, expected: bool) -> None:
    assert is_ema(part) is expected


def test_tied_kernels_are_each_reported_and_noted() -> None:
    tensors = [stored(f"{name}.weight", CONV, identity="bytes") for name in ("first", "second", "third")]
    layers = discover(checkpoint(tensors, {"free.weight": CONV})).layers
    assert [layer.notes for layer in layers] == [("tied to second",), ("tied to first",), ("tied to first",), ()]


# ------------------------------------------------------------------------------------------------ include and exclude

SELECTION: Shapes = {"a.conv.weight": CONV, "b.conv.weight": CONV, "B.conv.weight": CONV, "a.pos_embed": (1, 9, 4)}


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ([], [], ["a.conv", "b.conv", "B.conv"]),
        (["b.*"], [], ["b.conv"]),
        (["a.*", "B.*"], [], ["a.conv", "B.conv"]),
        (["*"], ["b.*"], ["a.conv", "B.conv"]),
        ([], ["*.conv"], []),
        (["a.pos_embed"], [], ["a.pos_embed"]),
        (["*.pos_embed"], [], ["a.pos_embed"]),
        (["*.pos_embed", "b.conv"], [], ["b.conv", "a.pos_embed"]),
        (["a.pos_embed"], ["*.pos_embed"], []),
    ],
)
def test_include_and_exclude_select_and_overrule(include: list[str], exclude: list[str], expected: list[str]) -> None:
    found = discover(checkpoint(SELECTION), include=include, exclude=exclude)
    assert names(found) == expected
    assert found.problems == ()


def test_overruled_tensor_says_so() -> None:
    (layer,) = discover(checkpoint(SELECTION), include=["a.pos_embed"]).layers
    assert layer.notes == ("included by name, against the rule 'position table'",)
    assert layer.kind == "conv1d"


def test_include_that_matches_nothing_is_a_problem() -> None:
    found = discover(checkpoint(SELECTION, {"fc.weight": (3, 4)}), include=["c.*", "fc*", "a.conv"])
    assert names(found) == ["a.conv"]
    assert found.problems == ("include 'c.*' matches no layer", "include 'fc*' matches no layer")


# ------------------------------------------------------------------------------------------------- weights in parts


@pytest.mark.parametrize(
    ("keys", "weight"),
    [
        (("conv.weight_g", "conv.weight_v"), "conv.weight_v"),
        (
            ("conv.parametrizations.weight.original0", "conv.parametrizations.weight.original1"),
            "conv.parametrizations.weight.original1",
        ),
    ],
)
def test_weight_in_parts_is_one_layer_named_by_its_module(keys: tuple[str, str], weight: str) -> None:
    rng = np.random.default_rng(0)
    magnitude, direction = rng.normal(size=(8, 1, 1, 1)), rng.normal(size=CONV)
    found = discover(checkpoint(holding({keys[0]: magnitude, keys[1]: direction})))
    (layer,) = found.layers
    assert (layer.name, layer.weight, layer.shape, layer.dtype) == ("conv", weight, CONV, "float64")
    assert rules(found) == {keys[0]: "part of a weight"}
    expected = direction * magnitude / np.linalg.norm(direction.reshape(8, -1), axis=1).reshape(8, 1, 1, 1)
    assert layer.kernel()[0] == pytest.approx(expected, rel=1e-14)


def test_unknown_parametrisation_is_a_layer_with_a_problem() -> None:
    shapes = {"conv.parametrizations.weight.original": CONV, "conv.parametrizations.weight.0.base": (3, 3)}
    (layer,) = discover(checkpoint(shapes)).layers
    assert layer.name == "conv"
    assert layer.problem is not None
    assert "orthogonal" in layer.problem


# --------------------------------------------------------------------------------------------- what the modules say


def test_geometry_in_the_file_reaches_the_layer() -> None:
    facts = GeometryFacts(stride=2, padding=1, dilation=(1, 3), groups=2, padding_mode="circular", transposed=True)
    modules = [ModuleFacts("conv", "ConvTranspose2d", facts)]
    (layer,) = discover(checkpoint({"conv.weight": CONV}, modules=modules)).layers
    geometry = layer.geometry
    assert (geometry.stride, geometry.dilation, geometry.groups) == ((2, 2), (1, 3), 2)
    assert (geometry.padding, geometry.padding_mode, layer.kind) == (((1, 1), (1, 1)), "circular", "conv_transpose2d")
    assert {geometry.origin[name] for name in ("stride", "dilation", "groups", "padding")} == {"stored"}
    assert geometry.origin["size"] == "assumed"


@pytest.mark.parametrize("facts", [GeometryFacts(groups=3), GeometryFacts(stride=(1, 1, 1)), GeometryFacts(stride=0)])
def test_impossible_geometry_in_the_file_is_left_out_and_noted(facts: GeometryFacts) -> None:
    (layer,) = discover(checkpoint({"conv.weight": CONV}, modules=[ModuleFacts("conv", "Conv2d", facts)])).layers
    assert (layer.geometry.groups, layer.geometry.stride) == (1, (1, 1))
    assert "left out" in layer.notes[0]


def test_facts_hold_in_their_own_container_only() -> None:
    modules = [ModuleFacts("conv", "Linear", container=("a",))]
    tables = contained({"conv.weight": CONV}, "a"), contained({"conv.weight": CONV}, "b")
    found = discover(checkpoint(*tables, modules=modules))
    assert names(found) == ["conv"]
    assert rules(found) == {"a.conv.weight": "module class"}


def test_effective_kernel_of_an_8_bit_float_is_readable() -> None:
    values = np.linspace(-2, 2, 288).reshape(CONV).astype(ml_dtypes.float8_e4m3fn)
    (layer,) = discover(checkpoint(holding({"conv.weight": values}))).layers
    assert np.array_equal(layer.kernel()[0], values.astype(np.float32))


def test_discovery_does_not_import_torch() -> None:
    code = "import sys; import convsv.checkpoints.discovery; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ------------------------------------------------------------------------------------------- what cannot be listed


LAZY = "is not initialised: the layer saw no input yet"


def test_a_weight_without_a_shape_is_named_where_it_may_be_a_convolution() -> None:
    lazy = [stored(key, (), problem=LAZY) for key in ("c.weight", "c.bias", "unknown.weight", "l.weight")]
    modules = [ModuleFacts("c", "LazyConv2d"), ModuleFacts("l", "LazyLinear")]
    found = discover(checkpoint({"a.weight": CONV}, lazy, modules=modules))
    assert names(found) == ["a"]
    assert found.problems == (
        f"c.weight: {LAZY}; this LazyConv2d is not listed",
        f"unknown.weight: {LAZY}; if it is a convolution, it is not listed",
    )


def test_scalars_and_shapeless_tensors_that_are_no_weights_are_not_named() -> None:
    found = discover(checkpoint([stored("p.weight", ()), stored("step", (), problem="is sparse")]))
    assert found.problems == ()


def test_a_complex_kernel_is_listed_with_the_reason_why_it_is_not_analysed() -> None:
    found = discover(
        checkpoint([stored("c.weight", CONV, dtype="complex64"), stored("table", CONV, dtype="complex64")])
    )
    assert names(found) == ["c"]
    assert "complex" in str(found.layers[0].problem)
    assert rules(found) == {"table": "not floating point"}


def test_thousands_of_one_name_do_not_try_all_numbers_again() -> None:
    class Counted(set[str]):
        looks = 0

        def __contains__(self, name: object) -> bool:
            self.looks += 1
            return super().__contains__(name)

    given_names, taken = Names(["a#2"]), Counted(["a#2"])
    given_names._taken = taken
    assert [given_names.unused("a") for _ in range(1000)] == ["a", *(f"a#{n}" for n in range(3, 1002))]
    assert taken.looks < 3000


def test_thousands_of_calls_are_not_compared_with_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    same = Geometry.__eq__
    monkeypatch.setattr(Geometry, "__eq__", lambda one, other: compared.append(one) or same(one, other))
    calls = tuple(GeometryFacts(stride=1 + n // 2, size=(8, 8)) for n in range(1000))
    facts = ModuleFacts("conv", "Conv2d", calls[0], calls=calls)
    layers = discover(replace(checkpoint({"conv.weight": CONV}), modules=(facts,))).layers
    assert [layer.geometry.stride[0] for layer in layers] == list(range(1, 501))
    assert len({layer.name for layer in layers}) == 500
    assert len(compared) < 3000
