"""Keras layouts of every generation, written by hand: which weight belongs to which layer, and its geometry."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from convsv.checkpoints import Checkpoint, ModuleFacts, open_checkpoint
from convsv.checkpoints._keras_config import parse_layers
from convsv.checkpoints._keras_layer import class_of_name, snake_case
from convsv.checkpoints.discovery import find_layers
from convsv.errors import CheckpointError, CorruptCheckpointError, UnsafeCheckpointError
from convsv.geometry import GeometryFacts, resolve

pytestmark = pytest.mark.timeout(60)

Arrays = Mapping[str, Sequence[int]]
BYTES = np.random.default_rng(0)


def conv(class_name: str, name: str, **config: Any) -> dict[str, Any]:
    top = {key: config.pop(key) for key in ("build_config", "module") if key in config}
    common = {"strides": [1, 1], "padding": "same", "dilation_rate": [1, 1], "data_format": "channels_last"}
    return {"class_name": class_name, "config": {"name": name, **common, **config}, **top}


def model(*layers: Mapping[str, Any], class_name: str = "Functional", name: str = "model") -> dict[str, Any]:
    return {"class_name": class_name, "config": {"name": name, "layers": list(layers)}}


def legacy(path: Path, layers: Mapping[str, Arrays], config: object = None, root: str = "") -> dict[str, Any]:
    """Write the layout of Keras 1 and 2: {layer: {weight name: shape}}; return the arrays by their path."""
    written = {}
    with h5py.File(path, "w") as file:
        group = file.require_group(root) if root else file
        group.attrs["layer_names"] = [name.encode() for name in layers]
        group.attrs["keras_version"], group.attrs["backend"] = b"2.4.0", b"tensorflow"
        if config is not None:
            file.attrs["model_config"] = json.dumps(config) if not isinstance(config, (str, bytes)) else config
        for name, weights in layers.items():
            layer = group.create_group(name)
            layer.attrs["weight_names"] = [weight.encode() for weight in weights]
            for weight, shape in weights.items():
                layer[weight] = written[f"{name}/{weight}"] = BYTES.standard_normal(shape).astype("f4")
        if root:
            file["optimizer_weights/Adam/conv2d/kernel/m:0"] = np.zeros((3, 3, 2, 4), "f4")
    return written


def weights_file(
    path: Path, groups: Mapping[str, Sequence[Sequence[int]]], titles: Mapping[str, str] = {}
) -> dict[str, Any]:
    """Write the layout of Keras 3: {group: shapes of vars/0, vars/1 ...}; return the arrays by their path."""
    written = {}
    with h5py.File(path, "w") as file:
        for name, shapes in groups.items():
            variables = file.create_group(f"{name}/vars")
            if name in titles:
                variables.attrs["name"] = titles[name]
            for number, shape in enumerate(shapes):
                variables[str(number)] = written[f"{name}/vars/{number}"] = BYTES.standard_normal(shape).astype("f4")
        file["optimizer/vars/0"] = np.zeros((3, 3, 2, 4), "f4")
    return written


def archive(path: Path, config: object, weights: Path, method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as pack:
        pack.writestr("metadata.json", '{"keras_version": "3.5.0"}')
        pack.writestr("config.json", config if isinstance(config, (str, bytes)) else json.dumps(config))
        pack.write(weights, "model.weights.h5")
    return path


def kernels(checkpoint: Checkpoint) -> dict[str, ModuleFacts]:
    """Return the facts about each kernel by the kernel's key."""
    return {k: facts for facts in checkpoint.modules for k, role in facts.variables.items() if "kernel" in role}


def values(checkpoint: Checkpoint) -> dict[str, Any]:
    return {tensor.key: tensor.read() for tensor in checkpoint.tensors if "optimizer" not in "".join(tensor.container)}


def same(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for key in expected:
        np.testing.assert_array_equal(found[key], expected[key])


# ------------------------------------------------------------------------------------------------------ Keras 1 and 2


def test_a_whole_model_has_layer_names_geometry_and_its_optimizer_apart(tmp_path: Path) -> None:
    config = model(
        conv(
            "Conv2D",
            "conv2d",
            strides=[2, 1],
            padding="valid",
            dilation_rate=[1, 3],
            groups=2,
            filters=4,
            kernel_size=[3, 3],
        ),
        conv(
            "DepthwiseConv2D", "dw", strides=[2, 2], groups=1, kernel_size=[5, 3], batch_input_shape=[None, 20, 30, 6]
        ),
        {"class_name": "Dense", "config": {"name": "dense"}},
    )
    layers = {
        "conv2d": {"conv2d/kernel:0": (3, 3, 2, 4), "conv2d/bias:0": (4,)},
        "dw": {"dw/depthwise_kernel:0": (5, 3, 6, 1), "dw/bias:0": (6,)},
        "dense": {"dense/kernel:0": (7, 2)},
    }
    written = legacy(tmp_path / "m.h5", layers, config, "model_weights")
    checkpoint = open_checkpoint(tmp_path / "m.h5")
    same(values(checkpoint), written)
    assert [t.container for t in checkpoint.tensors] == [("model_weights",)] * 5 + [("optimizer_weights",)]
    assert [t.key for t in checkpoint.tensors[:2]] == ["conv2d/conv2d/kernel:0", "conv2d/conv2d/bias:0"]
    facts = kernels(checkpoint)
    plain, depthwise = facts["conv2d/conv2d/kernel:0"], facts["dw/dw/depthwise_kernel:0"]
    assert (plain.name, plain.path, plain.class_name) == ("conv2d", "conv2d/conv2d", "Conv2D")
    assert plain.container == ("model_weights",)
    assert plain.geometry == GeometryFacts(
        stride=(2, 1), padding="valid", padding_mode="zeros", dilation=(1, 3), groups=2, transposed=False
    )
    assert depthwise.variables["dw/dw/depthwise_kernel:0"] == "depthwise_kernel"
    assert depthwise.geometry == GeometryFacts(
        size=(20, 30), stride=(2, 2), padding="same", padding_mode="zeros", dilation=(1, 1), groups=6, transposed=False
    )
    assert facts["dense/dense/kernel:0"].class_name == "Dense"
    assert checkpoint.problems == ()


def test_tensors_come_in_the_order_of_the_layers_not_of_the_alphabet(tmp_path: Path) -> None:
    names = ["z", "conv_10", "conv_9", "a"]
    legacy(tmp_path / "m.h5", {name: {f"{name}/kernel:0": (3, 3, 1, 1), f"{name}/bias:0": (1,)} for name in names})
    found = [tensor.key.split("/")[0] for tensor in open_checkpoint(tmp_path / "m.h5").tensors]
    assert found == ["z", "z", "conv_10", "conv_10", "conv_9", "conv_9", "a", "a"]


def test_weights_only_files_tell_the_class_by_the_automatic_name(tmp_path: Path) -> None:
    layers = {
        "conv2d_3": {"conv2d_3/kernel:0": (3, 3, 2, 4)},
        "conv2d_transpose": {"conv2d_transpose/kernel:0": (3, 3, 2, 4)},
        "depthwise_conv2d_1": {"depthwise_conv2d_1/depthwise_kernel:0": (3, 3, 6, 2)},
        "block1_conv1": {"block1_conv1/kernel:0": (3, 3, 2, 4)},
    }
    written = legacy(tmp_path / "m.h5", layers)
    checkpoint = open_checkpoint(tmp_path / "m.h5")
    same(values(checkpoint), written)
    found = {
        facts.name: (facts.class_name, facts.inferred.transposed, facts.inferred.groups) for facts in checkpoint.modules
    }
    assert all(facts.geometry == GeometryFacts() for facts in checkpoint.modules)
    assert found == {
        "conv2d_3": ("Conv2D", False, None),
        "conv2d_transpose": ("Conv2DTranspose", True, None),
        "depthwise_conv2d_1": ("DepthwiseConv2D", False, 6),
        "block1_conv1": ("", None, None),
    }
    origins = {layer.name: layer.geometry.origin["transposed"] for layer in find_layers(checkpoint)}
    assert origins == {name: "assumed" if name == "block1_conv1" else "inferred" for name in found}


@pytest.mark.parametrize(
    ("group", "scope", "name"),
    [
        ("conv2d", "conv2d/kernel:0", "conv2d"),
        ("conv2d", "conv2d_3/kernel:0", "conv2d"),
        ("conv2d", "sequential/conv2d/kernel", "conv2d"),
        ("conv2d", "kernel:0", "conv2d"),
        ("encoder", "conv2d/kernel:0", "encoder/conv2d"),
        ("encoder", "outer/encoder/conv2d/kernel", "encoder/conv2d"),
        ("expanded/depthwise", "expanded/depthwise/kernel:0", "expanded/depthwise"),
        ("spectral", "spectral/conv2d/kernel:0", "spectral/conv2d"),
    ],
)
def test_names_repeat_nothing(tmp_path: Path, group: str, scope: str, name: str) -> None:
    legacy(tmp_path / "m.h5", {group: {scope: (3, 3, 2, 4)}})
    (facts,) = open_checkpoint(tmp_path / "m.h5").modules
    assert facts.name == name
    assert f"{group}/{scope}".startswith(facts.path + "/")


def test_layers_of_nested_models_and_in_wrappers_have_their_geometry(tmp_path: Path) -> None:
    inner = model(
        conv("Conv2D", "a", strides=[2, 2]),
        conv("Conv2D", "b", strides=[3, 3]),
        name="encoder",
        class_name="Sequential",
    )
    wrapped = {
        "class_name": "TimeDistributed",
        "config": {"name": "td", "layer": conv("Conv2D", "c", strides=[4, 4]), "batch_input_shape": [None, 9, 8, 6, 2]},
    }
    normed = {
        "class_name": "SpectralNormalization",
        "config": {"name": "sn", "layer": conv("Conv2D", "d", strides=[5, 5])},
    }
    layers = {
        "encoder": {"a/kernel:0": (3, 3, 2, 4), "b/kernel:0": (3, 3, 4, 4)},
        "td": {"td/kernel:0": (3, 3, 2, 4)},
        "sn": {"sn/d/kernel:0": (3, 3, 2, 4), "sn/vector_u:0": (1, 4)},
    }
    legacy(tmp_path / "m.h5", layers, model(inner, wrapped, normed))
    found = {facts.name: facts.geometry for facts in kernels(open_checkpoint(tmp_path / "m.h5")).values()}
    assert {name: geometry.stride for name, geometry in found.items()} == {
        "encoder/a": (2, 2),
        "encoder/b": (3, 3),
        "td": (4, 4),
        "sn/d": (5, 5),
    }
    assert found["td"].size == (8, 6)


def test_a_list_of_layer_names_split_over_attributes_is_joined(tmp_path: Path) -> None:
    names = [f"conv2d_{n}" for n in range(30)]
    legacy(tmp_path / "m.h5", {name: {f"{name}/kernel:0": (1, 1, 1, 1)} for name in reversed(names)})
    with h5py.File(tmp_path / "m.h5", "a") as file:
        del file.attrs["layer_names"]
        for part in range(3):
            file.attrs[f"layer_names{part}"] = [name.encode() for name in names[part * 10 : part * 10 + 10]]
    assert [facts.name for facts in open_checkpoint(tmp_path / "m.h5").modules] == names


def test_a_configuration_beyond_64_kilobytes_is_read(tmp_path: Path) -> None:
    config = model(conv("Conv2D", "conv2d", strides=[2, 2], note="x" * 300_000))
    with h5py.File(tmp_path / "m.h5", "w", libver="latest") as file:
        file.attrs["model_config"] = json.dumps(config)
        file.attrs["layer_names"] = [b"conv2d"]
        file["conv2d/conv2d/kernel:0"] = np.ones((3, 3, 1, 1), "f4")
    (facts,) = open_checkpoint(tmp_path / "m.h5").modules
    assert facts.geometry.stride == (2, 2)


@pytest.mark.parametrize(
    ("config", "shape", "bias", "expected", "role"),
    [
        ({"dim_ordering": "tf", "nb_filter": 4}, (5, 3, 2, 4), 4, True, "kernel"),
        ({"dim_ordering": "th", "nb_filter": 4}, (4, 2, 5, 3), 4, True, "kernel_oik"),
        (None, (4, 2, 5, 3), 4, False, "kernel_oik"),
        (None, (5, 3, 2, 4), 4, False, "kernel"),
    ],
    ids=["tf", "th", "th, by its bias", "tf, by its bias"],
)
def test_keras_1_kernels_have_their_own_names_and_two_axis_orders(
    tmp_path: Path, config: Any, shape: tuple[int, ...], bias: int, expected: bool, role: str
) -> None:
    name = "convolution2d_1"
    more = {"nb_row": 5, "nb_col": 3, "subsample": [2, 1], "border_mode": "same", "name": name}
    layers = {name: {f"{name}_W": shape, f"{name}_b": (bias,)}}
    said = [{"class_name": "Convolution2D", "config": {**more, **config}}] if config else None
    legacy(tmp_path / "m.h5", layers, {"class_name": "Sequential", "config": said} if said else None)
    (facts,) = open_checkpoint(tmp_path / "m.h5").modules
    assert (facts.name, facts.class_name) == (name, "Convolution2D")
    assert facts.variables == {f"{name}/{name}_W": role, f"{name}/{name}_b": "bias"}
    assert facts.geometry.stride == ((2, 1) if expected else None)
    assert facts.geometry.padding == ("same" if expected else None)


def test_a_keras_1_kernel_of_an_uncertain_axis_order_is_unavailable(tmp_path: Path) -> None:
    legacy(tmp_path / "m.h5", {"deconvolution2d_1": {"deconvolution2d_1_W": (3, 3, 2, 2), "deconvolution2d_1_b": (2,)}})
    kernel, bias = open_checkpoint(tmp_path / "m.h5").tensors
    assert "axes" in (kernel.problem or "")
    assert bias.problem is None


# ----------------------------------------------------------------------------------------------------------- Keras 3


def test_keras_3_groups_are_matched_by_class_and_order_through_nested_models(tmp_path: Path) -> None:
    config = model(
        {"class_name": "InputLayer", "config": {"name": "input_7"}},
        conv("Conv2D", "first", strides=[2, 2], filters=4),
        {"class_name": "Conv2D", "module": "keras.src.ops.nn", "config": {"name": "an_operation"}},
        conv("Conv2DTranspose", "up", strides=[3, 3], filters=4),
        model(
            {"class_name": "InputLayer", "config": {"name": "input_8"}},
            conv("Conv2D", "inner_a", strides=[4, 4]),
            conv("Conv2D", "inner_b", strides=[5, 5]),
            class_name="Sequential",
            name="encoder",
        ),
        conv("Conv2D", "second", strides=[6, 6], filters=4),
        {"class_name": "TimeDistributed", "config": {"name": "td", "layer": conv("Conv2D", "each", strides=[7, 7])}},
    )
    groups = {
        "layers/conv2d": [(3, 3, 4, 4), (4,)],
        "layers/conv2d_1": [(3, 3, 4, 4), (4,)],
        "layers/conv2d_transpose": [(3, 3, 4, 4), (4,)],
        "layers/sequential/layers/conv2d": [(3, 3, 4, 4)],
        "layers/sequential/layers/conv2d_1": [(3, 3, 4, 4)],
        "layers/time_distributed/layer": [(3, 3, 4, 4)],
    }
    written = weights_file(tmp_path / "w.h5", groups)
    checkpoint = open_checkpoint(archive(tmp_path / "m.keras", config, tmp_path / "w.h5"))
    same(values(checkpoint), written)
    found = {facts.path: (facts.name, facts.geometry.stride) for facts in kernels(checkpoint).values()}
    assert found == {
        "layers/conv2d": ("first", (2, 2)),
        "layers/conv2d_1": ("second", (6, 6)),
        "layers/conv2d_transpose": ("up", (3, 3)),
        "layers/sequential/layers/conv2d": ("encoder/inner_a", (4, 4)),
        "layers/sequential/layers/conv2d_1": ("encoder/inner_b", (5, 5)),
        "layers/time_distributed/layer": ("td/each", (7, 7)),
    }
    assert checkpoint.tensors[-1].container == ("optimizer",)
    assert [t.key for t in checkpoint.tensors[:3]] == [
        "layers/conv2d/vars/0",
        "layers/conv2d/vars/1",
        "layers/conv2d_transpose/vars/0",
    ]


def test_a_stated_name_wins_over_the_rule(tmp_path: Path) -> None:
    config = model(conv("Conv2D", "one", strides=[2, 2]), conv("Conv2D", "two", strides=[3, 3]))
    titles = {"layers/conv2d": "two", "layers/conv2d_1": "one"}
    weights_file(tmp_path / "w.h5", {group: [(3, 3, 2, 2)] for group in titles}, titles)
    facts = kernels(open_checkpoint(archive(tmp_path / "m.keras", config, tmp_path / "w.h5")))
    assert {key: f.geometry.stride for key, f in facts.items()} == {
        "layers/conv2d/vars/0": (3, 3),
        "layers/conv2d_1/vars/0": (2, 2),
    }


def test_numbers_with_gaps_are_matched_by_order(tmp_path: Path) -> None:
    config = model(*(conv("Conv2D", f"c{n}", strides=[n + 1, n + 1]) for n in range(3)))
    root = "_layer_checkpoint_dependencies"
    weights_file(tmp_path / "w.h5", {f"{root}/conv2d{s}": [(3, 3, 2, 2)] for s in ("", "_2", "_10")})
    facts = kernels(open_checkpoint(archive(tmp_path / "m.keras", config, tmp_path / "w.h5")))
    assert {f.path: f.name for f in facts.values()} == {
        f"{root}/conv2d": "c0",
        f"{root}/conv2d_2": "c1",
        f"{root}/conv2d_10": "c2",
    }


def test_groups_that_cannot_be_matched_have_no_geometry(tmp_path: Path) -> None:
    config = model(*(conv("Conv2D", f"c{n}", strides=[2, 2]) for n in range(3)))
    weights_file(tmp_path / "w.h5", {f"layers/conv2d{s}": [(3, 3, 2, 2)] for s in ("", "_7")})
    facts = kernels(open_checkpoint(archive(tmp_path / "m.keras", config, tmp_path / "w.h5")))
    assert [(f.class_name, f.geometry.stride) for f in facts.values()] == [("Conv2D", None)] * 2


def test_a_configuration_that_does_not_fit_the_kernel_is_told_and_ignored(tmp_path: Path) -> None:
    config = model(conv("Conv2D", "c", strides=[2, 2], kernel_size=[5, 5]))
    weights_file(tmp_path / "w.h5", {"layers/conv2d": [(3, 3, 2, 2)]})
    checkpoint = open_checkpoint(archive(tmp_path / "m.keras", config, tmp_path / "w.h5"))
    assert kernels(checkpoint)["layers/conv2d/vars/0"].geometry == GeometryFacts()
    assert len(checkpoint.problems) == 1


def test_weights_without_a_configuration_tell_the_class_by_the_group(tmp_path: Path) -> None:
    groups = {
        "layers/conv2d_transpose_1": [(3, 3, 2, 4)],
        "layers/sequential/layers/separable_conv2d": [(3, 3, 2, 1), (1, 1, 2, 4)],
    }
    weights_file(
        tmp_path / "m.weights.h5", {**groups, "conv1": [(3, 3, 2, 4)], "layers/dense": [(4, 4)]}, {"conv1": "conv2d_9"}
    )
    found = {facts.name: facts for facts in open_checkpoint(tmp_path / "m.weights.h5").modules}
    assert {name: facts.class_name for name, facts in found.items()} == {
        "conv2d_transpose_1": "Conv2DTranspose",
        "sequential/separable_conv2d/depthwise": "SeparableConv2D",
        "sequential/separable_conv2d/pointwise": "SeparableConv2D",
        "conv1": "Conv2D",
        "dense": "",
    }
    assert found["dense"].variables == {}


def test_a_separable_layer_speaks_once_for_each_kernel(tmp_path: Path) -> None:
    config = model(conv("SeparableConv2D", "s", strides=[2, 2], dilation_rate=[1, 1], filters=5, kernel_size=[3, 3]))
    weights_file(tmp_path / "w.h5", {"layers/separable_conv2d": [(3, 3, 4, 2), (1, 1, 8, 5), (5,)]})
    depthwise, pointwise = open_checkpoint(archive(tmp_path / "m.keras", config, tmp_path / "w.h5")).modules
    assert (depthwise.name, pointwise.name) == ("s/depthwise", "s/pointwise")
    assert depthwise.variables["layers/separable_conv2d/vars/0"] == "depthwise_kernel"
    assert pointwise.variables["layers/separable_conv2d/vars/1"] == "pointwise_kernel"
    assert (depthwise.geometry.groups, depthwise.geometry.stride, depthwise.geometry.padding) == (4, (2, 2), "same")
    assert (pointwise.geometry.groups, pointwise.geometry.stride, pointwise.geometry.padding) == (1, 1, "valid")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
def test_archives_are_read_stored_and_deflated_whatever_their_suffix(tmp_path: Path, method: int) -> None:
    written = weights_file(tmp_path / "w.h5", {"layers/conv2d": [(3, 3, 2, 4), (4,)]})
    checkpoint = open_checkpoint(archive(tmp_path / "m.zip", model(conv("Conv2D", "c")), tmp_path / "w.h5", method))
    assert checkpoint.format == "keras"
    same(values(checkpoint), written)


def test_a_damaged_weight_in_an_archive_is_refused_by_its_checksum(tmp_path: Path) -> None:
    written = weights_file(tmp_path / "w.h5", {"layers/conv2d": [(3, 3, 2, 4)]})
    path = archive(tmp_path / "m.keras", model(conv("Conv2D", "c")), tmp_path / "w.h5")
    content = bytearray(path.read_bytes())
    at = content.index(written["layers/conv2d/vars/0"].tobytes())
    content[at] ^= 1
    path.write_bytes(content)
    tensor = open_checkpoint(path).tensors[0]
    with pytest.raises(CorruptCheckpointError, match="checksum"):
        tensor.read()


def test_an_archive_without_weights_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as pack:
        pack.writestr("metadata.json", "{}")
        pack.writestr("config.json", "{}")
    with pytest.raises(CorruptCheckpointError, match=r"model\.weights\.h5"):
        open_checkpoint(tmp_path / "m.keras")


def test_a_truncated_archive_is_refused(tmp_path: Path) -> None:
    weights_file(tmp_path / "w.h5", {"layers/conv2d": [(3, 3, 2, 4)]})
    path = archive(tmp_path / "m.keras", model(), tmp_path / "w.h5")
    whole = path.read_bytes()
    for share in (0.01, 0.3, 0.7, 0.999):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(CheckpointError):
            open_checkpoint(path)


def test_an_archive_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.keras", "w", zipfile.ZIP_DEFLATED) as pack:
        pack.writestr("config.json", "{}")
        with pack.open("model.weights.h5", "w") as member:
            for _ in range(9):
                member.write(bytes(1 << 26))
    with pytest.raises(UnsafeCheckpointError, match="too large"):
        open_checkpoint(tmp_path / "m.keras")


# ---------------------------------------------------------------------------------------------------------- geometry


def only_geometry(folder: Path, layer: dict[str, Any], *shapes: Sequence[int]) -> GeometryFacts:
    weights_file(folder / "w.h5", {f"layers/{snake_case(layer['class_name'])}": shapes})
    checkpoint = open_checkpoint(archive(folder / "m.keras", model(layer), folder / "w.h5"))
    impossible = "lengths that cannot be"
    assert all(impossible in problem for problem in checkpoint.problems)
    stated = layer.get("build_config", {}).get("input_shape")
    odd = isinstance(stated, list) and any(n is not None and (type(n) is not int or n < 1) for n in stated)
    assert len(checkpoint.problems) == odd
    return checkpoint.modules[0].geometry


def test_causal_padding_is_all_before(tmp_path: Path) -> None:
    layer = conv("Conv1D", "c", strides=[1], padding="causal", dilation_rate=[4], kernel_size=[3])
    assert only_geometry(tmp_path, layer, (3, 2, 2)).padding == ((8, 0),)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("output_padding", [None, 0, 1])
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("stride", [2, 3])
def test_a_transposed_layer_has_the_output_length_that_keras_documents(
    tmp_path: Path, padding: str, output_padding: int | None, k: int, stride: int
) -> None:
    said = None if output_padding is None else [output_padding]
    layer = conv("Conv1DTranspose", "c", strides=[stride], dilation_rate=[1], padding=padding, output_padding=said)
    facts = only_geometry(tmp_path, {**layer, "build_config": {"input_shape": [None, 9, 2]}}, (k, 4, 2))
    geometry = resolve((k,), [("stored", facts)])
    # The rules of Keras' deconv_output_length.
    if output_padding is None:
        expected = 9 * stride + (max(k - stride, 0) if padding == "valid" else 0)
    else:
        expected = 8 * stride + k - 2 * (k // 2 if padding == "same" else 0) + output_padding
    assert geometry.transposed
    assert geometry.forward_size((k,)) == (expected,)


@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (conv("Conv2D", "c", build_config={"input_shape": [None, 128, 32, 3]}), (128, 32)),
        (conv("Conv2D", "c", batch_input_shape=[None, 7, 9, 3]), (7, 9)),
        (
            conv("Conv2D", "c", build_config={"input_shape": [None, 3, 128, 32]}, data_format="channels_first"),
            (128, 32),
        ),
        (conv("Conv2D", "c", build_config={"input_shape": [None, None, 32, 3]}), None),
        (conv("Conv2D", "c", build_config={"input_shape": {"a": 1}}), None),
        (conv("Conv2D", "c", build_config={"input_shape": [None, -5, 0, 3]}), None),
        (conv("Conv2D", "c", build_config={"input_shape": [None, True, 2, 3]}), None),
        (conv("Conv2D", "c"), None),
    ],
)
def test_the_size_is_that_of_the_layers_own_input(tmp_path: Path, layer: dict[str, Any], size: object) -> None:
    assert only_geometry(tmp_path, layer, (3, 3, 3, 4)).size == size


@pytest.mark.parametrize("value", [0, -1, [0, 1], [1, 2, 3], "2", 1.5, True, None, [], {"a": 1}, 1 << 40, [[1], [1]]])
def test_impossible_numbers_in_a_configuration_are_not_believed(tmp_path: Path, value: Any) -> None:
    geometry = only_geometry(tmp_path, conv("Conv2D", "c", strides=value), (3, 3, 3, 4))
    assert geometry.stride is None
    assert geometry.padding == "same"


# ------------------------------------------------------------------------------------------------ only shaped like one


def layer_names(path: Path) -> list[str]:
    return [layer.name for layer in find_layers(open_checkpoint(path))]


@pytest.mark.parametrize("titled", [False, True], ids=["older", "with titles"])
def test_a_kernel_that_spectral_normalisation_saves_again_is_one_layer(tmp_path: Path, titled: bool) -> None:
    wrapper = {"class_name": "SpectralNormalization", "config": {"name": "sn", "layer": conv("Conv2D", "c")}}
    groups = {
        "layers/spectral_normalization": [(3, 3, 2, 4), (1, 4)],
        "layers/spectral_normalization/layer": [(3, 3, 2, 4), (4,)],
    }
    titles = {"layers/spectral_normalization": "sn", "layers/spectral_normalization/layer": "c"} if titled else {}
    weights_file(tmp_path / "m.weights.h5", groups, titles)
    assert layer_names(tmp_path / "m.weights.h5") == ["spectral_normalization/layer"]
    assert layer_names(archive(tmp_path / "m.keras", model(wrapper), tmp_path / "m.weights.h5")) == ["sn/c"]


def test_matrices_of_three_axes_are_no_convolutions(tmp_path: Path) -> None:
    heads = {f"{name}_dense": title for name, title in (("query", "query"), ("output", "attention_output"))}
    groups = {
        "layers/einsum_dense_1": [(6, 2, 3)],
        "layers/multi_head_attention/query_dense": [(6, 2, 3), (2, 3)],
        "layers/multi_head_attention/output_dense": [(2, 3, 6), (6,)],
        "block/attention/output_dense": [(2, 3, 6), (6,)],
        "layers/conv1d": [(5, 2, 6), (6,)],
    }
    config = model({"class_name": "EinsumDense", "config": {"name": "mine"}}, conv("Conv1D", "c"))
    titles = {group: heads[last] for group in groups if (last := group.split("/")[-1]) in heads}
    weights_file(tmp_path / "titled.weights.h5", groups, titles)
    weights_file(tmp_path / "m.weights.h5", {k: v for k, v in groups.items() if "block" not in k})
    assert layer_names(tmp_path / "titled.weights.h5") == ["conv1d"]
    assert layer_names(tmp_path / "m.weights.h5") == ["conv1d"]
    weights_file(tmp_path / "c.weights.h5", {"layers/einsum_dense": [(6, 2, 3)], "layers/conv1d": [(5, 2, 6), (6,)]})
    assert layer_names(archive(tmp_path / "m.keras", config, tmp_path / "c.weights.h5")) == ["c"]


def test_two_kernels_of_one_cell_have_names_without_the_words_of_the_format(tmp_path: Path) -> None:
    weights_file(tmp_path / "m.weights.h5", {"layers/conv_lstm2d/cell": [(3, 3, 4, 12), (3, 3, 3, 12), (12,)]})
    assert layer_names(tmp_path / "m.weights.h5") == ["conv_lstm2d/cell/kernel", "conv_lstm2d/cell/1"]


# ----------------------------------------------------------------------------------------------------------- hostile


@pytest.mark.parametrize(
    "config",
    [
        b"{",
        "[" * 100_000,
        '{"class_name": 5, "config": [[]]}',
        "3",
        "null",
        '{"config": {"layers": [1, null, {"config": 3}]}}',
        b"\xff",
    ],
    ids=["cut", "deep", "numbers", "a number", "null", "odd layers", "not UTF-8"],
)
def test_an_odd_configuration_costs_the_geometry_only(tmp_path: Path, config: Any) -> None:
    written = weights_file(tmp_path / "w.h5", {"layers/conv2d": [(3, 3, 2, 4)]})
    checkpoint = open_checkpoint(archive(tmp_path / "m.keras", config, tmp_path / "w.h5"))
    same(values(checkpoint), written)
    assert kernels(checkpoint)["layers/conv2d/vars/0"].geometry.stride is None


def test_models_nested_a_hundred_times_are_not_followed() -> None:
    config = model(conv("Conv2D", "c"))
    for _ in range(100):
        config = model(config)
    with pytest.raises(CorruptCheckpointError, match="nests"):
        parse_layers(json.dumps(config))


def test_a_lambda_or_an_unknown_class_is_a_name_and_nothing_more(tmp_path: Path) -> None:
    target = tmp_path / "ran"
    code = f"__import__('pathlib').Path({str(target)!r}).touch()"
    config = model(
        {
            "class_name": "Lambda",
            "module": "keras.layers",
            "config": {"name": "l", "function": {"class_name": "__lambda__", "config": {"code": code}}},
        },
        {
            "class_name": "os.system",
            "module": "os",
            "registered_name": "os>system",
            "config": {"name": "evil", "command": f"touch {target}"},
        },
        conv("Conv2D", "c", strides=[2, 2]),
    )
    groups = {"layers/conv2d": [(3, 3, 2, 4)], "layers/system": [(3, 3, 2, 4)]}
    weights_file(tmp_path / "w.h5", groups)
    found = {f.name: f for f in open_checkpoint(archive(tmp_path / "m.keras", config, tmp_path / "w.h5")).modules}
    assert found["c"].geometry.stride == (2, 2)
    assert (found["evil"].class_name, found["evil"].geometry) == ("system", GeometryFacts())
    assert not target.exists()


def test_ten_thousand_layers_are_matched(tmp_path: Path) -> None:
    config = model(*(conv("Conv2D", f"c{n}", strides=[n % 3 + 1] * 2) for n in range(10_000)))
    groups = {f"layers/conv2d_{n}" if n else "layers/conv2d": [(1, 1, 1, 1)] for n in range(10_000)}
    weights_file(tmp_path / "w.h5", groups)
    modules = open_checkpoint(archive(tmp_path / "m.keras", config, tmp_path / "w.h5")).modules
    assert [f.name for f in modules] == [f"c{n}" for n in range(10_000)]
    assert all(f.geometry.stride == (n % 3 + 1,) * 2 for n, f in enumerate(modules))


# -------------------------------------------------------------------------------------------------------- real files


def test_the_rule_of_keras_3_finds_the_names_that_a_real_file_states(shared_checkpoints: Path, tmp_path: Path) -> None:
    real = shared_checkpoints / "acoustic-ae.keras"
    stated = {f.path: (f.name, f.class_name, f.geometry) for f in open_checkpoint(real).modules}
    assert {name for name, _, _ in stated.values()} == {
        *("conv2d_30", "conv2d_31", "conv2d_32", "conv2d_33"),
        *("conv2d_transpose_15", "conv2d_transpose_16", "conv2d_transpose_17"),
    }
    assert sum(bool(geometry.transposed) for _, _, geometry in stated.values()) == 3
    with zipfile.ZipFile(real) as pack:
        pack.extract("model.weights.h5", tmp_path)
        config = pack.read("config.json")
    with h5py.File(tmp_path / "model.weights.h5", "a") as file:
        for group in file["layers"].values():
            group["vars"].attrs.pop("name", None)
    by_rule = open_checkpoint(archive(tmp_path / "m.keras", config, tmp_path / "model.weights.h5")).modules
    assert {f.path: (f.name, f.class_name, f.geometry) for f in by_rule} == stated


def test_an_archive_reads_as_h5py_reads_its_member(shared_checkpoints: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(shared_checkpoints / "acoustic-ae.keras") as pack:
        pack.extract("model.weights.h5", tmp_path)
    checkpoint = open_checkpoint(shared_checkpoints / "acoustic-ae.keras")
    with h5py.File(tmp_path / "model.weights.h5") as file:
        for tensor in checkpoint.tensors:
            np.testing.assert_array_equal(tensor.read(), file["/".join((*tensor.container, tensor.key))][()])
    assert len(checkpoint.tensors) == 44


def test_every_layer_of_a_real_whole_model_has_its_geometry(shared_checkpoints: Path) -> None:
    checkpoint = open_checkpoint(shared_checkpoints / "mlperf-vww96.h5")
    facts = [f for f in checkpoint.modules if f.class_name in ("Conv2D", "DepthwiseConv2D")]
    assert [f.name for f in facts[:3]] == ["conv2d", "depthwise_conv2d", "conv2d_1"]
    assert len(facts) == 27
    assert sum(f.class_name == "DepthwiseConv2D" for f in facts) == 13
    assert sum(f.geometry.stride == (2, 2) for f in facts) == 5
    assert {f.geometry.padding for f in facts} == {"same"}
    assert all((f.geometry.groups == 1) == (f.class_name == "Conv2D") for f in facts)
    optimizer = [t for t in checkpoint.tensors if t.container == ("optimizer_weights",)]
    assert any(len(t.shape) == 4 for t in optimizer)


@pytest.mark.parametrize(
    ("class_name", "snake"),
    [
        ("Conv2D", "conv2d"),
        ("Conv2DTranspose", "conv2d_transpose"),
        ("DepthwiseConv1D", "depthwise_conv1d"),
        ("SeparableConv2D", "separable_conv2d"),
        ("TimeDistributed", "time_distributed"),
        ("GlobalAveragePooling2D", "global_average_pooling2d"),
        ("BatchNormalization", "batch_normalization"),
    ],
)
def test_classes_are_snake_cased_as_keras_does(class_name: str, snake: str) -> None:
    assert snake_case(class_name) == snake
    assert class_of_name(f"{snake}_12") == (class_name if "Conv" in class_name else "")
