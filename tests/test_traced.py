"""Which layer of a checkpoint a traced layer is, and what is said about those that only one of both has."""

from __future__ import annotations

from dataclasses import replace

import pytest

from convsv.checkpoints import ModuleFacts, Normalisation, open_checkpoint
from convsv.checkpoints.discovery import discover
from convsv.checkpoints.sources import GeometryOptions
from convsv.checkpoints.traced import Stored, Trace, TracedLayer, match
from convsv.geometry import GeometryFacts
from statedicts import checkpoint, contained

CONV = (8, 4, 3, 3)
CALL = GeometryFacts((56, 56), (2, 2), ((1, 1), (1, 1)), "zeros", (1, 1), 1, False, (0, 0))


def seen(*paths: str, shape: tuple[int, ...] = CONV) -> Trace:
    return Trace("net:Net", tuple(TracedLayer(path, "weight", shape, (CALL,)) for path in paths))


def kernels(*paths: str, shape: tuple[int, ...] = CONV, container: tuple[str, ...] = ()) -> list[Stored]:
    return [Stored(path, "weight", shape, container) for path in paths]


def pairs(trace: Trace, stored: list[Stored]) -> dict[str, str]:
    return {stored[place].path: layer.path for place, layer in match(trace, stored)[0].items()}


@pytest.mark.parametrize(
    ("traced", "stored"),
    [
        (("a.conv", "b.conv"), ("a.conv", "b.conv")),
        (("a.conv", "b.conv"), ("net.a.conv", "net.b.conv")),
        (("model.a.conv", "model.b.conv"), ("a.conv", "b.conv")),
        (("", "b.conv"), ("", "b.conv")),
        (("conv", "a.conv"), ("backbone.conv", "backbone.a.conv")),
        (("1.conv", "2.1.conv", "2.2.1.conv"), ("x.1.conv", "x.2.1.conv", "x.2.2.1.conv")),
    ],
    ids=["same paths", "a prefix in the file", "a prefix in the model", "the top", "a name inside another", "nested"],
)
def test_layers_are_matched_by_path(traced: tuple[str, ...], stored: tuple[str, ...]) -> None:
    assert pairs(seen(*traced), kernels(*stored)) == dict(zip(stored, traced, strict=True))


def test_one_prefix_holds_for_a_whole_container() -> None:
    found = pairs(seen("a.conv", "b.conv", "conv"), kernels("net.a.conv", "net.b.conv", "other.conv"))
    assert found == {"net.a.conv": "a.conv", "net.b.conv": "b.conv"}


def test_every_copy_of_a_network_is_matched() -> None:
    stored = [*kernels("conv", container=("model",)), *kernels("net.conv", container=("ema",))]
    matches, problems = match(seen("conv"), stored)
    assert sorted(matches) == [0, 1]
    assert problems == []


def test_what_only_one_of_both_has_is_listed() -> None:
    matches, problems = match(seen("a", "b"), kernels("b", "c"))
    assert list(matches) == [0]
    assert problems == [
        "net:Net: traced layer 'a' of shape (8, 4, 3, 3) is not in the file",
        "net:Net: layer 'c' of shape (8, 4, 3, 3) was not traced",
    ]


def test_another_shape_is_not_the_same_layer() -> None:
    matches, problems = match(seen("a"), kernels("a", shape=(8, 4, 5, 5)))
    assert matches == {}
    assert problems == [
        "net:Net: layer 'a' has shape (8, 4, 5, 5) in the file and (8, 4, 3, 3) in the traced model: not applied"
    ]


def test_of_several_parameters_of_a_module_the_name_decides() -> None:
    trace = Trace("n", tuple(TracedLayer("", name, CONV, (CALL,)) for name in ("first", "second")))
    stored = [Stored("", "second", CONV), Stored("", "first", CONV)]
    assert {p: layer.parameter for p, layer in match(trace, stored)[0].items()} == {0: "second", 1: "first"}


def test_the_norms_keys_become_the_files() -> None:
    norm = Normalisation("model.bn", "model.bn.running_var", "model.bn.weight", 1e-3)
    trace = Trace("n", (TracedLayer("model.conv", "weight", CONV, (CALL,), norm),))
    (found,) = match(trace, kernels("conv"))[0].values()
    assert found.norm == Normalisation("bn", "bn.running_var", "bn.weight", 1e-3)


def test_ten_thousand_layers_of_one_shape_are_matched_at_once() -> None:
    paths = [f"stages.{n}.block.conv" for n in range(10_000)]
    assert len(match(seen(*paths), kernels(*(f"net.{path}" for path in paths)))[0]) == 10_000


# ------------------------------------------------------------------------------------------------------- in discovery


def test_traced_geometry_is_stronger_than_inferred_and_weaker_than_stored() -> None:
    shapes = {"a.weight": (8, 3, 1, 1), "b.weight": (8, 1, 3, 3), "c.weight": (16, 8, 1, 1)}
    trace = Trace(
        "n",
        (
            TracedLayer("b", "weight", (8, 1, 3, 3), (GeometryFacts(groups=1, stride=2),)),
            TracedLayer("c", "weight", (16, 8, 1, 1), (GeometryFacts(stride=3, size=(5, 5)),)),
        ),
    )
    modules = [ModuleFacts("c", "Conv2d", GeometryFacts(stride=1))]
    layers = {
        layer.name: layer.geometry
        for layer in discover(checkpoint(shapes, modules=modules), geometry=GeometryOptions(trace=trace)).layers
    }
    assert (layers["b"].groups, layers["b"].origin["groups"]) == (1, "traced")
    assert (layers["c"].stride, layers["c"].origin["stride"]) == ((1, 1), "stored")
    assert (layers["c"].size, layers["c"].origin["size"]) == ((5, 5), "traced")


@pytest.mark.parametrize(
    ("stored", "line"),
    [
        (GeometryFacts(stride=1, padding=0), "stride 2x2, not 1x1, padding 1:1x1:1, not 0:0x0:0"),
        (GeometryFacts(padding_mode="reflect", groups=2), "padding_mode zeros, not reflect, groups 1, not 2"),
        (GeometryFacts(size=(7, 7), stride=2, padding="same"), None),
        (GeometryFacts(), None),
    ],
    ids=["strides and amounts", "words", "the same in other words", "nothing stored"],
)  # fmt: skip
def test_what_the_model_does_otherwise_than_the_file_says_is_listed(stored: GeometryFacts, line: str | None) -> None:
    call = replace(CALL, size=(55, 55))  # where "same" is one row on each side
    trace = Trace("net:Net", (TracedLayer("conv", "weight", CONV, (call,)),))
    file = checkpoint({"conv.weight": CONV}, modules=[ModuleFacts("conv", "Conv2d", stored)])
    told = f"net:Net: layer 'conv' was traced with {line} as in the file: the file is believed"
    assert discover(file, geometry=GeometryOptions(trace=trace)).problems == ((told,) if line else ())


def test_wrappers_and_containers_do_not_hide_a_layer() -> None:
    file = checkpoint(contained({"module.conv.weight": CONV}, "state_dict"))
    found = discover(file, geometry=GeometryOptions(trace=seen("conv")))
    assert [layer.geometry.size for layer in found.layers] == [(56, 56)]
    assert found.problems == ()


def test_a_size_given_as_an_option_yields_to_the_trace() -> None:
    found = discover(checkpoint({"conv.weight": CONV}), geometry=GeometryOptions(size=(9,), trace=seen("conv")))
    assert found.layers[0].geometry.size == (56, 56)


def test_a_weight_that_the_model_computes_says_so_and_is_not_to_be_written() -> None:
    trace = Trace("n", (TracedLayer("conv", "weight", CONV, (CALL,), computed=True),))
    (layer,) = discover(checkpoint({"conv.weight": CONV}), geometry=GeometryOptions(trace=trace)).layers
    assert "the model computes its weight from what is stored: this is about what is stored" in layer.notes
    # Weights in parts are computed by the reader too.
    parts = {"conv.weight_g": (8, 1, 1, 1), "conv.weight_v": CONV}
    (layer,) = discover(checkpoint(parts), geometry=GeometryOptions(trace=trace)).layers
    assert not any("computes its weight" in note for note in layer.notes)


def test_call_names_are_not_those_of_other_layers() -> None:
    other = GeometryFacts((7, 7), (1, 1), ((1, 1), (1, 1)), "zeros", (1, 1), 1, False, (0, 0))
    strided = GeometryFacts((7, 7), (2, 2), ((1, 1), (1, 1)), "zeros", (1, 1), 1, False, (0, 0))
    trace = Trace("n", (TracedLayer("conv", "weight", CONV, (CALL, other, strided)),))
    shapes = {"conv.weight": CONV, "conv@56x56.weight": CONV}
    layers = discover(checkpoint(shapes), geometry=GeometryOptions(trace=trace)).layers
    assert [layer.name for layer in layers] == ["conv@56x56#2", "conv@7x7", "conv@7x7#2", "conv@56x56"]
    assert {layer.name.removesuffix(layer.call) for layer in layers[:3]} == {"conv"}


def test_files_whose_axes_have_another_order_are_not_matched(sample_checkpoints: object) -> None:
    keras = open_checkpoint(f"{sample_checkpoints}/digits.keras")
    traced = Trace("n", (TracedLayer("stem", "weight", (3, 3, 1, 8), (CALL,)),))
    assert all("traced" not in layer.geometry.origin.values() for layer in discover(
        keras, geometry=GeometryOptions(trace=traced)).layers)  # fmt: skip
