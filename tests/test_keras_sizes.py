"""Keras' sizes against Keras: random models, and the real ones, built, run and saved by Keras in one process."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from convsv.checkpoints import open_checkpoint
from convsv.checkpoints.discovery import discover, find_layers
from convsv.layer import ConvLayer
from convsv.operator import ConvOperator

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="Keras is not installed"),
    pytest.mark.timeout(300),
]

MODELS = 400 if settings.default and settings.default.max_examples > 1000 else 40
REAL = ("mlperf-vww96.h5", "acoustic-ae.keras")

# ------------------------------------------------------------------------------------------------------ descriptions


def small(most: int) -> st.SearchStrategy[int]:
    return st.integers(1, most)


def per_axis(dims: int, numbers: st.SearchStrategy[int]) -> st.SearchStrategy[list[int]]:
    return st.lists(numbers, min_size=dims, max_size=dims)


@st.composite
def convolution(draw: st.DrawFn, dims: int, data: str) -> dict[str, Any]:
    names = [f"Conv{dims}D", f"Conv{dims}D", f"Conv{dims}DTranspose"]
    names += [f"DepthwiseConv{dims}D", f"SeparableConv{dims}D"] if dims < 3 else []
    name = draw(st.sampled_from(names))
    config: dict[str, Any] = {"kernel_size": draw(per_axis(dims, small(4))), "data_format": data}
    config["padding"] = draw(st.sampled_from(["same", "valid", *(["causal"] if name == "Conv1D" else [])]))
    strided = draw(st.booleans())
    if strided and name.startswith(("Depthwise", "Separable")):
        config["strides"] = [draw(st.integers(2, 3))] * dims  # Keras takes equal ones only
    elif strided:
        config["strides"] = draw(per_axis(dims, small(3)))
    elif not name.endswith("Transpose"):
        config["dilation_rate"] = [draw(small(2))] * dims
    if name.startswith("Depthwise"):
        return {"class": name, "config": {**config, "depth_multiplier": draw(small(2))}}
    config["filters"] = draw(st.sampled_from([2, 4]))
    if name == f"Conv{dims}D":
        config["groups"] = draw(st.sampled_from([1, 1, 2]))
    if name.endswith("Transpose"):
        extra = draw(st.sampled_from([None, None, 0, 1]))
        most = min(config.get("strides", [1] * dims))
        config["output_padding"] = extra if extra is None or extra < most else None
    return {"class": name, "config": config}


@st.composite
def shaping(draw: st.DrawFn, dims: int, data: str) -> dict[str, Any]:
    """A layer that changes shapes, or keeps them, and has no kernel."""
    form = {"data_format": data}
    pairs = st.lists(st.integers(0, 2), min_size=2, max_size=2)
    choices: list[st.SearchStrategy[tuple[str, dict[str, Any]]]] = []
    for how in ("Max", "Average"):
        pool = st.fixed_dictionaries(
            {
                "pool_size": per_axis(dims, small(3)),
                "strides": st.none() | per_axis(dims, small(3)),
                "padding": st.sampled_from(["same", "valid"]),
            }
        )
        choices.append(pool.map(lambda c, how=how: (f"{how}Pooling{dims}D", {**c, **form})))
    around = pairs.map(lambda p: [p] * dims if dims > 1 else p)
    choices += [
        around.map(lambda p: (f"ZeroPadding{dims}D", {"padding": p, **(form if dims > 1 else {})})),
        around.map(lambda p: (f"Cropping{dims}D", {"cropping": p, **(form if dims > 1 else {})})),
        small(2).map(
            lambda n: (f"UpSampling{dims}D", {"size": n if dims == 1 else [n] * dims, **(form if dims > 1 else {})})
        ),
        st.booleans().map(lambda keep: (f"GlobalMaxPooling{dims}D", {"keepdims": True, **form})),
        st.permutations(range(1, dims + 2)).map(lambda order: ("Permute", {"dims": list(order)})),
        st.sampled_from(["ReLU", "BatchNormalization", "Dropout", "LayerNormalization", "GaussianNoise"]).map(
            lambda name: (
                name,
                {"rate": 0.5} if name == "Dropout" else {"stddev": 0.1} if name == "GaussianNoise" else {},
            )
        ),
        st.just(("Activation", {"activation": "relu"})),
        small(3).map(lambda n: ("Dense", {"units": 2 * n})),
    ]
    if dims == 2:
        size = st.fixed_dictionaries({"height": st.integers(3, 9), "width": st.integers(3, 9)})
        choices.append(size.map(lambda c: ("Resizing", {**c, **form})))
        choices.append(size.map(lambda c: ("CenterCrop", {**c, **form})))
        choices.append(st.integers(3, 6).map(lambda n: ("AdaptiveAveragePooling2D", {"output_size": n, **form})))
    name, config = draw(st.one_of(choices))
    return {"class": name, "config": config}


@st.composite
def step(draw: st.DrawFn, dims: int, data: str, depth: int, *, branching: bool) -> dict[str, Any]:
    kinds = ["conv"] * 7 + ["shape"] * 5 + ["wrapped", "opaque", "flat"] + (["model"] * 2 if depth else [])
    kinds += ["again", "again", "merge", "merge"] if branching else []
    kind = draw(st.sampled_from(kinds))
    if kind == "conv":
        found = draw(convolution(dims, data))
    elif kind == "shape":
        found = draw(shaping(dims, data))
    elif kind == "wrapped":
        inner = draw(convolution(dims, data).filter(lambda c: "Separable" not in c["class"]))
        found = {"class": "SpectralNormalization", "inner": inner}
    elif kind == "opaque":
        found = {"class": draw(st.sampled_from(["plus", "Lambda"] if branching else ["Lambda"]))}
    elif kind == "flat":
        found = draw(flattening())
    elif kind == "model":
        found = {"class": "model", "model": draw(description(dims, data, depth - 1))}
    elif kind == "again":
        found = {"class": "again", "which": draw(st.integers(0, 9))}
    else:
        merging = st.sampled_from(["Add", "Multiply", "Maximum", "Average", "Concatenate"])
        found = {"class": draw(merging), "several": True}
        if found["class"] == "Concatenate":
            found["config"] = {"axis": draw(st.integers(-dims - 1, -1))}
    several = draw(st.lists(st.integers(0, 30), min_size=2, max_size=3)) if found.get("several") else [-1]
    # Mostly the last tensor: a chain with branches.
    return {**found, "on": several if found.get("several") or draw(st.integers(0, 3)) else [draw(st.integers(0, 30))]}


@st.composite
def flattening(draw: st.DrawFn) -> dict[str, Any]:
    """Layers that change the number of axes: in later steps Keras refuses most of what does not fit."""
    name, config = draw(
        st.sampled_from(
            [
                ("Flatten", {}),
                ("Reshape", {"target_shape": [-1, 2]}),
                ("Reshape", {"target_shape": [2, -1]}),
                ("Reshape", {"target_shape": [2, 2, -1]}),
                ("Reshape", {"target_shape": [-1, 3, 4]}),
                ("Reshape", {"target_shape": [2, -1, 3, 2]}),
                ("RepeatVector", {"n": 5}),
                ("LSTM", {"units": 2, "return_sequences": True}),
            ]
        )
    )
    if name == "LSTM" and draw(st.booleans()):
        return {"class": "Bidirectional", "inner": {"class": name, "config": config}}
    if draw(st.integers(0, 3)) == 0:
        return {"class": "TimeDistributed", "inner": draw(convolution(draw(st.integers(1, 2)), "channels_last"))}
    return {"class": name, "config": config}


@st.composite
def description(draw: st.DrawFn, dims: int, data: str, depth: int) -> dict[str, Any]:
    kind = draw(st.sampled_from(["sequential", "functional", "functional"]))
    inner = depth < 2
    count = draw(st.integers(1, 2)) if kind == "functional" and not inner else 1

    def shape() -> list[int | None]:
        size: list[int | None] = list(draw(per_axis(dims, st.integers(5, 11))))
        if inner:
            size = [None] * dims
        return [4, *size] if data == "channels_first" else [*size, 4]

    # A sequential model within another may be built by its first call.
    inputs = [] if inner and kind == "sequential" and draw(st.booleans()) else [shape() for _ in range(count)]
    one = step(dims, data, depth, branching=kind == "functional")
    steps = st.lists(one, min_size=2 if inner else 5, max_size=4 if inner else 9)
    return {"kind": kind, "inputs": inputs, "steps": draw(steps)}


models = st.sampled_from([(1, "last"), (2, "last"), (2, "last"), (2, "first"), (3, "last")]).flatmap(
    lambda form: description(form[0], f"channels_{form[1]}", 2)
)


def named(model: dict[str, Any], counter: Iterator[int]) -> dict[str, Any]:
    """The description with a name for each layer and model, no two alike."""

    def layer(said: dict[str, Any]) -> dict[str, Any]:
        if said["class"] == "model":
            return {**said, "model": named(said["model"], counter)}
        if said["class"] in ("plus", "again"):
            return said
        inner = {"inner": layer(said["inner"])} if "inner" in said else {}
        return {**said, **inner, "config": {**said.get("config", {}), "name": f"n{next(counter)}"}}

    return {**model, "name": f"n{next(counter)}", "steps": [layer(step) for step in model["steps"]]}


def mentions(said: object, words: tuple[str, ...]) -> bool:
    return any(f'"{word}"' in json.dumps(said) for word in words)


# ------------------------------------------------------------------------------------------------------- one process


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any], list[dict[str, Any]]]:
    """The folder of saved models, their descriptions, and what Keras told about each."""
    folder = tmp_path_factory.mktemp("keras")
    jobs: list[Any] = []

    @settings(max_examples=MODELS, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(models)
    def collect(model: dict[str, Any]) -> None:
        jobs.append(named(model, iter(range(10_000))))

    collect()
    shared = Path(__file__).resolve().parent.parent.parent / "shared" / "checkpoints"
    jobs += [str(shared / name) for name in REAL if (shared / name).exists()]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    program = Path(__file__).with_name("kerasmodels.py")
    environment = {**os.environ, "KERAS_BACKEND": "torch", "OMP_NUM_THREADS": "1", "TORCH_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", str(program), str(folder / "jobs.json"), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return folder, jobs, json.loads((folder / "told.json").read_text())


def layers_in(path: Path) -> dict[str, list[ConvLayer]]:
    """The calls that were found, by the name of the layer itself; a separable layer's depthwise kernel under it."""
    checkpoint = open_checkpoint(path)
    assert checkpoint.problems == ()
    found: dict[str, list[ConvLayer]] = {}
    for layer in discover(checkpoint).layers:
        name = layer.name.split("@")[0]
        name = name if name.endswith("/pointwise") else name.removesuffix("/depthwise").split("/")[-1]
        found.setdefault(name, []).append(layer)
    return found


def kernel_of(layer: ConvLayer) -> torch.Tensor:
    return torch.from_numpy(layer.kernel())


def check(path: Path, told: dict[str, Any], *, opaque: bool) -> int:
    """Compare what was read with what Keras did; return how many sizes were known."""
    found, known = layers_in(path), 0
    sizes: dict[str, set[tuple[int, ...]]] = {}
    for call in told["calls"]:
        sizes.setdefault(call["name"], set()).add(tuple(call["input"]))
    for name, expected in sizes.items():
        stored = {layer.geometry.size for layer in found[name] if layer.geometry.origin["size"] == "stored"}
        # Behind a layer that nobody can follow a size may be unknown, but never wrong.
        assert stored == expected or (opaque and stored < expected), (path, name)
        known += len(stored)
    with np.load(path.with_suffix(".npz")) as arrays:
        for number, call in enumerate(told["calls"]):
            size = tuple(call["input"])
            for layer in [layer for layer in found[call["name"]] if layer.geometry.size == size]:
                compare(layer, call, arrays.get(f"x{number}"), arrays.get(f"y{number}"))
    return known


def compare(layer: ConvLayer, call: dict[str, Any], x: Any, y: Any) -> None:
    """One call of a layer: its geometry, and where its numbers were kept, its numbers."""
    geometry, where = layer.geometry, (layer.name, call)
    separable, depthwise = call["class"].startswith("Separable"), call["class"].startswith("Depthwise")
    assert geometry.stride == tuple(call["stride"]), where
    assert geometry.dilation == tuple(call["dilation"]), where
    assert geometry.transposed == call["class"].endswith("Transpose"), where
    assert geometry.groups == (call["channels"] if separable or depthwise else call["groups"]), where
    assert geometry.output_size(layer.kernel_size) == tuple(call["output"]), where
    if geometry.origin["size"] == "stored":
        assert {geometry.origin[key] for key in ("stride", "padding", "dilation", "groups", "transposed")} == {"stored"}
    if x is not None and not separable:
        first = call["first"]
        x, y = (a if first else np.moveaxis(a, -1, 1) for a in (x, y))
        got = ConvOperator(kernel_of(layer), geometry).apply(torch.from_numpy(x.astype("f8"))).numpy()
        np.testing.assert_allclose(got, y, rtol=1e-4, atol=1e-4, err_msg=str(where))


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_every_layer_has_the_geometry_that_keras_computes(suffix: str, built: Any) -> None:
    folder, jobs, answers = built
    known = made = 0
    for number, (job, told) in enumerate(zip(jobs, answers, strict=True)):
        if isinstance(job, str) or "error" in told:
            continue
        made += 1
        known += check(folder / f"{number}{suffix}", told, opaque=mentions(job, ("Lambda", "plus")))
    assert made > MODELS // 2
    assert known > MODELS


@pytest.mark.parametrize("name", REAL)
def test_real_files_have_the_geometry_that_keras_computes(name: str, built: Any, shared_checkpoints: Path) -> None:
    folder, jobs, answers = built
    number = jobs.index(str(shared_checkpoints / name))
    copy = folder / f"real{Path(name).suffix}"
    copy.write_bytes((shared_checkpoints / name).read_bytes())
    copy.with_suffix(".npz").write_bytes((folder / f"{number}.npz").read_bytes())
    told = answers[number]
    assert check(copy, told, opaque=False) == len(told["layers"])
    layers = find_layers(open_checkpoint(copy))
    assert [layer.name for layer in layers if layer.geometry.transposed] == [
        call["name"] for call in told["calls"] if call["class"].endswith("Transpose")
    ]
