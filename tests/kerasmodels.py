"""Builds Keras models from descriptions, runs them, and says what each convolution did. Run as a program, with Keras.

    python kerasmodels.py JOBS.json FOLDER

A job is a description of a model, or the path of a saved one. Each model is saved into the folder as ``N.keras`` and
``N.h5``; the inputs and outputs of every call of a convolution are saved as ``N.npz``, and ``told.json`` lists them.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "torch"


def main(jobs: Path, folder: Path) -> None:
    """Build all jobs, and write what Keras says about each."""
    import keras

    told = []
    for number, job in enumerate(json.loads(jobs.read_text())):
        keras.backend.clear_session()
        keras.utils.set_random_seed(number)
        try:
            model = loaded(job) if isinstance(job, str) else Builder(job).model()
            told.append(run(model, folder / f"{number}"))
            if not isinstance(job, str):
                model.save(folder / f"{number}.keras")
                model.save(folder / f"{number}.h5")
        except Exception as error:  # noqa: BLE001 - a description need not be a model that Keras can build
            told.append({"error": f"{type(error).__name__}: {error}"[:2000]})
    (folder / "told.json").write_text(json.dumps(told))


def loaded(path: str) -> Any:
    """Return a saved model; Keras 3 stumbles over an entry that Keras 2 wrote, which said nothing."""
    import keras

    class DepthwiseConv2D(keras.layers.DepthwiseConv2D):
        def __init__(self, *args: Any, groups: int = 1, **kwargs: Any) -> None:
            assert groups == 1
            super().__init__(*args, **kwargs)

    return keras.models.load_model(path, compile=False, custom_objects={"DepthwiseConv2D": DepthwiseConv2D})


# ------------------------------------------------------------------------------------------------------------- running


def convolutions(model: Any) -> dict[int, Any]:
    """Every convolution in a model, in the models in it and in its wrappers, by identity."""
    from keras import layers

    kinds = (layers.Conv1D, layers.Conv2D, layers.Conv3D, layers.Conv1DTranspose, layers.Conv2DTranspose)
    kinds += (layers.Conv3DTranspose, layers.DepthwiseConv1D, layers.DepthwiseConv2D)
    kinds += (layers.SeparableConv1D, layers.SeparableConv2D)
    return {id(layer): layer for layer in model._flatten_layers() if isinstance(layer, kinds)}


def run(model: Any, target: Path) -> dict[str, Any]:
    """Run a model once on random numbers, and record what goes into each convolution and what comes out."""
    import numpy as np
    from keras import ops

    calls: list[tuple[Any, Any, Any]] = []

    def recorded(layer: Any) -> Any:
        original = layer.call

        @functools.wraps(original)
        def call(x: Any, *args: Any, **kwargs: Any) -> Any:
            y = original(x, *args, **kwargs)
            calls.append((layer, ops.convert_to_numpy(x), ops.convert_to_numpy(y)))
            return y

        return call

    found = convolutions(model)
    for layer in found.values():
        object.__setattr__(layer, "call", recorded(layer))
    generator = np.random.default_rng(0)
    inputs = [generator.standard_normal([n or 1 for n in tensor.shape], dtype="f4") for tensor in model.inputs]
    model(inputs if len(inputs) > 1 else inputs[0], training=False)
    for layer in found.values():
        object.__delattr__(layer, "call")
    arrays, facts = {}, []
    for number, (layer, x, y) in enumerate(calls):
        first = layer.data_format == "channels_first"
        bare = layer.activation.__name__ == "linear"
        if bare and x.size + y.size < 30_000:
            bias = ops.convert_to_numpy(layer.bias)
            linear = y - (bias.reshape(-1, *[1] * (y.ndim - 2)) if first else bias)
            arrays.update({f"x{number}": x[:1], f"y{number}": linear[:1]})
        facts.append(
            {
                "name": layer.name,
                "class": type(layer).__name__,
                "input": x.shape[2:] if first else x.shape[1:-1],
                "output": y.shape[2:] if first else y.shape[1:-1],
                "channels": x.shape[1 if first else -1],
                "first": first,
                "stride": layer.strides,
                "dilation": layer.dilation_rate,
                "groups": getattr(layer, "groups", 1),
            }
        )
    np.savez(target.with_suffix(".npz"), **arrays)
    return {"calls": facts, "layers": sorted(layer.name for layer in found.values())}


# ------------------------------------------------------------------------------------------------------------ building


class Builder:
    """Builds a model from its description.

    A step names the earlier tensors that it is ``on``, by their number, counted around. A step that Keras refuses
    leaves its tensor as it was.
    """

    def __init__(self, description: dict[str, Any]) -> None:
        self.description = description
        self.made: list[Any] = []

    def model(self) -> Any:
        """Return the model."""
        return self.sequential() if self.description["kind"] == "sequential" else self.functional()

    def sequential(self) -> Any:
        """Return a model of one layer after another."""
        import keras

        model = keras.Sequential(name=self.description["name"])
        for shape in self.description["inputs"][:1]:
            model.add(keras.Input(shape))
        for step in self.description["steps"]:
            count = len(model.layers)
            try:
                model.add(self.layer(step))
            except (ValueError, TypeError, RuntimeError):
                while len(model.layers) > count:
                    model.pop()
        return model

    def functional(self) -> Any:
        """Return a model whose layers take any earlier tensors."""
        import keras

        said = self.description
        inputs = [keras.Input(shape) for shape in said["inputs"]]
        tensors = list(inputs)
        taken: set[int] = set()
        for step in said["steps"]:
            on = [index % len(tensors) for index in step["on"]]
            try:
                tensors.append(self.applied(step, [tensors[index] for index in on]))
                taken.update(on)
            except (ValueError, TypeError, IndexError, ZeroDivisionError, RuntimeError):
                continue
        ends = [tensor for index, tensor in enumerate(tensors) if index not in taken]
        return keras.Model(inputs, ends if len(ends) > 1 else ends[0], name=said["name"])

    def applied(self, step: dict[str, Any], tensors: list[Any]) -> Any:
        """Return what a step makes of tensors."""
        if step["class"] == "plus":
            return tensors[0] * 2 + 1
        if step["class"] == "again":
            return self.made[step["which"] % len(self.made)](tensors[0])
        layer = self.layer(step)
        result = layer(tensors if step.get("several") else tensors[0])
        if "Conv" in json.dumps(step):
            self.made.append(layer)
        return result

    def layer(self, step: dict[str, Any]) -> Any:
        """Return the layer of a step."""
        import keras

        config = dict(step.get("config", {}))
        if step["class"] == "model":
            return Builder(step["model"]).model()
        if step["class"] == "Lambda":
            return keras.layers.Lambda(lambda x: x * 2, **config)
        if "inner" in step:
            return getattr(keras.layers, step["class"])(self.layer(step["inner"]), **config)
        return getattr(keras.layers, step["class"])(**config)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
