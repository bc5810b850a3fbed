"""TorchScript and torch.export archives: read as data, with the geometry that their code and their graph hold."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from convsv.checkpoints import open_checkpoint
from convsv.checkpoints._torch_script import MAX_CODE, _classes
from convsv.checkpoints.discovery import Discovery, discover
from convsv.checkpoints.sources import GeometryOptions
from convsv.errors import CorruptCheckpointError, UnsafeCheckpointError
from convsv.geometry import Geometry
from networks import RESNET18_GEOMETRY, Conv2dSame, ResNet18, StdConv2d, randomised

FIELDS = ("stride", "padding", "padding_mode", "dilation", "groups", "transposed", "output_padding")


class Network(nn.Module):
    """Every kind of geometry in one network."""

    def __init__(self) -> None:
        super().__init__()
        self.ring = nn.Conv2d(3, 4, 3, stride=2, padding=(1, 2), padding_mode="circular")
        self.bn = nn.BatchNorm2d(4, eps=0.25)
        self.up = nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1, groups=2)
        self.blocks = nn.Sequential(
            nn.Conv2d(6, 6, 3, padding="same", groups=3, dilation=2),
            nn.BatchNorm2d(6),
            nn.Conv2d(6, 6, (1, 5), padding=(0, 1), padding_mode="reflect"),
            nn.ReLU(),
        )
        self.line = nn.Conv1d(6, 2, 4, stride=3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.blocks(self.up(self.bn(self.ring(x))))
        return self.line(y.mean(2))


EXPECTED: dict[str, tuple[Any, ...]] = {
    "ring": ((2, 2), ((1, 1), (2, 2)), "circular", (1, 1), 1, False, (0, 0)),
    "up": ((2, 2), ((1, 1), (1, 1)), "zeros", (1, 1), 2, True, (1, 1)),
    "blocks.0": ((1, 1), ((2, 2), (2, 2)), "zeros", (2, 2), 3, False, (0, 0)),
    "blocks.2": ((1, 1), ((0, 0), (1, 1)), "reflect", (1, 1), 1, False, (0, 0)),
    "line": ((3,), ((0, 0),), "zeros", (1,), 1, False, (0,)),
}
SIZES = {"ring": (16, 20), "up": (8, 11), "blocks.0": (16, 22), "blocks.2": (16, 22), "line": (20,)}


def scripted(model: nn.Module, path: Path, _: torch.Tensor) -> None:
    torch.jit.save(torch.jit.script(model), path)


def jit_traced(model: nn.Module, path: Path, x: torch.Tensor) -> None:
    torch.jit.save(torch.jit.trace(model, x), path)


def exported(model: nn.Module, path: Path, x: torch.Tensor) -> None:
    torch.export.save(torch.export.export(model, (x,)), path)


def lowered(model: nn.Module, path: Path, x: torch.Tensor) -> None:
    torch.export.save(torch.export.export(model, (x,)).run_decompositions(), path)


Save = Callable[[nn.Module, Path, torch.Tensor], None]
SAVES: dict[str, Save] = {"scripted": scripted, "traced": jit_traced, "exported": exported}


def saved(save: Save, model: nn.Module, folder: Path, *shape: int) -> Path:
    path = folder / "m.pt2"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(model.eval(), path, torch.zeros(2, *shape))
    return path


def found(save: Save, model: nn.Module, folder: Path, *shape: int, **options: Any) -> Discovery:
    return discover(open_checkpoint(saved(save, model, folder, *shape)), geometry=GeometryOptions(**options))


def stated(geometry: Geometry) -> tuple[Any, ...]:
    return tuple(getattr(geometry, name) for name in FIELDS)


@pytest.mark.parametrize("how", SAVES)
def test_every_weight_and_its_geometry_is_read(how: str, tmp_path: Path) -> None:
    model = Network()
    layers = found(SAVES[how], model, tmp_path, 3, 16, 20).layers
    assert {layer.name: stated(layer.geometry) for layer in layers} == EXPECTED
    for layer in layers:
        assert {layer.geometry.origin[name] for name in FIELDS} == {"stored"}
        np.testing.assert_array_equal(layer.read(), model.get_submodule(layer.name).weight.detach().numpy())  # type: ignore[union-attr]


def test_only_an_exported_program_tells_sizes(tmp_path: Path) -> None:
    for how, save in SAVES.items():
        geometries = {layer.name: layer.geometry for layer in found(save, Network(), tmp_path, 3, 16, 20).layers}
        assert {g.origin["size"] for g in geometries.values()} == {"stored" if how == "exported" else "assumed"}
    assert {name: geometry.size for name, geometry in geometries.items()} == SIZES


@pytest.mark.parametrize("save", [exported, lowered])
def test_an_exported_resnet_needs_no_options(save: Save, tmp_path: Path) -> None:
    layers = found(save, randomised(ResNet18(10, 4)), tmp_path, 3, 224, 224, fold="known").layers
    assert {
        layer.name: (layer.geometry.size[0], layer.geometry.stride[0], layer.geometry.padding[0][0]) for layer in layers
    } == RESNET18_GEOMETRY
    assert not any(layer.geometry.guessed(*layer.geometry.origin) for layer in layers)
    for layer in layers:
        assert layer.folded is not None
        assert layer.folded.name == layer.name.replace("downsample.0", "downsample.1").replace("conv", "bn")
        assert layer.folded.known


def test_the_norms_of_a_scripted_network_are_those_of_its_sequences(tmp_path: Path) -> None:
    layers = {
        layer.name: layer.folded for layer in found(scripted, Network(), tmp_path, 3, 16, 20, fold="known").layers
    }
    assert {name: folded.name for name, folded in layers.items() if folded} == {"blocks.0": "blocks.1"}
    folded = layers["blocks.0"]
    assert folded is not None
    assert (folded.known, folded.epsilon) == (True, 1e-5)


# -------------------------------------------------------------------------------------------------------- the graph


class Functional(nn.Module):
    """Parameters of its own, one used at two sizes; padding of its own and of somebody else; a computed weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.ones(3, 3, 3, 3)), nn.Parameter(torch.ones(3, 3, 1, 1))
        self.same, self.std = Conv2dSame(3, 3, 3, stride=2), StdConv2d(3, 3, 3, padding=1)
        self.outside = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(3, 3, 3))
        self.line = nn.Parameter(torch.ones(2, 3, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.conv2d(functional.pad(x, (1, 1, 1, 1)), self.first)
        x = functional.conv2d(x[:, :, ::2, ::2], self.first, padding=1) + functional.conv2d(x, self.second, stride=2)
        return functional.conv1d(self.outside(self.std(self.same(x))).flatten(2), self.line)


def test_functions_and_several_calls_in_a_graph(tmp_path: Path) -> None:
    layers = {layer.name: layer for layer in found(exported, Functional(), tmp_path, 3, 12, 12).layers}
    seen = {name: (layer.geometry.size[0], layer.geometry.padding[-1]) for name, layer in layers.items()}
    assert seen == {
        "first@12x12": (12, (1, 1)),
        "first@6x6": (6, (1, 1)),
        "second": (12, (0, 0)),
        "same": (6, (0, 1)),
        "std": (3, (1, 1)),
        "outside.1": (5, (0, 0)),
        "line": (9, (0, 0)),
    }


def test_dynamic_axes_have_no_length(tmp_path: Path) -> None:
    axes = {0: torch.export.Dim("b"), 2: torch.export.Dim("h", min=8, max=64)}
    program = torch.export.export(nn.Conv2d(3, 4, 3, stride=2), (torch.ones(2, 3, 16, 16),), dynamic_shapes=(axes,))
    torch.export.save(program, tmp_path / "m.pt2")
    (layer,) = discover(open_checkpoint(tmp_path / "m.pt2")).layers
    assert (layer.geometry.origin["size"], layer.geometry.origin["stride"]) == ("assumed", "stored")


def test_a_norm_whose_input_is_taken_twice_is_not_the_layers(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return self.bn(y) + y

    (layer,) = found(exported, Twice(), tmp_path, 3, 5, 5, fold="known").layers
    assert layer.folded is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtypes_and_strides_of_exported_weights(dtype: torch.dtype, tmp_path: Path) -> None:
    model = nn.Conv2d(3, 4, 3).to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    program = torch.export.export(model, (torch.ones(2, 3, 5, 5, dtype=dtype),))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, tmp_path / "m.pt2")
    (layer,) = discover(open_checkpoint(tmp_path / "m.pt2")).layers
    assert layer.dtype == str(dtype).removeprefix("torch.")
    np.testing.assert_array_equal(layer.kernel()[0], model.weight.detach().double().numpy())


def test_tied_weights_are_one(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3))
    model[1].weight = model[0].weight
    checkpoint = open_checkpoint(saved(exported, model, tmp_path, 3, 9, 9))
    first, second = (tensor for tensor in checkpoint.tensors if tensor.key.endswith("weight"))
    assert first.identity == second.identity


# --------------------------------------------------------------------------------------------------- hostile archives


def rewritten(path: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """Copy an archive entry by entry, each changed or left out."""
    target = path.with_name("changed.pt2")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as out:
        for info in source.infolist():
            data = change(info.filename, source.read(info))
            if data is not None:
                out.writestr(info.filename, data)
    return target


def edited(path: Path, ending: str, change: Callable[[Any], Any]) -> Path:
    def apply(name: str, data: bytes) -> bytes:
        return json.dumps(change(json.loads(data))).encode() if name.endswith(ending) else data

    return rewritten(path, apply)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """An exported network of one convolution."""
    return saved(exported, nn.Conv2d(3, 4, 3, stride=2), tmp_path, 3, 9, 9)


def meta(**changes: Any) -> Callable[[Any], Any]:
    def change(document: Any) -> Any:
        document["config"]["weight"]["tensor_meta"].update(changes)
        return document

    return change


PROBLEMS: list[tuple[str, dict[str, Any], str]] = [
    ("negative size", {"sizes": [{"as_int": -4}] * 4}, "negative"),
    ("huge", {"sizes": [{"as_int": 1 << 40}] * 4}, "too large"),
    ("beyond its storage", {"storage_offset": {"as_int": 8}}, "reaches beyond its storage"),
    ("expanded", {"strides": [{"as_int": 0}] * 4}, "expanded view"),
    ("words for numbers", {"sizes": "4"}, "malformed"),
    ("expression for a number", {"sizes": [{"as_expr": {"expr_str": "s0"}}]}, "malformed"),
    ("truth for a number", {"storage_offset": {"as_int": True}}, "malformed"),
    ("unknown dtype", {"dtype": 99}, "unknown number 99"),
    ("sparse", {"layout": 1}, "strided"),
]


@pytest.mark.parametrize(("changes", "words"), [p[1:] for p in PROBLEMS], ids=[p[0] for p in PROBLEMS])
def test_a_weight_that_is_no_honest_array_is_a_problem(changes: dict[str, Any], words: str, archive: Path) -> None:
    checkpoint = open_checkpoint(edited(archive, "_weights_config.json", meta(**changes)))
    (weight,) = (tensor for tensor in checkpoint.tensors if tensor.key == "weight")
    assert weight.problem is not None
    assert words in weight.problem


def test_a_weight_that_is_a_pickle_is_not_opened(archive: Path) -> None:
    def change(document: Any) -> Any:
        document["config"]["weight"]["use_pickle"] = True
        return document

    checkpoint = open_checkpoint(edited(archive, "_weights_config.json", change))
    assert [tensor.problem for tensor in checkpoint.tensors if tensor.key == "weight"] == [
        "is stored as a pickle inside the archive"
    ]


@pytest.mark.parametrize("name", ["weight_9", "../weight_0", "/etc/passwd", 3, None])
def test_bytes_are_looked_for_in_the_archive_only(name: object, archive: Path) -> None:
    def change(document: Any) -> Any:
        document["config"]["weight"]["path_name"] = name
        return document

    with pytest.raises(CorruptCheckpointError, match="lacks the data of weight"):
        open_checkpoint(edited(archive, "_weights_config.json", change))


def test_descriptions_that_are_not_json_are_refused(archive: Path) -> None:
    for text in (b"{", b"\xff", b"[" * 100_000):
        for ending in ("_weights_config.json", "models/model.json"):
            with pytest.raises(CorruptCheckpointError, match="not JSON"):
                open_checkpoint(rewritten(archive, lambda n, d, t=text, e=ending: t if n.endswith(e) else d))  # type: ignore[misc]


def test_a_description_beyond_all_measure_is_refused(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convsv.checkpoints._torch_export.MAX_JSON", 100)
    with pytest.raises(UnsafeCheckpointError):
        open_checkpoint(archive)


def test_an_archive_without_its_graph_says_what_is_not_known(archive: Path) -> None:
    path = rewritten(archive, lambda name, data: None if name.endswith("models/model.json") else data)
    checkpoint = open_checkpoint(path)
    assert checkpoint.problems == ("has no graph of the model 'model': strides and paddings are not known",)
    (layer,) = discover(checkpoint).layers
    assert layer.geometry.origin["stride"] == "assumed"


def scrambled(value: Any, seed: int) -> Any:
    """The document with one of its parts replaced by something of another type."""
    spots: list[tuple[Any, Any]] = []
    pending = [value]
    while pending:
        item = pending.pop()
        keys = list(item) if isinstance(item, dict) else range(len(item)) if isinstance(item, list) else ()
        spots += [(item, key) for key in keys]
        pending += [item[key] for key in keys]
    rng = np.random.default_rng(seed)
    owner, key = spots[rng.integers(len(spots))]
    owner[key] = [None, [], {}, "x", -1, 1 << 70, True, [[]], {"as_int": "x"}, float("nan")][rng.integers(10)]
    return value


@pytest.mark.parametrize("seed", range(150))
def test_a_graph_of_nonsense_is_passed_over(seed: int, archive: Path) -> None:
    checkpoint = open_checkpoint(edited(archive, "models/model.json", lambda document: scrambled(document, seed)))
    (layer,) = discover(checkpoint).layers
    assert layer.geometry.stride in {(2, 2), (1, 1)}


@pytest.mark.parametrize(
    "text",
    [
        "class A(Module):\n  def forward(self: A,\n    x: Tensor) -> T:\n    w = self.w\n    return torch.conv2d(x, w",
        "class A(Module):\n" + "  def f(self: A) -> T:\n    return torch.conv2d(" * 20_000,
        "class A(Module):\n  def f(self: A) -> T:\n    return " + "torch.conv2d(" * 200_000,
        "class A(Module):\n  stride : Final[T] = (" + "1, " * 500_000 + "1)\n",
        "class A(Module):\n  stride : Final[T] = " + "9" * 1_000_000 + "\n",
        "class A(Module):\n" * 100_000,
        'class A(Module):\n  def f(self: A) -> T:\n    _0 = torch.conv2d(x, self.w, "' + '\\"' * 100_000,
    ],
    ids=["cut off", "many functions", "nested calls", "a long tuple", "a long number", "many classes", "a long string"],
)
def test_code_of_nonsense_says_nothing_and_takes_no_time(text: str) -> None:
    assert len(text) < MAX_CODE
    for _, constants in _classes(text):
        assert constants.get("stride") in {None, 1} or isinstance(constants["stride"], tuple)


CALLS: list[tuple[str, str, dict[str, Any]]] = [
    ("defaults", "torch.conv2d(x, self.w)", {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}),
    ("inside a call", "torch.relu(torch.conv1d(torch.mul(x, 2), self.w, None, [3], [4]))",
     {"stride": (3,), "padding": (4,)}),
    ("transposed", "torch.conv_transpose2d(x, self.w, None, [2, 2], [1, 1], [1, 0], 3, [2, 2])",
     {"transposed": True, "output_padding": (1, 0), "groups": 3, "dilation": (2, 2)}),
    ("another module's weight", "torch.conv2d(x, self.a.w, None, [2, 2])", {}),
    ("a computed weight", "torch.conv2d(x, torch.mul(self.w, 2), None, [2, 2])", {}),
    ("a computed stride", "torch.conv2d(x, self.w, None, s)", {"stride": None, "padding": 0}),
]  # fmt: skip


@pytest.mark.parametrize(("call", "expected"), [c[1:] for c in CALLS], ids=[c[0] for c in CALLS])
def test_what_a_traced_call_says(call: str, expected: dict[str, Any]) -> None:
    text = f"class A(Module):\n  def forward(self: A,\n    x: Tensor) -> Tensor:\n    return {call}\n"
    ((_, constants),) = _classes(text)
    assert {key: constants[key] for key in expected} == expected
    assert expected or not constants


@pytest.mark.parametrize(
    ("pad", "padding", "mode"),
    [
        ("torch.pad(x, [1, 1, 2, 2])", (2, 1), "zeros"),
        ('torch.pad(x, [1, 1, 2, 2], "reflect")', (2, 1), "reflect"),
        ('torch.pad(x, [1, 1, 2, 2], "constant", 0.)', (2, 1), "zeros"),
        ("torch.constant_pad_nd(x, [1, 1, 2, 2], 0)", (2, 1), "zeros"),
        ("torch.constant_pad_nd(x, [1, 1, 2, 2], 1)", None, None),
        ("torch.pad(x, [0, 1, 0, 1])", None, None),
        ('torch.pad(x, [1, 1, 2, 2], "odd")', None, None),
        ("torch.pad(x, n)", None, None),
    ],
)
def test_padding_in_front_of_a_traced_call(pad: str, padding: object, mode: object) -> None:
    call = "torch._convolution(_0, self.w, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, False, False, True, True)"
    text = f"class A(Module):\n  def forward(self: A,\n    x: Tensor) -> Tensor:\n    _0 = {pad}\n    return {call}\n"
    ((_, constants),) = _classes(text)
    assert (constants["padding"], constants["padding_mode"]) == (padding, mode)


def test_two_calls_that_disagree_say_nothing(tmp_path: Path) -> None:
    call = "    _{0} = torch.conv2d(x, self.w, None, [{0}, {0}])\n"
    head = "class A(Module):\n  def forward(self: A,\n    x: Tensor) -> Tensor:\n"
    assert dict(_classes(head + call.format(1) + call.format(2)))["A"] == {}
    assert dict(_classes(head + call.format(2) + call.format(2)))["A"]["stride"] == (2, 2)


def frozen(model: nn.Module, path: Path, _: torch.Tensor) -> None:
    torch.jit.save(torch.jit.freeze(torch.jit.script(model)), path)


def test_weights_that_were_frozen_into_the_code_are_read(tmp_path: Path) -> None:
    model = randomised(Network())
    layers = found(frozen, model, tmp_path, 3, 16, 20).layers
    assert [stated(layer.geometry) for layer in layers] == list(EXPECTED.values())
    assert [layer.name for layer in layers] == [f"CONSTANTS.c{number}" for number in (0, 2, 4, 6, 8)]
    assert {layer.geometry.origin[name] for layer in layers for name in FIELDS} == {"stored"}
    # Freezing folds the norms into the convolutions in front of them, in single precision.
    (tmp_path / "exported").mkdir()
    whole = {
        layer.name: layer for layer in found(exported, model, tmp_path / "exported", 3, 16, 20, fold="known").layers
    }
    for layer, name in zip(layers, EXPECTED, strict=True):
        np.testing.assert_allclose(layer.kernel(), whole[name].kernel(), rtol=1e-5, atol=1e-7)


def test_frozen_weights_are_not_written_where_they_stand(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(saved(frozen, Network(), tmp_path, 3, 16, 20))
    assert [tensor.place for tensor in checkpoint.tensors if tensor.key.startswith("CONSTANTS")] == [None] * 10


def test_compressed_constants_are_said_to_be_left_out(tmp_path: Path) -> None:
    path = saved(frozen, Network(), tmp_path, 3, 16, 20)
    target = tmp_path / "packed.pt"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as out:
        for info in source.infolist():
            packed = info.filename.endswith("constants.pkl")
            method = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
            out.writestr(info.filename, source.read(info), compress_type=method)
    assert open_checkpoint(target).problems == (
        "the constants of its code are compressed: weights among them are not listed",
    )
