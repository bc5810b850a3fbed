"""Batch normalisation in Keras files: which one follows which convolution, and both folded together."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convsv.checkpoints import open_checkpoint
from convsv.checkpoints._keras_norms import norms_behind
from convsv.checkpoints.discovery import discover
from convsv.checkpoints.sources import GeometryOptions

PROGRAM = """
import sys
import keras, numpy as np
from keras import layers as L
keras.utils.set_random_seed(0)
inputs = keras.Input((12, 12, 3))
x = L.Conv2D(4, 3, name="plain")(inputs)
x = L.BatchNormalization(epsilon=0.125, name="plain_norm")(x)
x = L.DepthwiseConv2D(3, depth_multiplier=2, name="depth")(x)
x = L.BatchNormalization(scale=False, name="depth_norm")(x)
x = L.Conv2D(4, 1, activation="relu", name="active")(x)
x = L.BatchNormalization(name="active_norm")(x)
y = L.Conv2D(4, 1, name="twice")(x)
x = L.Add()([L.BatchNormalization(name="twice_norm")(y), y])
x = L.SeparableConv2D(6, 3, name="separable")(x)
x = L.BatchNormalization(center=False, name="separable_norm")(x)
up = [L.Conv2DTranspose(5, 3, strides=2, name="up"), L.BatchNormalization(name="up_norm")]
inner = keras.Sequential(up, name="in")
x = inner(x)
shared = L.Conv2D(5, 3, padding="same", name="shared")
x = L.BatchNormalization(name="shared_norm")(shared(shared(x)))
model = keras.Model(inputs, x)
rng = np.random.default_rng(0)
for layer in model._flatten_layers():
    if isinstance(layer, L.BatchNormalization):
        layer.set_weights([rng.uniform(0.5, 2, w.shape) for w in layer.get_weights()])
model.save(sys.argv[1] + "/m.keras")
model.save(sys.argv[1] + "/m.h5")
wanted = {}
for layer in model._flatten_layers():
    if isinstance(layer, L.BatchNormalization):
        gamma = np.asarray(layer.gamma) if layer.scale else 1.0
        wanted[layer.name] = np.asarray(gamma / np.sqrt(np.float64(layer.moving_variance) + layer.epsilon), np.float64)
np.savez(sys.argv[1] + "/factors.npz", **wanted)
"""
EXPECTED = {
    "plain": "plain_norm",
    "depth": "depth_norm",
    "active": None,
    "twice": None,
    "separable/depthwise": None,
    "separable/pointwise": "separable_norm",
    "in/up": "in/up_norm",
    "shared": None,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one model in both formats, and the factor of each channel of each norm."""
    if importlib.util.find_spec("keras") is None:
        pytest.skip("needs Keras")
    folder = tmp_path_factory.mktemp("keras")
    environment = {**os.environ, "KERAS_BACKEND": "torch", "KERAS_HOME": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", ["m.keras", "m.h5"])
def test_the_norm_behind_each_convolution_is_folded_into_it(name: str, saved: Path) -> None:
    checkpoint = open_checkpoint(saved / name)
    plain = {layer.name: layer for layer in discover(checkpoint).layers}
    folded = {layer.name: layer for layer in discover(checkpoint, geometry=GeometryOptions(fold="known")).layers}
    assert {n: layer.folded.name if layer.folded else None for n, layer in folded.items()} == EXPECTED
    factors = np.load(saved / "factors.npz")
    for title, norm in EXPECTED.items():
        # The outputs of a transposed layer are the inputs of the convolution it is the adjoint of.
        axis = 2 if plain[title].geometry.transposed else 1
        kernel = plain[title].kernel()
        shape = [kernel.shape[0], *[1] * (kernel.ndim - 1)]
        shape[axis] = kernel.shape[axis]
        by_channel = factors[norm.rpartition("/")[2]].reshape(shape) if norm else 1.0
        np.testing.assert_allclose(folded[title].kernel(), kernel * by_channel, rtol=1e-6)
    plain_norm, up_norm = folded["plain"].folded, folded["in/up"].folded
    assert plain_norm is not None
    assert up_norm is not None
    assert (plain_norm.epsilon, plain_norm.known) == (0.125, True)
    assert (up_norm.epsilon, up_norm.known) == (0.001, True)


# ------------------------------------------------------------------------------------------------- the configuration


def entry(class_name: str, name: str, inbound: Any = None, **config: Any) -> dict[str, Any]:
    stated = {"class_name": class_name, "name": name, "config": {"name": name, **config}}
    return stated if inbound is None else {**stated, "inbound_nodes": inbound}


def sequential(*layers: dict[str, Any]) -> dict[str, Any]:
    return {"class_name": "Sequential", "config": {"name": "s", "layers": list(layers)}}


def names(model: dict[str, Any]) -> list[str]:
    return [norm["name"] for norm in norms_behind(model).values()]


@pytest.mark.parametrize(
    ("config", "axis", "found"),
    [
        ({}, -1, True),
        ({}, [3], True),
        ({}, 1, False),
        ({"data_format": "channels_first"}, 1, True),
        ({"data_format": "channels_first"}, -1, False),
        ({"activation": "linear"}, -1, True),
        ({"activation": "relu"}, -1, False),
        ({"activation": {"class_name": "Lambda"}}, -1, False),
        ({}, "x", False),
        ({}, None, False),
    ],
)
def test_the_norm_acts_on_the_channels_and_nothing_stands_between(config: Any, axis: Any, found: bool) -> None:
    model = sequential(entry("Conv2D", "c", **config), entry("BatchNormalization", "b", axis=axis))
    assert names(model) == (["b"] if found else [])


def test_only_the_next_layer_counts() -> None:
    between = sequential(entry("Conv2D", "c"), entry("Activation", "a"), entry("BatchNormalization", "b"))
    assert names(between) == []


def test_the_graph_of_keras_2_is_followed() -> None:
    layers = [
        entry("InputLayer", "i", []),
        entry("BatchNormalization", "b", [[["c", 0, 0, {}]]]),
        entry("Conv2D", "c", [[["i", 0, 0, {}]]]),
        entry("Conv2D", "out", [[["b", 0, 0, {}]]]),
        entry("BatchNormalization", "last", [[["out", 0, 0, {}]]]),
    ]
    ends = {"input_layers": [["i", 0, 0]], "output_layers": [["last", 0, 0]]}
    model = {"class_name": "Functional", "config": {"name": "m", "layers": layers, **ends}}
    assert names(model) == ["b", "last"]
    # A tensor that the model also returns is taken twice.
    model["config"]["output_layers"] = [["last", 0, 0], ["out", 0, 0]]  # type: ignore[index]
    assert names(model) == ["b"]


@pytest.mark.parametrize("model", [None, [], {}, {"config": 3}, {"config": {"layers": [{}, 3, {"config": []}]}}])
def test_a_configuration_of_nonsense_has_no_norms(model: Any) -> None:
    assert norms_behind(model) == {}


def test_models_nested_without_end_are_followed_to_some_depth() -> None:
    model: dict[str, Any] = sequential(entry("Conv2D", "c"), entry("BatchNormalization", "b"))
    for _ in range(200):
        model = sequential(model)
    assert norms_behind(json.loads(json.dumps(model))) == {}
