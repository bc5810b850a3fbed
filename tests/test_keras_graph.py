"""Input sizes from a Keras configuration alone: three dialects of graphs, models in models, and what is hostile."""

from __future__ import annotations

import json
from typing import Any

import pytest

from convsv.checkpoints._keras_config import LayerConfig, geometries_of, parse_layers
from convsv.checkpoints._keras_layer import CONVOLUTIONS
from convsv.checkpoints._keras_shapes import RULES, output_shapes
from convsv.checkpoints._keras_spatial import Call
from convsv.errors import CorruptCheckpointError
from convsv.geometry import resolve

pytestmark = pytest.mark.timeout(120)

Entry = dict[str, Any]


def layer(class_name: str, name: str, *, nodes: list[Any] | None = None, **config: Any) -> Entry:
    top = {key: config.pop(key) for key in ("build_config", "module", "registered_name") if key in config}
    entry = {"class_name": class_name, "name": name, "config": {"name": name, **config}, **top}
    return entry if nodes is None else {**entry, "inbound_nodes": nodes}


def conv(name: str, *, nodes: list[Any] | None = None, **config: Any) -> Entry:
    said = {"filters": 3, "kernel_size": [3, 3], "strides": [2, 2], "padding": "same", **config}
    return layer("Conv2D", name, nodes=nodes, **said)


def entry(name: str, *shape: int | None) -> Entry:
    return layer("InputLayer", name, nodes=[], batch_input_shape=[None, *shape])


def functional(name: str, layers: list[Entry], outputs: list[Any], nodes: list[Any] | None = None) -> Entry:
    inputs = [[one["name"], 0, 0] for one in layers if one["class_name"] == "InputLayer"]
    config = {"layers": layers, "input_layers": inputs, "output_layers": outputs}
    return layer("Functional", name, nodes=nodes, **config)


def sequential(name: str, *layers: Entry, nodes: list[Any] | None = None, **config: Any) -> Entry:
    return layer("Sequential", name, nodes=nodes, layers=list(layers), **config)


def old(*sources: str | tuple[str, int] | tuple[str, int, int]) -> list[Any]:
    """A node of Keras 2: the tensors that a call takes."""
    full = [(s, 0, 0) if isinstance(s, str) else (*s, 0, 0)[:3] for s in sources]
    return [[name, node, tensor, {}] for name, node, tensor in full]


def new(name: str, *shape: int | None, node: int = 0) -> Entry:
    """A node of Keras 3, which states the shape."""
    config = {"shape": [None, *shape], "dtype": "float32", "keras_history": [name, node, 0]}
    return {"args": [{"class_name": "__keras_tensor__", "config": config}], "kwargs": {"mask": None}}


def sizes(model: object) -> dict[str, list[tuple[int, ...]]]:
    """The sizes at which each convolution is applied, as far as they are known."""
    layers, _ = parse_layers(model if isinstance(model, str) else json.dumps(model))
    return {"/".join(one.name): known(one) for one in layers if one.class_name in CONVOLUTIONS}


def known(one: LayerConfig, role: Any = "kernel") -> list[tuple[int, ...]]:
    taps = (1,) * CONVOLUTIONS[one.class_name].dims if role == "pointwise_kernel" else (3, 3)
    return [facts.size for facts in geometries_of(one, role, (*taps, 3, 3)) if isinstance(facts.size, tuple)]


# ---------------------------------------------------------------------------------------------------------- dialects


def test_a_list_of_layers_is_keras_1() -> None:
    first = {"subsample": [2, 2], "border_mode": "same", "nb_row": 3, "nb_col": 3, "nb_filter": 4, "dim_ordering": "th"}
    model = {
        "class_name": "Sequential",
        "config": [
            layer("Convolution2D", "a", batch_input_shape=[None, 3, 17, 32], **first),
            layer("ZeroPadding2D", "p", padding=[1, 2], dim_ordering="th"),
            layer("MaxPooling2D", "m", pool_size=[2, 2], border_mode="valid", dim_ordering="th"),
            layer("Convolution2D", "b", **first),
        ],
    }
    assert sizes(model) == {"a": [(17, 32)], "b": [(5, 10)]}


def test_merge_of_keras_1_joins_branches() -> None:
    branches = [sequential(f"s{n}", conv(f"c{n}", batch_input_shape=[None, 8, 8, 3])) for n in range(2)]
    merged = layer("Merge", "m", layers=branches, mode="concat", concat_axis=1)
    assert sizes(sequential("model", merged, conv("last"))) == {
        "m/s0/c0": [(8, 8)],
        "m/s1/c1": [(8, 8)],
        "last": [(8, 4)],
    }


@pytest.mark.parametrize("reverse", [False, True], ids=["in order", "out of order"])
def test_a_graph_of_keras_2_is_followed(reverse: bool) -> None:
    layers = [
        entry("x", 33, 20, 3),
        conv("a", nodes=[old("x")]),
        layer("BatchNormalization", "bn", nodes=[old("a")]),
        layer("UpSampling2D", "up", nodes=[old("bn")], size=[2, 2]),
        layer("Cropping2D", "crop", nodes=[old("up")], cropping=[[1, 0], [0, 0]]),
        layer("Concatenate", "cat", nodes=[old("crop", "x")], axis=-1),
        conv("b", nodes=[old("cat")]),
    ]
    model = functional("m", layers[::-1] if reverse else layers, [["b", 0, 0]])
    assert sizes(model) == {name: [(33, 20)] for name in ("a", "b")}


def test_operations_of_tensorflow_are_followed_where_they_keep_the_shape() -> None:
    def operation(name: str, function: str, node: list[Any]) -> Entry:
        return layer("TFOpLambda", name, nodes=[node], function=function)

    layers = [
        entry("x", 16, 16, 3),
        conv("a", nodes=[old("x")]),
        operation("relu", "nn.relu", ["a", 0, 0, {"name": None}]),
        operation("plus", "__operators__.add", ["relu", 0, 0, {"y": ["a", 0, 0], "name": None}]),
        conv("b", nodes=[old("plus")]),
        operation("scaled", "math.multiply", ["b", 0, 0, {"y": [[0.5], [2.0]]}]),
        conv("c", nodes=[old("scaled")]),
        operation("turned", "transpose", ["b", 0, 0, {"perm": [0, 2, 1, 3]}]),
        conv("d", nodes=[old("turned")]),
    ]
    assert sizes(functional("m", layers, [["d", 0, 0]])) == {"a": [(16, 16)], "b": [(8, 8)], "c": [], "d": []}


def test_keras_3_states_the_shape_of_every_tensor_also_behind_what_is_unknown() -> None:
    layers = [
        layer("InputLayer", "x", nodes=[], batch_shape=[None, 16, 16, 3]),
        layer("Mystery", "u", nodes=[new("x", 16, 16, 3)], module="my_package"),
        conv("a", nodes=[new("u", 30, 31, 3)]),
        conv("b", nodes=[new("a", None, None, 3)]),
    ]
    assert sizes(functional("m", layers, [["b", 0, 0]])) == {"a": [(30, 31)], "b": [(15, 16)]}


def test_behind_an_unknown_layer_a_size_is_unknown_until_a_layer_was_built_with_one() -> None:
    stages = [
        conv("a"),
        layer("Mystery", "u"),
        conv("b"),
        conv("c", build_config={"input_shape": [None, 9, 7, 3]}),
        conv("d"),
    ]
    model = sequential("m", entry("x", 64, 64, 3), *stages)
    assert sizes(model) == {"a": [(64, 64)], "b": [], "c": [(9, 7)], "d": [(5, 4)]}


def test_what_follows_from_the_graph_wins_over_what_a_layer_was_built_with_elsewhere() -> None:
    reused = conv("c", build_config={"input_shape": [None, 224, 224, 3]})
    assert sizes(sequential("m", entry("x", 96, 96, 3), reused)) == {"c": [(96, 96)]}


@pytest.mark.parametrize(
    "foreign",
    [
        {"module": "my_package.layers"},
        {"registered_name": "mine>BatchNormalization"},
        {"class_name": "Mine>BatchNormalization"},
    ],
    ids=["module", "registered", "in the class's name"],
)
def test_somebody_elses_class_of_a_known_name_has_no_rule(foreign: Entry) -> None:
    norm = {**layer("BatchNormalization", "n"), **foreign}
    assert sizes(sequential("m", entry("x", 8, 8, 3), norm, conv("c"))) == {"c": []}
    assert sizes(sequential("m", entry("x", 8, 8, 3), layer("BatchNormalization", "n"), conv("c"))) == {"c": [(8, 8)]}


def test_a_sequential_model_without_an_input_layer_tells_its_input_in_other_places() -> None:
    assert sizes(sequential("m", conv("c"), build_input_shape=[None, 8, 6, 3])) == {"c": [(8, 6)]}
    assert sizes(sequential("m", conv("c", batch_input_shape=[None, 8, 6, 3]))) == {"c": [(8, 6)]}
    inner = sequential("s", conv("c"), build_input_shape=[None, 8, 6, 3])
    assert sizes(sequential("m", inner)) == {"s/c": [(8, 6)]}


# ---------------------------------------------------------------------------------------------- many calls, many models


def test_a_layer_called_at_several_sizes_has_each_of_them_in_order() -> None:
    layers = [entry("x", 32, 32, 3), conv("c", nodes=[old("x"), old("c"), old(("c", 1)), old("x")])]
    assert sizes(functional("m", layers, [["c", 2, 0]])) == {"c": [(32, 32), (16, 16), (8, 8)]}


@pytest.mark.parametrize("first", [0, 1], ids=["calls counted from 0", "calls counted from 1"])
def test_a_model_called_at_two_sizes_is_followed_twice(first: int) -> None:
    inner = [entry("i", None, None, 3), conv("a", nodes=[old("i")]), conv("b", nodes=[old("a")])]
    calls = [old("x"), old("y")]
    layers = [
        entry("x", 32, 32, 3),
        entry("y", 20, 12, 3),
        functional("sub", inner, [["b", 0, 0]], calls),
        conv("c", nodes=[old(("sub", first))]),
        conv("d", nodes=[old(("sub", first + 1))]),
    ]
    expected = {"sub/a": [(32, 32), (20, 12)], "sub/b": [(16, 16), (10, 6)], "c": [(8, 8)], "d": [(5, 3)]}
    assert sizes(functional("m", layers, [["c", 0, 0], ["d", 0, 0]])) == expected


def test_inputs_given_by_name_find_their_place() -> None:
    inner = [
        entry("b", None, None, 3),
        entry("a", None, None, 3),
        conv("ca", nodes=[old("a")]),
        conv("cb", nodes=[old("b")]),
    ]
    call = {"a": ["x", 0, 0, {}], "b": ["y", 0, 0, {}]}
    layers = [entry("x", 10, 10, 3), entry("y", 20, 20, 3), functional("sub", inner, [["ca", 0, 0]], [call])]
    assert sizes(functional("m", layers, [["sub", 1, 0]])) == {"sub/ca": [(10, 10)], "sub/cb": [(20, 20)]}


def test_several_outputs_are_told_apart() -> None:
    inner = [entry("i", None, None, 3), conv("a", nodes=[old("i")]), conv("b", nodes=[old("a")])]
    sub = functional("sub", inner, [["a", 0, 0], ["b", 0, 0]], [old("x")])
    layers = [entry("x", 32, 32, 3), sub, conv("c", nodes=[old(("sub", 1, 1))]), conv("d", nodes=[old(("sub", 1, 0))])]
    found = sizes(functional("m", layers, [["c", 0, 0], ["d", 0, 0]]))
    assert (found["c"], found["d"]) == ([(8, 8)], [(16, 16)])


def test_one_layer_in_two_models_has_the_sizes_of_both() -> None:
    shared = {**conv("c"), "shared_object_id": 7}
    model = functional(
        "m",
        [
            entry("x", 8, 8, 3),
            entry("y", 6, 6, 3),
            sequential("s", shared, nodes=[old("x")]),
            sequential("t", shared, nodes=[old("y")]),
        ],
        [["s", 1, 0], ["t", 1, 0]],
    )
    assert sizes(model) == {"s/c": [(8, 8), (6, 6)], "t/c": [(8, 8), (6, 6)]}


def test_wrappers_hand_on_what_they_are_applied_to() -> None:
    def wrapped(class_name: str, name: str, inner: Entry) -> Entry:
        return layer(class_name, name, layer=inner)

    model = sequential(
        "m",
        entry("x", 5, 16, 12, 3),
        wrapped("TimeDistributed", "t", conv("a")),
        wrapped("TimeDistributed", "u", wrapped("SpectralNormalization", "n", conv("b"))),
        layer("Reshape", "r", target_shape=[5, -1]),
        layer("Bidirectional", "l", merge_mode="concat", layer=layer("LSTM", "r", units=6, return_sequences=True)),
        layer("Reshape", "q", target_shape=[5, 4, -1]),
        conv("c"),
        wrapped("Mystery", "w", conv("d")),
        conv("e"),
    )
    assert sizes(model) == {"t/a": [(16, 12)], "u/n/b": [(8, 6)], "c": [(5, 4)], "w/d": [], "e": []}


def test_the_pointwise_kernel_of_a_separable_layer_sees_what_the_depthwise_one_leaves() -> None:
    said = {"filters": 3, "kernel_size": [3, 3], "strides": [2, 2], "padding": "valid"}
    model = sequential("m", entry("x", 16, 9, 3), layer("SeparableConv2D", "s", **said), conv("c"))
    layers, _ = parse_layers(json.dumps(model))
    assert known(layers[0], "depthwise_kernel") == [(16, 9)]
    assert known(layers[0], "pointwise_kernel") == known(layers[1]) == [(7, 4)]


# --------------------------------------------------------------------------------------------------------------- rules

LAST = (None, 10, 7, 4)


@pytest.mark.parametrize(
    ("class_name", "config", "inputs", "expected"),
    [
        (
            "Conv2D",
            {"kernel_size": [3, 3], "strides": [2, 2], "padding": "valid", "filters": 5},
            [LAST],
            (None, 4, 3, 5),
        ),
        ("Conv2D", {"kernel_size": [3, 3], "strides": [2, 2], "padding": "same"}, [LAST], (None, 5, 4, None)),
        ("Conv2D", {"kernel_size": [11, 3], "strides": 1, "padding": "valid"}, [LAST], None),
        ("Conv2D", {"kernel_size": [3, 3], "strides": 1, "padding": "odd"}, [LAST], None),
        ("Conv2D", {"kernel_size": [3, 3], "padding": "same"}, [LAST], None),
        ("Conv2D", {"kernel_size": [3, 3], "strides": 1, "padding": "same"}, [(None, 10, 4)], None),
        (
            "Conv2D",
            {"kernel_size": [3, 3], "strides": 1, "padding": "same"},
            [(2, None, *LAST[1:])],
            (2, None, 10, 7, None),
        ),
        ("Conv1D", {"kernel_size": 3, "strides": 2, "padding": "causal", "filters": 2}, [(None, 9, 4)], (None, 5, 2)),
        (
            "Convolution2D",
            {"nb_row": 3, "nb_col": 2, "nb_filter": 6, "subsample": [1, 1], "border_mode": "full"},
            [LAST],
            (None, 12, 8, 6),
        ),
        (
            "DepthwiseConv2D",
            {"kernel_size": 3, "strides": 1, "padding": "same", "depth_multiplier": 3},
            [LAST],
            (None, 10, 7, 12),
        ),
        (
            "Conv2DTranspose",
            {"kernel_size": [3, 2], "strides": [2, 3], "padding": "valid", "filters": 2},
            [LAST],
            (None, 21, 21, 2),
        ),
        (
            "Conv2DTranspose",
            {"kernel_size": 3, "strides": 2, "padding": "same", "output_padding": 1, "filters": 2},
            [LAST],
            (None, 20, 14, 2),
        ),
        ("Deconvolution2D", {"output_shape": [None, 3, 14, 14]}, [LAST], (None, 3, 14, 14)),
        ("MaxPooling2D", {"pool_size": [2, 2], "strides": None, "padding": "same"}, [LAST], (None, 5, 4, 4)),
        ("AveragePooling2D", {"pool_size": [3, 3], "strides": [2, 2], "padding": "valid"}, [LAST], (None, 4, 3, 4)),
        ("MaxPooling1D", {"pool_length": 2, "stride": 2, "border_mode": "valid"}, [(None, 9, 4)], (None, 4, 4)),
        ("GlobalAveragePooling2D", {"keepdims": True}, [LAST], (None, 1, 1, 4)),
        ("GlobalMaxPooling2D", {"data_format": "channels_first"}, [LAST], (None, 10)),
        ("AdaptiveMaxPooling2D", {"output_size": [3, 5]}, [LAST], (None, 3, 5, 4)),
        ("ZeroPadding2D", {"padding": [[1, 2], [0, 3]]}, [LAST], (None, 13, 10, 4)),
        ("ZeroPadding2D", {"padding": [1, 2]}, [LAST], (None, 12, 11, 4)),
        ("ZeroPadding2D", {"padding": [1, 2, 3, 4]}, [LAST], (None, 13, 14, 4)),
        ("ZeroPadding2D", {"padding": {"top_pad": 1, "right_pad": 2}}, [LAST], (None, 11, 9, 4)),
        ("ZeroPadding1D", {"padding": [1, 2]}, [(None, 9, 4)], (None, 12, 4)),
        ("ZeroPadding1D", {"padding": 2}, [(None, 9, 4)], (None, 13, 4)),
        ("ZeroPadding3D", {"padding": [1, 2, 3]}, [(None, 5, 5, 5, 2)], (None, 7, 9, 11, 2)),
        ("Cropping2D", {"cropping": [[5, 5], [0, 0]]}, [LAST], None),
        ("Cropping2D", {"cropping": [[5, -5], [0, 0]]}, [LAST], None),
        ("UpSampling2D", {"size": [2, 3], "data_format": "channels_first"}, [LAST], (None, 10, 14, 12)),
        ("Resizing", {"height": 5, "width": 6}, [LAST], (None, 5, 6, 4)),
        ("RandomCrop", {"height": 5, "width": "6"}, [LAST], (None, 5, None, 4)),
        ("RandomHeight", {"factor": 0.3}, [LAST], (None, None, 7, 4)),
        ("Flatten", {}, [LAST], (None, 280)),
        ("Flatten", {}, [(None, None, 3)], (None, None)),
        ("Reshape", {"target_shape": [-1, 20]}, [LAST], (None, 14, 20)),
        ("Reshape", {"target_shape": [-1, 20]}, [(None, None, 3)], (None, None, 20)),
        ("Reshape", {"target_shape": [3, 20]}, [LAST], None),
        ("Reshape", {"target_shape": [-1, -1]}, [LAST], None),
        ("Permute", {"dims": [3, 1, 2]}, [LAST], (None, 4, 10, 7)),
        ("Permute", {"dims": [3, 3, 2]}, [LAST], None),
        ("RepeatVector", {"n": 3}, [(None, 4)], (None, 3, 4)),
        ("Dense", {"units": 9}, [LAST], (None, 10, 7, 9)),
        ("Embedding", {"output_dim": 8}, [(None, 100)], (None, 100, 8)),
        ("MultiHeadAttention", {"output_shape": None}, [LAST, LAST], LAST),
        ("Add", {}, [LAST, (None, 1, 7, 1)], LAST),
        ("Add", {}, [LAST, None], None),
        ("Add", {}, [LAST, (None, 7, 4)], None),
        ("Multiply", {}, [LAST, (None, 9, 7, 4)], None),
        ("Average", {}, [LAST], None),
        ("Concatenate", {"axis": 1}, [LAST, LAST], (None, 20, 7, 4)),
        ("Concatenate", {"axis": -1}, [LAST, None], (None, 10, 7, None)),
        ("Concatenate", {"axis": 4}, [LAST, LAST], None),
        ("Merge", {"mode": "ave"}, [LAST, LAST], LAST),
        ("Merge", {"mode": "dot"}, [LAST, LAST], None),
        (
            "GRU",
            {"units": 5, "return_sequences": True, "return_state": True},
            [(None, 9, 4)],
            [(None, 9, 5), (None, 5)],
        ),
        ("LSTM", {"units": 5, "return_state": True}, [(None, 9, 4)], [(None, 5)] * 3),
        (
            "ConvLSTM2D",
            {"kernel_size": 3, "strides": 1, "padding": "valid", "filters": 2},
            [(None, 6, *LAST[1:])],
            (None, 8, 5, 2),
        ),
        ("Lambda", {"output_shape": [3]}, [LAST], None),
        ("BatchNormalization", {}, [None], None),
        ("BatchNormalization", {}, [], None),
    ],
)
def test_the_shape_that_comes_out(class_name: str, config: Entry, inputs: list[Any], expected: Any) -> None:
    found = output_shapes(Call(class_name, config, tuple(inputs)))
    assert found == (tuple(expected) if isinstance(expected, list) else (expected,))


@pytest.mark.parametrize("class_name", sorted(RULES))
@pytest.mark.parametrize(
    "value", [None, -1, 0, True, "3", 1.5, 10**30, [], [[]], {}, [1] * 100, [10**30] * 2, [None, "x"]], ids=str
)
def test_no_rule_stumbles_over_what_is_no_configuration(class_name: str, value: Any) -> None:
    words = (
        "kernel_size strides padding dilation_rate filters units pool_size size dims target_shape n axis mode height"
    )
    words += " width cropping output_padding depth_multiplier output_shape output_dim data_format function node_def"
    config = dict.fromkeys(words.split(), value)
    for shapes in ((LAST,), (LAST, (None, 7, 4)), ((None,) * 3,), ((None,),), ((),), (None,), ()):
        for shape in output_shapes(Call(class_name, config, shapes)):
            assert shape is None or all(n is None or 0 < n < 1 << 31 for n in shape)


# -------------------------------------------------------------------------------------------------------------- hostile


def chain(count: int, *, closed: bool = False) -> Entry:
    layers = [
        conv(f"c{n}", nodes=[old(f"c{n - 1}" if n else f"c{count - 1}" if closed else "x")], strides=1)
        for n in range(count)
    ]
    return functional("m", [entry("x", 32, 32, 3), *layers], [[f"c{count - 1}", 0, 0]])


def test_a_chain_of_forty_thousand_layers_is_followed() -> None:
    layers, problems = parse_layers(json.dumps(chain(40_000)))
    assert problems == ()
    assert len(layers) == 40_001
    assert {one.input_shapes for one in layers if one.class_name == "Conv2D"} == {((None, 32, 32, 3),)}


@pytest.mark.parametrize("count", [1, 2, 5_000])
def test_layers_that_depend_on_themselves_have_no_size_and_are_told(count: int) -> None:
    layers, problems = parse_layers(json.dumps(chain(count, closed=True)))
    assert {one.input_shapes for one in layers} == {()}
    assert problems == ("m: layers depend on their own output: what goes into them is not followed",)


def doubled(depth: int, *, growing: bool) -> Entry:
    """A model whose innermost layer is called 2^depth times, if need be at as many sizes."""
    model = functional("s0", [entry("x", None, None, 3), conv("c", nodes=[old("x")], strides=1)], [["c", 0, 0]])
    for level in range(depth):
        pad = layer("ZeroPadding2D", "p", nodes=[old(("s", 0))], padding=[[2**level if growing else 0, 0], [0, 0]])
        inner = {**model, "name": "s", "inbound_nodes": [old("x"), old("p")]}
        size = 8 if level == depth - 1 else None
        model = functional(f"s{level + 1}", [entry("x", size, size, 3), inner, pad], [["s", 1, 0]])
    return model


def test_models_called_twice_in_models_called_twice_take_no_longer_for_it() -> None:
    ((_, found),) = sizes(doubled(30, growing=False)).items()
    assert found == [(8, 8)]


def test_models_called_at_ever_more_sizes_are_given_up_with_a_word() -> None:
    layers, problems = parse_layers(json.dumps(doubled(30, growing=True)))
    assert {one.input_shapes for one in layers} == {()}
    assert "the configuration: its models have too many calls: sizes are not followed" in problems


def test_a_layer_with_very_many_sizes_is_reported_at_some() -> None:
    inputs = [entry(f"x{n}", 8 + n, 8, 3) for n in range(300)]
    model = functional("m", [*inputs, conv("c", nodes=[old(f"x{n}") for n in range(300)])], [["c", 0, 0]])
    layers, problems = parse_layers(json.dumps(model))
    assert len(layers[-1].input_shapes) == 100
    assert problems == ("c: is called at over 100 sizes: the rest are left out",)


@pytest.mark.parametrize("depth", [60, 10_000])
def test_models_nested_too_deeply_are_refused(depth: int) -> None:
    text = '{"class_name": "Sequential", "config": {"layers": [' * depth + json.dumps(conv("c")) + "]}}" * depth
    with pytest.raises(CorruptCheckpointError, match="nests"):
        parse_layers(text)


def test_a_configuration_of_very_many_empty_layers_is_refused() -> None:
    with pytest.raises(CorruptCheckpointError, match="layers"):
        parse_layers('{"class_name": "Sequential", "config": {"layers": [' + "{}," * 200_000 + "{}]}}")
    with pytest.raises(CorruptCheckpointError, match="too long"):
        parse_layers("[" + " " * (1 << 25) + "]")


def test_a_layer_of_very_many_calls_is_given_up_with_a_word() -> None:
    model = functional("m", [entry("x", 8, 8, 3), conv("c", nodes=[[]] * 500_000)], [])
    layers, problems = parse_layers(json.dumps(model))
    assert layers[-1].input_shapes == ()
    assert len(problems) == 1
    assert "too many calls" in problems[0]


@pytest.mark.parametrize(
    "shape",
    [
        [None, 10**30, 8, 3],
        [None, "8", 8, 3],
        [None, 8.0, 8, 3],
        [None, True, 8, 3],
        [None, -8, 8, 3],
        [None, [8], 8, 3],
        [8] * 1000,
    ],
    ids=["absurd", "string", "float", "truth value", "negative", "list", "too many axes"],
)
@pytest.mark.parametrize(
    "where", ["batch_input_shape", "batch_shape", "build_input_shape", "build_config", "keras tensor"]
)
def test_impossible_lengths_are_left_out_and_told(where: str, shape: list[Any]) -> None:
    if where == "keras tensor":
        stated = new("x")
        stated["args"][0]["config"]["shape"] = shape
        model = functional("m", [conv("c", nodes=[stated])], [])
    elif where == "build_input_shape":
        model = sequential("c", conv("c"), build_input_shape=shape)
    else:
        model = sequential("m", conv("c", **{where: {"input_shape": shape} if where == "build_config" else shape}))
    layers, problems = parse_layers(json.dumps(model))
    assert known(layers[0]) == []
    assert problems == ("c: its input shape is stated with lengths that cannot be: they are left out",)


def test_sizes_that_grow_beyond_belief_are_unknown() -> None:
    up = [layer("UpSampling2D", f"u{n}", size=[1 << 20, 2]) for n in range(3)]
    assert sizes(sequential("m", entry("x", 8, 8, 3), *up, conv("c"))) == {"c": []}


@pytest.mark.parametrize(
    "nodes",
    [
        5,
        "x",
        {"x": 1},
        [[["nowhere", 0, 0, {}]]],
        [[["x", 7, 0, {}]]],
        [[["x", 0, 9, {}]]],
        [[["x", -1, 0, {}]]],
        [[["x", 10**30, 0]]],
    ],
    ids=str,
)
def test_references_to_nothing_lead_nowhere(nodes: Any) -> None:
    model = functional(
        "m", [entry("x", 8, 8, 3), {**conv("c"), "inbound_nodes": nodes}], [["c", 0, 0], "y", 3, {"a": None}]
    )
    assert sizes(model) == {"c": []}


def test_two_layers_of_one_name_do_not_confuse_the_first() -> None:
    layers = [
        entry("x", 8, 8, 3),
        conv("c", nodes=[old("x")]),
        conv("c", nodes=[old("c")]),
        conv("d", nodes=[old("c")]),
    ]
    found, _ = parse_layers(json.dumps(functional("m", layers, [])))
    assert [known(one) for one in found[1:]] == [[(8, 8)], [(4, 4)], [(4, 4)]]


# --------------------------------------------------------------------------------------------- origin of the padding


@pytest.mark.parametrize(
    ("size", "stride", "taps", "transposed", "origin"),
    [
        ((9, 9), 2, 3, False, "stored"),
        (None, 2, 3, False, "assumed"),
        (None, 1, 3, False, "stored"),
        (None, 2, 1, False, "stored"),
        (None, 2, 3, True, "stored"),
    ],
    ids=["size stored", "size assumed", "stride 1", "one tap", "transposed"],
)
def test_amounts_of_same_padding_are_assumed_where_they_follow_from_an_assumed_size(
    size: Any, stride: int, taps: int, transposed: bool, origin: str
) -> None:
    name = "Conv2DTranspose" if transposed else "Conv2D"
    hint = {"batch_input_shape": [None, *size, 3]} if size else {}
    one = layer(name, "c", filters=3, kernel_size=[taps] * 2, strides=[stride] * 2, padding="same", **hint)
    (found,), _ = parse_layers(json.dumps(sequential("m", one)))
    (facts,) = geometries_of(found, "kernel", (taps, taps, 3, 3))
    assert resolve((taps, taps), [("stored", facts)]).origin["padding"] == origin
