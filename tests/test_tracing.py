"""Tracing: what a running model tells about its convolutions, and what happens when it does not run."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from typer.testing import CliRunner

from convsv.checkpoints.traced import TracedLayer
from convsv.cli import app
from convsv.errors import UsageError
from convsv.geometry import GeometryFacts
from convsv.tracing import InputShape, trace, trace_model
from networks import RESNET18_GEOMETRY, Conv2dSame, ResNet18, StdConv2d, randomised

TESTS = Path(__file__).resolve().parent


def convsv(*args: str) -> Any:
    return CliRunner().invoke(app, list(args))


def traced(model: nn.Module, *shape: int) -> dict[str, TracedLayer]:
    layers = trace_model(model.to("meta"), [torch.empty(1, *shape, device="meta")])
    return {f"{layer.path}.{layer.parameter}".lstrip("."): layer for layer in layers}


def only(model: nn.Module, *shape: int) -> GeometryFacts:
    ((_, layer),) = traced(model, *shape).items()
    (call,) = layer.calls
    return call


class Uses(nn.Module):
    """A module whose forward is a function of itself and its input."""

    def __init__(self, forward: Callable[[Any, torch.Tensor], Any], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.run = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: torch.Tensor) -> Any:
        return self.run(self, x)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to be in, with a module name that is imported anew."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(TESTS))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("users_"):
            del sys.modules[name]


def module(folder: Path, name: str, text: str) -> str:
    (folder / f"users_{name}.py").write_text(textwrap.dedent(text), encoding="utf-8")
    return f"users_{name}"


# ------------------------------------------------------------------------------------------------------------ geometry


def test_a_resnet18_has_its_twenty_published_geometries() -> None:
    with torch.device("meta"):
        found = traced(ResNet18(), 3, 224, 224)
    seen = {key.removesuffix(".weight"): layer.calls for key, layer in found.items()}
    assert seen == {
        name: (GeometryFacts((n, n), (s, s), ((p, p), (p, p)), "zeros", (1, 1), 1, False, (0, 0)),)
        for name, (n, s, p) in RESNET18_GEOMETRY.items()
    }


MODULES: list[tuple[str, nn.Module, tuple[int, ...], GeometryFacts]] = [
    (
        "conv1d",
        nn.Conv1d(4, 6, 5, stride=2, padding=3, dilation=2, groups=2),
        (4, 17),
        GeometryFacts((17,), (2,), ((3, 3),), "zeros", (2,), 2, False, (0,)),
    ),
    (
        "conv3d",
        nn.Conv3d(2, 4, (3, 1, 2), stride=(1, 2, 1), padding=(1, 0, 2)),
        (2, 5, 6, 7),
        GeometryFacts((5, 6, 7), (1, 2, 1), ((1, 1), (0, 0), (2, 2)), "zeros", (1, 1, 1), 1, False, (0, 0, 0)),
    ),
    (
        "transposed",
        nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1, groups=2),
        (6, 7, 8),
        GeometryFacts((7, 8), (2, 2), ((1, 1), (1, 1)), "zeros", (1, 1), 2, True, (1, 1)),
    ),
    (
        "same at an even kernel",
        nn.Conv2d(2, 2, (4, 3), padding="same", dilation=(1, 2)),
        (2, 9, 9),
        GeometryFacts((9, 9), (1, 1), ((1, 2), (2, 2)), "zeros", (1, 2), 1, False, (0, 0)),
    ),
    (
        "valid",
        nn.Conv2d(2, 2, 3, padding="valid"),
        (2, 9, 9),
        GeometryFacts((9, 9), (1, 1), ((0, 0), (0, 0)), "zeros", (1, 1), 1, False, (0, 0)),
    ),
    *[
        (
            f"padding mode {mode}",
            nn.Conv2d(2, 2, 3, padding=(1, 2), padding_mode=mode),
            (2, 9, 11),
            GeometryFacts((9, 11), (1, 1), ((1, 1), (2, 2)), mode, (1, 1), 1, False, (0, 0)),
        )
        for mode in ("zeros", "circular", "reflect", "replicate")
    ],
    (
        "dynamic same padding",
        Conv2dSame(2, 2, 3, stride=2),
        (2, 224, 225),
        GeometryFacts((224, 225), (2, 2), ((0, 1), (1, 1)), "zeros", (1, 1), 1, False, (0, 0)),
    ),
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(("model", "shape", "facts"), [m[1:] for m in MODULES], ids=[m[0] for m in MODULES])
def test_the_geometry_of_a_call_is_recorded(model: nn.Module, shape: tuple[int, ...], facts: GeometryFacts) -> None:
    assert only(model, *shape) == facts


def test_what_a_dynamic_same_layer_pads_depends_on_its_size() -> None:
    assert only(Conv2dSame(2, 2, 3, stride=2), 2, 7, 7).padding == ((1, 1), (1, 1))


def test_padding_by_another_module_is_no_padding_of_the_layer() -> None:
    call = only(nn.Sequential(nn.ReflectionPad2d(2), nn.Conv2d(2, 2, 3)), 2, 9, 9)
    assert (call.size, call.padding, call.padding_mode) == ((13, 13), ((0, 0), (0, 0)), "zeros")


@pytest.mark.parametrize(
    "pad",
    [
        lambda x: functional.pad(x, (1, 1, 1, 1), value=1.0),
        lambda x: functional.pad(x, (1, -1, 1, 1)),
        lambda x: functional.pad(x, (0, 0, 0, 0, 0, 1))[:, :2],
        lambda x: functional.relu(functional.pad(x, (1, 1, 1, 1))),
    ],
    ids=["with ones", "with a crop", "of channels", "before something else"],
)
def test_other_padding_is_not_folded(pad: Callable[[torch.Tensor], torch.Tensor]) -> None:
    model = Uses(lambda m, x: functional.conv2d(pad(x), m.w), w=nn.Parameter(torch.ones(2, 2, 3, 3)))
    call = only(model, 2, 9, 9)
    assert call.padding == ((0, 0), (0, 0))
    assert call.size == tuple(pad(torch.ones(1, 2, 9, 9)).shape[2:])


def test_zeros_before_zeros_are_one_padding_and_others_are_not() -> None:
    weight = nn.Parameter(torch.ones(2, 2, 3, 3))
    both = Uses(lambda m, x: functional.conv2d(functional.pad(x, (1, 2)), m.w, padding=1), w=weight)
    assert (only(both, 2, 9, 9).size, only(both, 2, 9, 9).padding) == ((9, 9), ((1, 1), (2, 3)))
    mixed = Uses(
        lambda m, x: functional.conv2d(functional.pad(x, (1, 1, 1, 1), mode="reflect"), m.w, padding=1), w=weight
    )
    assert (only(mixed, 2, 9, 9).size, only(mixed, 2, 9, 9).padding_mode) == ((11, 11), "zeros")


def test_functions_find_their_parameter_by_identity() -> None:
    model = Uses(
        lambda m, x: functional.conv2d(functional.conv2d(x, m.first), weight=m.second, stride=2),
        first=nn.Parameter(torch.ones(4, 3, 3, 3)),
        second=nn.Parameter(torch.ones(2, 4, 1, 1)),
    )
    found = traced(model, 3, 9, 9)
    assert {key: layer.calls[0].size for key, layer in found.items()} == {"first": (9, 9), "second": (7, 7)}
    assert not any(layer.computed for layer in found.values())


def test_the_general_function_is_a_convolution_too() -> None:
    model = Uses(
        lambda m, x: torch.convolution(x, m.w, None, [2], [1], [1], True, [0], 1), w=nn.Parameter(torch.ones(3, 2, 4))
    )
    assert only(model, 3, 9) == GeometryFacts((9,), (2,), ((1, 1),), "zeros", (1,), 1, True, (0,))


def test_a_computed_weight_belongs_to_the_module_that_runs() -> None:
    found = traced(nn.Sequential(StdConv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)), 3, 8, 8)
    assert list(found) == ["0.weight"]
    assert found["0.weight"].computed
    assert found["0.weight"].norm is not None


def test_weight_norm_and_spectral_norm_keep_the_layers_name() -> None:
    parametrised = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    with pytest.warns(FutureWarning):
        hooked = nn.utils.weight_norm(nn.Conv2d(4, 5, 3))
    found = traced(nn.Sequential(parametrised, hooked), 3, 9, 9)
    assert [(layer.path, layer.shape) for layer in found.values()] == [("0", (4, 3, 3, 3)), ("1", (5, 4, 3, 3))]


def test_a_tied_weight_is_named_after_the_module_that_runs() -> None:
    first, second = nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3)
    second.weight = first.weight
    found = traced(nn.Sequential(first, second), 2, 9, 9)
    assert {key: layer.calls[0].size for key, layer in found.items()} == {"0.weight": (9, 9), "1.weight": (7, 7)}


def test_a_layer_at_several_sizes_has_a_call_a_geometry() -> None:
    model = Uses(
        lambda m, x: m.head(x).sum() + m.head(x[:, :, ::2, ::2]).sum() + m.head(x).sum(), head=nn.Conv2d(2, 2, 3)
    )
    (layer,) = traced(model, 2, 12, 12).values()
    assert [call.size for call in layer.calls] == [(12, 12), (6, 6)]


def test_the_model_is_run_in_inference_mode_and_left_without_hooks() -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trace_model(model, [torch.ones(1, 2, 8, 8)])
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


# --------------------------------------------------------------------------------------------------------------- norms


def followers(model: nn.Module) -> dict[str, str | None]:
    found = traced(model, 2, 8, 8)
    return {layer.path: layer.norm.name if layer.norm else None for layer in found.values()}


def conv() -> nn.Conv2d:
    return nn.Conv2d(2, 2, 3, padding=1)


def test_the_norm_behind_a_convolution_is_found_whatever_the_order_of_modules() -> None:
    model = Uses(
        lambda m, x: m.b1(m.c1(m.b2(m.c2(x)))), b1=nn.BatchNorm2d(2), b2=nn.BatchNorm2d(2), c1=conv(), c2=conv()
    )
    assert followers(model) == {"c2": "b2", "c1": "b1"}


def test_the_norm_has_the_models_names_and_its_epsilon() -> None:
    (layer,) = traced(nn.Sequential(conv(), nn.BatchNorm2d(2, eps=0.5, affine=False)), 2, 8, 8).values()
    assert layer.norm is not None
    assert vars(layer.norm) == {"name": "1", "variance": "1.running_var", "scale": None, "epsilon": 0.5}


def _written(m: Any, x: torch.Tensor) -> torch.Tensor:
    y = m.c(x)
    y[:, 0] = 0.0
    return m.b(y)


def _twice(m: Any, x: torch.Tensor) -> torch.Tensor:
    y = m.c(x)
    return m.b(y) + y


def _before(m: Any, x: torch.Tensor) -> torch.Tensor:
    y = m.c(x)
    return y.sum() + m.b(y)


NOT_FOLLOWED: list[tuple[str, Callable[[Any, torch.Tensor], Any]]] = [
    ("another function between", lambda m, x: m.b(functional.relu(m.c(x)))),
    ("an in-place function between", lambda m, x: m.b(functional.relu_(m.c(x)))),
    ("an in-place operator between", lambda m, x: m.b(m.c(x).add_(1))),
    ("values written into it", _written),
    ("the output is taken twice", _twice),
    ("the output was taken before", _before),
    ("a norm on one of two calls", lambda m, x: m.b(m.c(x)) + m.c(x)),
    ("no moving statistics", lambda m, x: functional.batch_norm(m.c(x), None, None, training=True)),
    ("batch statistics", lambda m, x: functional.batch_norm(m.c(x), m.b.running_mean, m.b.running_var, training=True)),
]


@pytest.mark.parametrize("forward", [case[1] for case in NOT_FOLLOWED], ids=[case[0] for case in NOT_FOLLOWED])
def test_a_norm_that_does_not_alone_take_the_output_is_not_the_layers(forward: Callable[[Any, Any], Any]) -> None:
    assert followers(Uses(forward, c=conv(), b=nn.BatchNorm2d(2))) == {"c": None}


def test_questions_about_the_output_do_not_take_it() -> None:
    def forward(m: Any, x: torch.Tensor) -> Any:
        y = m.c(x)
        assert y.shape[0] == y.size(0) == 1
        assert y.device == x.device
        return m.b(y)

    assert followers(Uses(forward, c=conv(), b=nn.BatchNorm2d(2))) == {"c": "b"}


def test_norms_of_a_resnet_are_those_of_its_source() -> None:
    with torch.device("meta"):
        found = traced(ResNet18(), 3, 224, 224)
    for layer in found.values():
        expected = layer.path.replace("downsample.0", "downsample.1").replace("conv", "bn")
        assert layer.norm is not None
        assert layer.norm.name == expected


# ------------------------------------------------------------------------------------------------- the user's own code


def test_the_command_line_traces_a_module_in_the_current_folder(here: Path) -> None:
    name = module(here, "resnet", "from networks import ResNet18\n")
    torch.save({"state_dict": {f"module.{k}": v for k, v in ResNet18(10, 8).state_dict().items()}}, here / "r.pt")
    arguments = ["--model", f"{name}:ResNet18", "--model-args", '{"width": 8}', "--input-shape", "3x224x224"]
    result = convsv("layers", "r.pt", *arguments, "--format", "json")
    assert result.exit_code == 0, result.stderr
    layers = json.loads(result.stdout)["checkpoints"][0]["layers"]
    found = {
        layer["name"]: (
            layer["geometry"]["size"][0],
            layer["geometry"]["stride"][0],
            layer["geometry"]["padding"][1][1],
        )
        for layer in layers
    }
    assert found == RESNET18_GEOMETRY
    assert {origin for layer in layers for origin in layer["geometry"]["origin"].values()} == {"traced"}
    assert result.stderr == ""


def test_nothing_of_the_weights_is_allocated_while_tracing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = module(
        here,
        "large",
        """
        from torch import nn
        def build():
            return nn.Sequential(nn.Conv2d(1 << 20, 1 << 20, 3), nn.Conv2d(1 << 20, 8, 1))
        """,
    )
    found = trace(f"{name}:build", [InputShape((1 << 20, 64, 64))])
    assert [layer.shape[0] for layer in found.layers] == [1 << 20, 8]


@pytest.mark.parametrize(
    ("text", "target", "words"),
    [
        ("raise RuntimeError('no\\n luck')", "", "cannot be imported (found RuntimeError: no luck)"),
        ("import sys; sys.exit(3)", "", "cannot be imported (found SystemExit: 3)"),
        (
            "import nowhere_at_all",
            "",
            "cannot be imported (found ModuleNotFoundError: No module named 'nowhere_at_all')",
        ),
        ("", "build", "cannot be imported (found AttributeError: module"),
        ("build = 3", "build", ":build cannot be called (found int)"),
        ("def build(): raise ValueError('bad width')", "build", "cannot be built (found ValueError: bad width)"),
        (
            "def build(): return 3",
            "build",
            "cannot be built (found TypeError: it returned a int, not a torch.nn.Module)",
        ),
        (
            "from torch import nn\ndef build(): return nn.Conv2d(4, 4, 3)",
            "build",
            "cannot be run (found RuntimeError: ",
        ),
    ],
    ids=[
        "raises",
        "exits",
        "imports nothing",
        "lacks it",
        "no callable",
        "does not build",
        "no module",
        "does not run",
    ],
)
def test_a_model_that_does_not_work_is_usage_and_one_line(here: Path, text: str, target: str, words: str) -> None:
    name = module(here, "broken", text)
    torch.save(nn.Conv2d(3, 4, 3).state_dict(), here / "m.pt")
    result = convsv("layers", "m.pt", "--model", f"{name}:{target or 'build'}", "--input-shape", "3x8x8")
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: --model {name}:")
    assert words in line


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--model", "torch.nn:Conv2d"], "--model needs the shape of its input"),
        (["--input-shape", "3x8x8"], "--input-shape is about the model to trace"),
        (["--model-args", "{}"], "--model-args is about the model to trace"),
        (["--model", "torch.nn", "--input-shape", "3x8x8"], "--model names nothing to import"),
        (["--model", "os;evil:x", "--input-shape", "3x8x8"], "--model names nothing to import"),
        (["--model", "torch.nn:Conv2d", "--input-shape", "3x8x8", "--model-args", "{"], "--model-args is not JSON"),
        (
            ["--model", "torch.nn:Conv2d", "--input-shape", "3x8x8", "--model-args", "3"],
            "must be a JSON object or list",
        ),
        (["--model", "torch.nn:Conv2d", "--input-shape", "3xx8"], "'3xx8' is no input"),
        (["--model", "torch.nn:Conv2d", "--input-shape", "3x8:float7"], "'3x8:float7' is no input"),
    ],
)
def test_wrong_options_are_usage_and_one_line(here: Path, args: list[str], words: str) -> None:
    torch.save(nn.Conv2d(3, 4, 3).state_dict(), here / "m.pt")
    result = convsv("layers", "m.pt", *args)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert words in line


def test_what_the_model_prints_is_no_result(here: Path) -> None:
    name = module(
        here, "loud", "print('hello')\nfrom torch import nn\ndef build():\n    print('x'); return nn.Conv2d(3, 4, 3)"
    )
    torch.save(nn.Conv2d(3, 4, 3).state_dict(), here / "m.pt")
    result = convsv("layers", "m.pt", "--model", f"{name}:build", "--input-shape", "3x8x8", "--format", "json")
    assert json.loads(result.stdout)["checkpoints"][0]["layers"][0]["geometry"]["size"] == [8, 8]
    assert "hello" in result.stderr


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("self.p = [x.item() for x in torch.linspace(0, 1, 3)]", False),
        ("self.ask = True", True),
    ],
    ids=["in its constructor", "while it runs"],
)
def test_a_model_that_asks_for_values_is_traced_all_the_same(here: Path, text: str, note: bool) -> None:
    name = module(
        here,
        "asking",
        f"""
        import torch
        from torch import nn
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.ask = False
                self.conv = nn.Conv2d(3, 4, 3, stride=2)
                {text}
            def forward(self, x):
                y = self.conv(x)
                return y if not self.ask or y.abs().sum().item() >= 0 else None
        """,
    )
    found = trace(f"{name}:Net", [InputShape((3, 9, 9))])
    assert [layer.calls[0].stride for layer in found.layers] == [(2, 2)]
    assert [("on the CPU" in line, "item()" in line) for line in found.notes] == ([(True, True)] if note else [])


def test_a_finished_module_and_dotted_callables_will_do(here: Path) -> None:
    name = module(
        here,
        "ready",
        """
        from torch import nn
        model = nn.Conv2d(3, 4, 3)
        class Zoo:
            @staticmethod
            def small(width, *, stride): return nn.Conv2d(3, width, 3, stride=stride)
        """,
    )
    assert trace(f"{name}:model", [InputShape((3, 9, 9))]).layers[0].shape == (4, 3, 3, 3)
    assert sys.modules[name].model.weight.device.type == "cpu"
    found = trace(f"{name}:Zoo.small", [InputShape((3, 9, 9))], '{"width": 5, "stride": 3}')
    assert (found.layers[0].shape[0], found.layers[0].calls[0].stride) == (5, (3, 3))
    with pytest.raises(UsageError, match="finished module"):
        trace(f"{name}:model", [InputShape((3, 9, 9))], "[1]")


def test_inputs_may_be_several_and_of_other_types(here: Path) -> None:
    name = module(
        here,
        "two",
        """
        import torch
        from torch import nn
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.table, self.conv = nn.Embedding(9, 4), nn.Conv1d(4, 4, 3)
            def forward(self, tokens, x):
                return self.conv(self.table(tokens).transpose(1, 2)).sum() + x.half().sum()
        """,
    )
    torch.save(nn.Sequential(nn.Conv1d(4, 4, 3)).state_dict(), here / "m.pt")
    shapes = ["--input-shape", "77:int64", "--input-shape", "3X2"]
    result = convsv("layers", "m.pt", "--model", f"{name}:Net", *shapes, "--format", "json")
    assert result.exit_code == 0, result.stderr
    problems = json.loads(result.stdout)["checkpoints"][0]["problems"]
    assert [line.partition(": ")[2] for line in problems] == [
        "traced layer 'conv' of shape (4, 4, 3) is not in the file",
        "layer '0' of shape (4, 4, 3) was not traced",
    ]


def test_a_half_precision_model_gets_inputs_of_its_own_type(here: Path) -> None:
    name = module(here, "half", "from torch import nn\ndef build(): return nn.Conv2d(3, 4, 3).half()")
    assert len(trace(f"{name}:build", [InputShape((3, 9, 9))]).layers) == 1


def test_the_current_folder_leaves_the_path_again(here: Path) -> None:
    before = list(sys.path)
    trace(f"{module(here, 'path', 'from torch import nn')}:nn.ReLU", [InputShape((3, 9, 9))])
    assert sys.path == before


def test_a_layer_at_several_sizes_is_a_row_each(here: Path) -> None:
    name = module(
        here,
        "pyramid",
        """
        from torch import nn
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.head, self.last = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 1)
            def forward(self, x):
                self.head(x); self.head(x[:, :, ::2, ::2])
                return self.last(x)
        """,
    )
    weights = {"head.weight": torch.ones(2, 2, 3, 3), "last.weight": torch.ones(2, 2, 1, 1)}
    torch.save(weights, here / "m.pt")
    arguments = ["--model", f"{name}:Net", "--input-shape", "2x12x10", "--format", "json"]
    result = convsv("layers", "m.pt", *arguments, "--write-geometry", "g.toml")
    rows = json.loads(result.stdout)["checkpoints"][0]["layers"]
    assert [(row["name"], row["geometry"]["size"]) for row in rows] == [
        ("head@12x10", [12, 10]), ("head@6x5", [6, 5]), ("last", [12, 10])
    ]  # fmt: skip
    assert {row["weight"] for row in rows[:2]} == {"head.weight"}
    # A table of a geometry file holds one value: what differs from call to call stays open.
    again = json.loads(convsv("layers", "m.pt", "--geometry", "g.toml", "--format", "json").stdout)
    head, _ = again["checkpoints"][0]["layers"]
    assert (head["name"], head["geometry"]["origin"]["size"], head["geometry"]["origin"]["stride"]) == (
        "head", "assumed", "sidecar"
    )  # fmt: skip
    # And what it does state holds for every call.
    (here / "g.toml").write_text('[layers."head"]\nsize = 20\n', encoding="utf-8")
    one = json.loads(convsv("layers", "m.pt", *arguments, "--geometry", "g.toml").stdout)
    assert [row["name"] for row in one["checkpoints"][0]["layers"]] == ["head", "last"]


def test_the_norm_of_a_traced_network_is_folded_into_its_layers(here: Path) -> None:
    name = module(here, "folded", "from networks import ResNet18\ndef build(): return ResNet18(10, 4)")
    model = randomised(ResNet18(10, 4))
    torch.save({f"module.{key}": value for key, value in model.state_dict().items()}, here / "m.pt")
    arguments = ["--model", f"{name}:build", "--input-shape", "3x64x64"]
    result = convsv("analyze", "m.pt", *arguments, "--fold-bn", "--include", "layer2.0.conv1", "--format", "json")
    assert result.exit_code == 0, result.stderr
    (row,) = json.loads(result.stdout)["checkpoints"][0]["layers"]
    assert row["folded"] == "layer2.0.bn1"
    block = model.get_submodule("layer2.0")
    size = row["geometry"]["size"]

    def run(flat: torch.Tensor) -> torch.Tensor:
        return block.bn1(block.conv1(flat.reshape(1, 4, *size))).flatten()  # type: ignore[no-any-return]

    model.double()
    jacobian = torch.func.jacrev(run)(torch.zeros(4 * size[0] * size[1], dtype=torch.float64)).detach()
    true = float(torch.linalg.matrix_norm(jacobian, 2))
    assert row["norm_at_size"]["lower"] * (1 - 1e-9) <= true <= row["norm_at_size"]["upper"] * (1 + 1e-9)
    assert row["norm_at_size"]["assumes"] == {"lower": [], "upper": []}
