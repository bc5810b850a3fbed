"""Edited Keras files: archives keep their other entries, and Keras itself gives the outputs that are implied."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from convsv.checkpoints import Checkpoint, StoredTensor, open_checkpoint
from convsv.checkpoints.writing import Edit, save_edited
from hdf5files import OTHER, build, check_content, differing, edited, extent, named

pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).resolve().parent.parent


def zipped(path: Path, content: bytes, method: int) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.comment = b"mine"
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.15.1"}), zipfile.ZIP_DEFLATED)
        archive.writestr("model.weights.h5", content, method)
        archive.writestr("config.json", json.dumps({"class_name": "Functional", "config": {"layers": []}}))
    return path


# ------------------------------------------------------------------------------------------------------------- archives

METHODS = {"stored": zipfile.ZIP_STORED, "deflated": zipfile.ZIP_DEFLATED}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layout", ["contiguous", "gzip", "chunked", "compact"])
def test_an_archive_keeps_its_other_entries_bit_for_bit(tmp_path: Path, layout: str, method: str) -> None:
    inner = build(tmp_path / "inner.h5", layout)
    path = zipped(tmp_path / "m.keras", inner.read_bytes(), METHODS[method])
    copy = edited(path, {"conv/conv/kernel:0": OTHER}, tmp_path / "copy.keras")
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(copy) as after:
        assert after.testzip() is None
        assert (after.namelist(), after.comment) == (before.namelist(), before.comment)
        for old, new in zip(before.infolist(), after.infolist(), strict=True):
            assert (new.compress_type, new.date_time, new.extra) == (old.compress_type, old.date_time, old.extra)
            assert (new.filename == "model.weights.h5") or after.read(new) == before.read(old)
        result = tmp_path / "after.h5"
        result.write_bytes(after.read("model.weights.h5"))
    check_content(inner, result, {"conv/conv/kernel:0": OTHER, "alias": OTHER})


def test_in_a_stored_member_only_values_and_checksums_change(tmp_path: Path) -> None:
    inner = build(tmp_path / "inner.h5", "contiguous")
    path = zipped(tmp_path / "m.keras", inner.read_bytes(), zipfile.ZIP_STORED)
    copy = edited(path, {"conv/conv/kernel:0": OTHER}, tmp_path / "copy.keras")
    before, after = path.read_bytes(), copy.read_bytes()
    values = extent(inner, "conv/conv/kernel:0")
    start = before.index(inner.read_bytes())
    outside = [at for at in differing(before, after) if not start + values.start <= at < start + values.stop]
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("model.weights.h5")
        record = before.index(b"PK\x01\x02", before.index(b"PK\x01\x02") + 4)
        assert set(outside) <= {
            *range(info.header_offset + 14, info.header_offset + 18),
            *range(record + 16, record + 20),
        }


# ----------------------------------------------------------------------------------------------------------- real files


def convolutions(checkpoint: Checkpoint) -> list[StoredTensor]:
    optimizers = ("optimizer", "optimizer_weights")
    return [
        t for t in checkpoint.tensors if len(t.shape) in (3, 4, 5) and t.container[:1] not in [(o,) for o in optimizers]
    ]


@pytest.mark.parametrize(
    ("name", "count"),
    [("mlperf-vww96.h5", 27), ("ssrnet-imdb.h5", 14), ("snake-dqn.weights.h5", 2), ("acoustic-ae.keras", 7)],
)
def test_a_real_file_changes_in_the_bytes_of_its_kernels_only(
    shared_checkpoints: Path, tmp_path: Path, name: str, count: int
) -> None:
    checkpoint = open_checkpoint(shared_checkpoints / name)
    kernels = convolutions(checkpoint)
    assert len(kernels) == count
    save_edited(checkpoint, [Edit(t, t.read() * np.float32(0.75)) for t in kernels], tmp_path / name)
    before, after = (shared_checkpoints / name).read_bytes(), (tmp_path / name).read_bytes()
    # Where the kernels stand is found by their bytes, which occur once, not by what the reader says.
    inside: set[int] = set()
    for tensor in kernels:
        raw = tensor.read().tobytes()
        assert before.count(raw) == 1
        inside |= set(range(before.index(raw), before.index(raw) + len(raw)))
    outside = [at for at in differing(before, after) if at not in inside]
    assert len(outside) <= (8 if name.endswith(".keras") else 0)
    written = open_checkpoint(tmp_path / name)
    for tensor in kernels:
        path = "/".join((*tensor.container, tensor.key))
        np.testing.assert_array_equal(named(written, path).read(), tensor.read() * np.float32(0.75))


# ---------------------------------------------------------------------------------------------------------------- Keras


KERAS = """
import json, sys
import numpy as np, keras

class Depthwise(keras.layers.DepthwiseConv2D):
    def __init__(self, *args, groups=1, **options):  # TensorFlow 2.4 wrote it, Keras 3 does not know it
        super().__init__(*args, **options)

def load(job, path):
    custom = {"DepthwiseConv2D": Depthwise}
    model = keras.models.load_model(job["model"] or path, compile=False, custom_objects=custom)
    if job["model"]:
        model.load_weights(path)
    return model

found = {}
for job in json.load(sys.stdin):
    original, copy, edits = load(job, job["original"]), load(job, job["copy"]), np.load(job["edits"])
    shape = [n or 32 for n in original.input_shape[1:]]
    image = np.random.default_rng(0).standard_normal((2, *shape)).astype("f4")
    answer = lambda model: [np.asarray(y) for y in keras.tree.flatten(model.predict_on_batch(image))]
    before, chosen = answer(original), []
    for number in range(len(edits) // 2):
        old, new = edits[f"old{number}"], edits[f"new{number}"]
        same = [v for v in original.variables if v.shape == old.shape and np.array_equal(v.numpy(), old)]
        assert len(same) == 1, (number, len(same))
        same[0].assign(new)
    implied, got = answer(original), answer(copy)
    found[job["name"]] = [
        all(np.array_equal(a, b) for a, b in zip(implied, got)),
        all(np.array_equal(a.numpy(), b.numpy()) for a, b in zip(original.variables, copy.variables)),
        max(float(abs(a - b).max()) for a, b in zip(before, got)),
    ]
print("\\n" + json.dumps(found))
"""


def compressed(path: Path, target: Path) -> Path:
    """The same weights file, gzipped and chunked, which Keras reads too."""
    with h5py.File(path) as source, h5py.File(target, "w") as file:
        file.attrs.update(source.attrs)
        source.visititems(lambda name, item: _copy_item(file, name, item))
    return target


def _copy_item(file: h5py.File, name: str, item: Any) -> None:
    if isinstance(item, h5py.Group):
        copy: Any = file.require_group(name)
    else:
        options = {"compression": "gzip", "shuffle": True} if item.shape else {}
        copy = file.create_dataset(name, data=item[()], **options)
    copy.attrs.update(item.attrs)


def repacked(path: Path, target: Path) -> Path:
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in source.namelist():
            archive.writestr(name, source.read(name))
    return target


def jobs_of(folder: Path) -> list[dict[str, Any]]:
    samples, shared = ROOT / "sample_checkpoints", ROOT.parent / "shared" / "checkpoints"
    digits = samples / "digits.keras"
    sources: dict[str, tuple[Path, Path | None]] = {
        "digits.keras": (digits, None),
        "digits.h5": (samples / "digits.h5", None),
        "digits.weights.h5": (samples / "digits.weights.h5", digits),
        "deflated digits.keras": (repacked(digits, folder / "deflated.keras"), None),
        "gzipped digits.weights.h5": (
            compressed(samples / "digits.weights.h5", folder / "digits-gz.weights.h5"),
            digits,
        ),
    }
    if shared.is_dir():
        sources |= {name: (shared / name, None) for name in ("acoustic-ae.keras", "mlperf-vww96.h5")}
    jobs = []
    for number, (name, (source, model)) in enumerate(sources.items()):
        checkpoint = open_checkpoint(source)
        kernels = [(t, t.read()) for t in convolutions(checkpoint)]
        edits = {f"old{n}": values for n, (_, values) in enumerate(kernels)}
        edits |= {f"new{n}": values * np.float32(0.75) for n, (_, values) in enumerate(kernels)}
        copy, arrays = folder / f"{number}-copy{''.join(source.suffixes)}", folder / f"{number}.npz"
        save_edited(checkpoint, [Edit(t, edits[f"new{n}"]) for n, (t, _) in enumerate(kernels)], copy)
        np.savez(arrays, **edits)  # type: ignore[arg-type]
        paths = {"original": source, "copy": copy, "edits": arrays, "model": model}
        jobs.append({"name": name, **{key: path and str(path) for key, path in paths.items()}})
    return jobs


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Sequence[Any]]:
    """What Keras, in a process of its own, says about the edited files."""
    if importlib.util.find_spec("keras") is None:
        pytest.skip("Keras is not installed")
    folder = tmp_path_factory.mktemp("keras")
    environment = {**os.environ, "KERAS_BACKEND": "torch", "KERAS_HOME": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KERAS],
        input=json.dumps(jobs_of(folder)),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: Mapping[str, Sequence[Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    "name",
    [
        "digits.keras",
        "digits.h5",
        "digits.weights.h5",
        "deflated digits.keras",
        "gzipped digits.weights.h5",
        "acoustic-ae.keras",
        "mlperf-vww96.h5",
    ],
)
def test_keras_loads_it_and_gives_the_outputs_that_the_new_kernels_imply(
    name: str, answers: Mapping[str, Sequence[Any]]
) -> None:
    if name not in answers:
        pytest.skip("no folder of shared checkpoints beside the repository")
    same_outputs, same_variables, moved = answers[name]
    assert same_variables
    assert same_outputs
    assert moved > 0
