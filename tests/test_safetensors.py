"""safetensors: values as the library writes them, and a header that lies is refused before anything is allocated."""

from __future__ import annotations

import json
import os
import random
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from convsv.checkpoints import FORMATS, Checkpoint, RegularFile, open_checkpoint
from convsv.errors import CheckpointError, CorruptCheckpointError, UnsafeCheckpointError

pytestmark = pytest.mark.timeout(60)

DTYPES = [
    *(
        "float64",
        "float32",
        "float16",
        "int64",
        "int32",
        "int16",
        "int8",
        "uint64",
        "uint32",
        "uint16",
        "uint8",
        "bool",
    ),
    *(ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2),
]


def write(
    path: Path, header: object, data: bytes = b"", *, raw: bytes | None = None, length: int | None = None
) -> Path:
    text = json.dumps(header).encode() if raw is None else raw
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(start: int = 0, end: int = 8, shape: object = (2,), dtype: object = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def values(checkpoint: Checkpoint) -> dict[str, Any]:
    return {tensor.key: tensor.read() for tensor in checkpoint.tensors}


# ------------------------------------------------------------------------------------------------------------ values


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
def test_values_shape_and_dtype_are_those_that_were_saved(tmp_path: Path, dtype: Any) -> None:
    array = np.random.default_rng(0).integers(0, 2, (3, 4, 2)).astype(dtype)
    save_file({"a": array, "scalar": array[:1, 0, 0].reshape(()), "none": array[:0]}, tmp_path / "m.safetensors")
    checkpoint = open_checkpoint(tmp_path / "m.safetensors")
    found = {tensor.key: tensor for tensor in checkpoint.tensors}
    assert checkpoint.format == "safetensors"
    assert found["a"].dtype == np.dtype(dtype).name
    assert {key: tensor.shape for key, tensor in found.items()} == {"a": (3, 4, 2), "scalar": (), "none": (0, 4, 2)}
    np.testing.assert_array_equal(found["a"].read(), array)
    assert found["a"].read().dtype == dtype
    assert found["none"].read().shape == (0, 4, 2)


def test_metadata_padding_and_odd_names_are_accepted(tmp_path: Path) -> None:
    names = {
        "a/b\nc\u202e": np.ones(2, np.float32),
        "": np.zeros(1, np.float32),
        "\U0001f600": np.ones((1, 1), np.float32),
    }
    save_file(names, tmp_path / "m.safetensors", metadata={"format": "pt"})
    found = values(open_checkpoint(tmp_path / "m.safetensors"))
    assert found.keys() == names.keys()
    assert all(np.array_equal(found[key], names[key]) for key in names)


def test_a_file_without_tensors_is_a_checkpoint(tmp_path: Path) -> None:
    assert open_checkpoint(write(tmp_path / "m.safetensors", {})).tensors == ()


@pytest.mark.parametrize("name", ["m.pth", "m.h5", "m.keras", "m", "-m.bin"])
def test_the_suffix_does_not_matter(tmp_path: Path, name: str) -> None:
    save_file({"a": np.arange(3, dtype=np.float32)}, tmp_path / name)
    np.testing.assert_array_equal(values(open_checkpoint(tmp_path / name))["a"], [0, 1, 2])


def test_a_header_of_123_bytes_is_not_taken_for_json(tmp_path: Path) -> None:
    # The length's first byte is then "{".
    text = json.dumps({"a": entry()}).encode().ljust(123)
    checkpoint = open_checkpoint(write(tmp_path / "m", None, struct.pack("<2f", 1, 2), raw=text))
    np.testing.assert_array_equal(values(checkpoint)["a"], [1, 2])


@pytest.mark.parametrize(
    ("dtype", "shape", "size"), [("F4", [4], 2), ("F6_E2M3", [4], 3), ("F8_E8M0", [4], 4), ("X17", [5], 3)]
)
def test_a_dtype_that_is_not_read_is_a_problem_of_its_tensor(
    tmp_path: Path, dtype: str, shape: list[int], size: int
) -> None:
    header = {"odd": entry(0, size, shape, dtype), "good": entry(size, size + 8)}
    found = {t.key: t for t in open_checkpoint(write(tmp_path / "m", header, bytes(size + 8))).tensors}
    assert dtype in (found["odd"].problem or "")
    assert found["good"].problem is None
    np.testing.assert_array_equal(found["good"].read(), [0, 0])
    with pytest.raises(CheckpointError):
        found["odd"].read()


@pytest.mark.parametrize("shape", [[0, 1 << 62, 3], [1 << 62, 0, 3], [0, 1 << 63], [0, 1 << 40, 1 << 40]], ids=str)
def test_an_empty_tensor_with_a_shape_that_no_array_has_is_a_problem_of_its_tensor(
    tmp_path: Path, shape: list[int]
) -> None:
    header = {"odd": entry(0, 0, shape), "good": entry(0, 8)}
    found = {t.key: t for t in open_checkpoint(write(tmp_path / "m", header, bytes(8))).tensors}
    assert found["good"].problem is None
    assert found["odd"].problem == "its shape is too large"
    with pytest.raises(CheckpointError, match="its shape is too large"):
        found["odd"].read()


def test_a_real_file_reads_as_the_library_reads_it(shared_checkpoints: Path) -> None:
    path = shared_checkpoints / "burn-mnist.safetensors"
    expected, checkpoint = load_file(path), open_checkpoint(path)
    found = values(checkpoint)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[key], expected[key]) for key in expected)
    assert checkpoint.sha256().startswith("f23a34cfa782d2a6")


# ----------------------------------------------------------------------------------------------------------- hostile

TWO = {"a": entry(0, 8), "b": entry(8, 16)}
HEADERS: dict[str, tuple[object, int]] = {
    "data longer than the tensors": ({"a": entry()}, 9),
    "data shorter than the tensors": ({"a": entry()}, 7),
    "a hole between tensors": ({"a": entry(0, 8), "b": entry(9, 17)}, 17),
    "a hole before the first tensor": ({"a": entry(1, 9)}, 9),
    "overlapping tensors": ({"a": entry(0, 8), "b": entry(4, 12)}, 12),
    "the same data twice": ({"a": entry(0, 8), "b": entry(0, 8)}, 8),
    "offsets in the wrong order": ({"a": entry(8, 0)}, 8),
    "negative offsets": ({"a": entry(-8, 0)}, 0),
    "three offsets": ({"a": {**entry(), "data_offsets": [0, 8, 8]}}, 8),
    "size other than shape times dtype": ({"a": entry(shape=[3])}, 8),
    "a product that overflows 64 bits": ({"a": entry(0, 0, shape=[1 << 32, 1 << 32])}, 0),
    "a length beyond 64 bits": ({"a": entry(0, 0, shape=[1 << 64, 0])}, 0),
    "a negative length": ({"a": entry(shape=[-1, -2])}, 8),
    "a boolean length": ({"a": entry(shape=[True, 2])}, 8),
    "a length that is a float": ({"a": entry(shape=[2.0])}, 8),
    "an offset that is a float": ({"a": entry(0, 8.0)}, 8),  # type: ignore[arg-type]
    "a length that is NaN": ({"a": entry(shape=[float("nan")])}, 8),
    "a shape that is a string": ({"a": entry(shape="2")}, 8),
    "a dtype that is a number": ({"a": entry(dtype=4)}, 8),
    "an entry without dtype": ({"a": {"shape": [2], "data_offsets": [0, 8]}}, 8),
    "an entry with one key too many": ({"a": {**entry(), "x": 1}}, 8),
    "an entry that is a list": ({"a": [1]}, 8),
    "metadata that maps to numbers": ({"__metadata__": {"a": 1}}, 0),
    "metadata that is a string": ({"__metadata__": "a"}, 0),
    "a shape of 65 axes": ({"a": entry(0, 4, shape=[1] * 65)}, 4),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_that_contradicts_itself_is_refused(tmp_path: Path, case: str) -> None:
    header, size = HEADERS[case]
    with pytest.raises(CorruptCheckpointError) as caught:
        open_checkpoint(write(tmp_path / "m.safetensors", header, bytes(size)))
    assert "\n" not in str(caught.value)
    assert "m.safetensors" in str(caught.value)


NONE = b'{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
RAW: dict[str, bytes] = {
    "a duplicate tensor": b'{"a":' + NONE + b',"a":' + NONE + b"}",
    "a duplicate key in an entry": b'{"a":{"dtype":"F32","dtype":"F64","shape":[0],"data_offsets":[0,0]}}',
    "a key that is a duplicate once unescaped": b'{"a":' + NONE + rb',"\u0061":' + NONE + b"}",
    "not UTF-8": b'{"\xff":{}}',
    "not JSON": b"{'a': 1}",
    "JSON that ends early": b'{"a":',
    "two JSON values": b"{}{}",
    "a number of 5000 digits": b'{"a":{"dtype":"F32","shape":[' + b"1" * 5000 + b'],"data_offsets":[0,0]}}',
    "an exponent": b'{"a":{"dtype":"F32","shape":[1e3],"data_offsets":[0,0]}}',
    "100,000 nested lists": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}


@pytest.mark.parametrize("case", RAW)
def test_a_header_that_json_readers_disagree_about_is_refused(tmp_path: Path, case: str) -> None:
    with pytest.raises(CorruptCheckpointError):
        open_checkpoint(write(tmp_path / "m.safetensors", None, raw=RAW[case]))


def test_a_header_that_does_not_start_with_a_brace_is_no_header(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        open_checkpoint(write(tmp_path / "m.safetensors", None, raw=b' {"a":1}'))


@pytest.mark.parametrize("length", [9, 1 << 20, 100_000_000, 1 << 40, (1 << 63) - 1, (1 << 64) - 1, (1 << 64) - 8])
def test_a_header_beyond_the_end_is_refused(tmp_path: Path, length: int) -> None:
    with pytest.raises(CorruptCheckpointError):
        open_checkpoint(write(tmp_path / "m.safetensors", None, raw=b'{"a":1}', length=length))


def test_a_header_of_more_than_100_megabytes_is_refused_unread(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", None, raw=b"{}", length=100_000_001)
    os.truncate(path, 200_000_000)  # sparse
    with pytest.raises(UnsafeCheckpointError):
        open_checkpoint(path)


def test_a_header_of_many_small_objects_is_refused_unparsed(tmp_path: Path) -> None:
    with pytest.raises(UnsafeCheckpointError):
        open_checkpoint(write(tmp_path / "m.safetensors", None, raw=b'{"a":[' + b"[]," * 3_000_001 + b"[]]}"))


@pytest.mark.parametrize("start", [b"{\x00\x00\x00\x00\x00\x00\x00{", b'{"weight_map": ', b"noise, with no brace"])
def test_a_large_file_is_not_read_to_tell_what_it_is(
    tmp_path: Path, start: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, counts = tmp_path / "large", []
    path.write_bytes(start)
    os.truncate(path, 200_000_000)
    file, read = RegularFile(path), RegularFile.read
    monkeypatch.setattr(RegularFile, "read", lambda self, at, count: counts.append(count) or read(self, at, count))
    FORMATS["safetensors"].recognises(file)
    assert sum(counts) < 100


def test_a_truncated_file_is_refused_at_every_length(tmp_path: Path) -> None:
    whole = write(tmp_path / "m", TWO, bytes(16)).read_bytes()
    for size in range(len(whole)):
        path = tmp_path / "cut.safetensors"
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            open_checkpoint(path)


def test_a_file_that_shrinks_after_it_was_opened_is_an_error_not_a_crash(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", TWO, bytes(16))
    tensor = open_checkpoint(path).tensors[1]
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(CorruptCheckpointError, match="b"):
        tensor.read()


def read_all(path: Path) -> CheckpointError | None:
    try:
        for tensor in open_checkpoint(path).tensors:
            if tensor.problem is None:
                assert tensor.read().shape == tensor.shape
    except CheckpointError as error:
        return error
    return None


def test_mutated_headers_end_in_a_checkpoint_error_or_in_readable_tensors(tmp_path: Path) -> None:
    header = {"__metadata__": {"format": "pt"}, "a": entry(0, 8), "bé": entry(8, 24, [2, 2]), "c": entry(24, 24, [0])}
    whole, rng = write(tmp_path / "m", header, bytes(range(24))).read_bytes(), random.Random(0)
    path, refused = tmp_path / "mutated.safetensors", []
    for _ in range(600):
        content = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 5))):
            content[rng.randrange(len(content) - 24)] = rng.choice((rng.randrange(256), *b'0123456789"{}[],:'))
        path.write_bytes(content)
        refused.append(read_all(path))
    messages = [str(error) for error in refused if error]
    assert 300 < len(messages) < 600
    assert all(message.isprintable() for message in messages)


# ------------------------------------------------------------------------------------------------------------ shards


def shards(folder: Path, weight_map: object, **more: object) -> Path:
    save_file({"a": np.full(2, 1, np.float32), "b": np.full(3, 2, np.float32)}, folder / "m-1.safetensors")
    save_file({"c": np.full((1, 2), 3, np.float16)}, folder / "m-2.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 24.0}, "weight_map": weight_map, **more}))
    return index


MAP = {"a": "m-1.safetensors", "b": "m-1.safetensors", "c": "m-2.safetensors"}


@pytest.mark.parametrize("by", ["index", "folder"])
def test_shards_are_one_checkpoint(tmp_path: Path, by: str) -> None:
    index = shards(tmp_path, MAP)
    checkpoint = open_checkpoint(index if by == "index" else tmp_path)
    assert checkpoint.path == str(index if by == "index" else tmp_path)
    assert {key: float(value.flat[0]) for key, value in values(checkpoint).items()} == {"a": 1, "b": 2, "c": 3}
    assert [file.path.name for file in checkpoint.files] == [index.name, "m-1.safetensors", "m-2.safetensors"]
    assert checkpoint.problems == ()


def test_the_hash_of_shards_changes_with_any_of_them(tmp_path: Path) -> None:
    index = shards(tmp_path, MAP)
    before = open_checkpoint(index).sha256()
    assert before == open_checkpoint(index).sha256()
    save_file({"c": np.full((1, 2), 4, np.float16)}, tmp_path / "m-2.safetensors")
    assert open_checkpoint(index).sha256() != before


def test_a_shard_may_be_a_symbolic_link_of_the_folder(tmp_path: Path) -> None:
    index = shards(tmp_path, MAP)
    (tmp_path / "m-1.safetensors").rename(tmp_path / "blob")
    (tmp_path / "m-1.safetensors").symlink_to("blob")
    assert len(open_checkpoint(index).tensors) == 3


def test_tensors_that_the_index_does_not_name_are_told(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(shards(tmp_path, {"a": "m-1.safetensors", "c": "m-2.safetensors"}))
    assert [tensor.key for tensor in checkpoint.tensors] == ["a", "c"]
    assert len(checkpoint.problems) == 1
    assert "b" in checkpoint.problems[0]


@pytest.mark.parametrize(
    "name",
    [
        "../m-1.safetensors",
        "/etc/passwd.safetensors",
        "sub/m.safetensors",
        "..\\m.safetensors",
        "C:m.safetensors",
        "a\x00.safetensors",
    ],
)
def test_an_index_cannot_name_a_file_outside_its_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "m-1.safetensors")
    with pytest.raises(UnsafeCheckpointError) as caught:
        open_checkpoint(shards(folder, {**MAP, "x": name}))
    assert "\x00" not in str(caught.value)


@pytest.mark.parametrize(
    ("weight_map", "what"),
    [
        ({**MAP, "d": "m-3.safetensors"}, "missing"),
        ({**MAP, "d": "m" * 5000}, "^.{0,500}missing.{0,500}$"),
        ({**MAP, "d": "m-2.safetensors"}, "does not hold"),
        ({**MAP, "d": 5}, "weight_map"),
        (["m-1.safetensors"], "weight_map"),
    ],
)
def test_an_index_that_contradicts_its_shards_is_refused(tmp_path: Path, weight_map: object, what: str) -> None:
    with pytest.raises(CorruptCheckpointError, match=what):
        open_checkpoint(shards(tmp_path, weight_map, hint='.safetensors"'))


def test_an_index_with_a_duplicate_key_is_refused(tmp_path: Path) -> None:
    index = shards(tmp_path, MAP)
    index.write_text('{"weight_map": {"a": "m-1.safetensors", "a": "m-2.safetensors"}}')
    with pytest.raises(CorruptCheckpointError, match="twice"):
        open_checkpoint(index)


def test_every_shard_is_validated(tmp_path: Path) -> None:
    index = shards(tmp_path, MAP)
    path = tmp_path / "m-2.safetensors"
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(CorruptCheckpointError, match="m-2"):
        open_checkpoint(index)


def test_a_shard_that_is_a_fifo_is_an_error(tmp_path: Path) -> None:
    index = shards(tmp_path, MAP)
    (tmp_path / "m-2.safetensors").unlink()
    os.mkfifo(tmp_path / "m-2.safetensors")
    with pytest.raises(CheckpointError, match="regular"):
        open_checkpoint(index)


def test_an_index_of_513_shards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsafeCheckpointError, match="too many"):
        open_checkpoint(shards(tmp_path, {f"t{n}": f"{n}.safetensors" for n in range(513)}))
