"""Files elsewhere: what is fetched, what a server may do wrong, and that nothing in a file is ever an address."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from convsv.checkpoints import open_checkpoint
from convsv.checkpoints._address import is_address, neighbour
from convsv.checkpoints._remote import BLOCK, RemoteFile
from convsv.cli import app
from convsv.errors import CheckpointError, CorruptCheckpointError, UnsafeCheckpointError, UsageError
from webserver import (
    Answer,
    Request,
    Web,
    closes_early,
    drips,
    in_parts,
    leads_to,
    serving,
    stalls,
    stalls_within,
    whole,
    without_length,
)

pytest.importorskip("urllib3")
fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """A server of an empty folder, and no proxy on the way to it."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "served"
    folder.mkdir()
    with serving(folder) as server:
        yield server


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second is long enough for a server on this machine."""
    monkeypatch.setenv("CONVSV_REMOTE_TIMEOUT", "1")


@pytest.fixture
def store() -> Iterator[str]:
    """An empty folder in the memory file system."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield "memory://bucket"
    system.store.clear()


def convsv(*args: str, given: bytes = b"") -> Any:
    return CliRunner().invoke(app, list(args), input=given)


def rows(*args: str) -> list[dict[str, Any]]:
    """Return the layers of a report, without what names the file."""
    result = convsv(*args, "--format", "jsonl", "--quiet")
    assert result.exit_code == 0, result.stderr
    found = [json.loads(line) for line in result.stdout.splitlines()[:-1]]
    return [{key: value for key, value in row.items() if key != "checkpoint"} for row in found]


def large(path: Path, layers: int = 40) -> int:
    """Write a checkpoint whose header is small beside its weights, and return its size."""
    kernel = np.random.default_rng(0).standard_normal((64, 64, 3, 3)).astype(np.float32)
    save_file({f"layers.{n}.conv.weight": kernel + np.float32(n) for n in range(layers)}, path)
    return path.stat().st_size


def layers_error(address: str) -> tuple[int, str]:
    """Return the exit code and the one line of ``layers`` on something that fails."""
    result = convsv("layers", address, "--format", "jsonl")
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert lines[0].count(address) <= 1
    return result.exit_code, lines[0]


# ------------------------------------------------------------------------------------------------------ what is fetched


def test_layers_fetches_the_header_only(web: Web) -> None:
    size = large(web.folder / "m.safetensors")
    assert size > 5_000_000
    assert len(rows("layers", web.url("m.safetensors"))) == 40
    assert web.sent == BLOCK
    assert web.asked == [("m.safetensors", "bytes=0-65535")]


def test_layers_fetches_a_long_header_in_two_parts(web: Web) -> None:
    tensors = {f"blocks.{n}.a.rather.long.name.of.a.layer.conv.weight": np.ones((1, 1, 3, 3)) for n in range(1500)}
    save_file(tensors, web.folder / "m.safetensors")
    header = int.from_bytes((web.folder / "m.safetensors").read_bytes()[:8], "little") + 8
    assert header > BLOCK
    assert len(rows("layers", web.url("m.safetensors"))) == 1500
    assert web.sent == header
    assert len(web.asked) == 2


def test_analyze_fetches_each_chosen_tensor_once(web: Web) -> None:
    large(web.folder / "m.safetensors")
    found = rows("analyze", web.url("m.safetensors"), "--include", "layers.[37].conv", "--tol", "1")
    assert found == rows("analyze", str(web.folder / "m.safetensors"), "--include", "layers.[37].conv", "--tol", "1")
    assert web.sent == BLOCK + 2 * 64 * 64 * 9 * 4
    assert len(web.asked) == 3


def test_shards_are_fetched_like_one_file(web: Web, sample_checkpoints: Path) -> None:
    shutil.copytree(sample_checkpoints / "digits-sharded", web.folder, dirs_exist_ok=True)
    here = rows("analyze", str(sample_checkpoints / "digits-sharded"))
    assert rows("analyze", web.url("model.safetensors.index.json?token=1#x")) == here
    assert {path for path, _ in web.asked} == {path.name for path in web.folder.iterdir()}


@pytest.mark.parametrize("answer", [in_parts, whole, without_length], ids=["parts", "whole", "no length"])
def test_every_format_is_read_as_if_it_were_here(web: Web, sample_checkpoints: Path, answer: Answer) -> None:
    names = ("digits.pt", "digits-module.pt", "digits-legacy.pth", "digits.h5", "digits.keras", "digits.safetensors")
    for name in names:
        shutil.copy(sample_checkpoints / name, web.folder)
        web.answers[name] = answer
        assert rows("layers", web.url(name)) == rows("layers", str(sample_checkpoints / name)), name


def test_values_are_the_same_whatever_the_way(web: Web, sample_checkpoints: Path) -> None:
    for name in ("digits.pt", "digits.keras", "digits.weights.h5"):
        shutil.copy(sample_checkpoints / name, web.folder)
        there, here = open_checkpoint(web.url(name)), open_checkpoint(sample_checkpoints / name)
        assert [tensor.key for tensor in there.tensors] == [tensor.key for tensor in here.tensors]
        for one, other in zip(there.tensors, here.tensors, strict=True):
            if not other.problem:
                np.testing.assert_array_equal(one.read(), other.read())


def test_onnx_models_are_read_without_files_beside_them(web: Web) -> None:
    onnx = pytest.importorskip("onnx")
    weight = onnx.numpy_helper.from_array(np.ones((2, 2, 3, 3), np.float32), "w")
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], name="conv")
    value = onnx.helper.make_tensor_value_info
    ends = [value("x", 1, [1, 2, 8, 8])], [value("y", 1, [1, 2, 6, 6])]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", *ends, [weight]))
    onnx.save(model, web.folder / "m.onnx")
    assert rows("analyze", web.url("m.onnx")) == rows("analyze", str(web.folder / "m.onnx"))
    onnx.save(model, web.folder / "e.onnx", save_as_external_data=True, location="e.bin", size_threshold=0)
    result = convsv("analyze", web.url("e.onnx"), "--format", "jsonl")
    assert "keeps weights in another file" in result.stdout + result.stderr
    assert "e.bin" not in {path for path, _ in web.asked}


def test_a_server_without_parts_is_read_no_further_than_needed(web: Web) -> None:
    size = large(web.folder / "m.safetensors", layers=400)
    web.answers["m.safetensors"] = whole
    assert len(rows("layers", web.url("m.safetensors"))) == 400
    assert len(web.asked) == 1
    file = RemoteFile(web.url("m.safetensors"))
    assert (file.size, file.read(size - 5, 5)) == (size, (web.folder / "m.safetensors").read_bytes()[-5:])


def test_small_reads_share_blocks_and_blocks_are_bounded(web: Web) -> None:
    content = np.random.default_rng(1).bytes(5 * BLOCK + 77)
    (web.folder / "m").write_bytes(content)
    file = RemoteFile(web.url("m"))
    for offset, count in [(0, 1), (BLOCK - 1, 2), (5 * BLOCK, 77), (3, 0), (len(content), 0), (BLOCK, BLOCK)]:
        assert file.read(offset, count) == content[offset : offset + count]
    assert len(web.asked) == 3
    assert file.read(0, len(content)) == content
    for offset, count in [(0, len(content) + 1), (-1, 1), (len(content), 1)]:
        with pytest.raises(CorruptCheckpointError, match="ends before"):
            file.read(offset, count)


def test_an_empty_file_is_an_error_like_here(web: Web) -> None:
    (web.folder / "m.pt").write_bytes(b"")
    assert layers_error(web.url("m.pt"))[0] == 3


# ----------------------------------------------------------------------------------------------------------- the report


def test_the_hash_is_null_and_the_version_is_said(web: Web) -> None:
    large(web.folder / "m.safetensors", layers=1)
    result = convsv("analyze", web.url("m.safetensors"), "--format", "json", "--tol", "1")
    (checkpoint,) = json.loads(result.stdout)["checkpoints"]
    assert checkpoint["sha256"] is None
    assert checkpoint["path"] == web.url("m.safetensors")
    (problem,) = checkpoint["problems"]
    assert problem.startswith("not hashed")
    assert problem.endswith('"one"')


def test_addresses_stand_beside_files_and_in_lists(web: Web, tmp_path: Path) -> None:
    large(web.folder / "m.safetensors", layers=1)
    here = tmp_path / "here.safetensors"
    shutil.copy(web.folder / "m.safetensors", here)
    address = web.url("m.safetensors")
    given = f"{address}\n{here}\n{web.url('missing.pt')}\n".encode()
    result = convsv("layers", "-", "--format", "jsonl", given=given)
    last = json.loads(result.stdout.splitlines()[-1])["summary"]
    assert [c["path"] for c in last["checkpoints"]] == [address, str(here), web.url("missing.pt")]
    assert (result.exit_code, last["layers"]) == (2, 2)
    result = convsv("compare", str(here), address, "--format", "json", "-q")
    assert json.loads(result.stdout)["comparison"]["steps"][0]["layers"][0]["status"] == "same"


def test_clip_refuses_what_is_elsewhere(web: Web, tmp_path: Path) -> None:
    large(web.folder / "m.safetensors", layers=1)
    result = convsv("clip", web.url("m.safetensors"), "--max-norm", "1", "-o", str(tmp_path / "out.safetensors"))
    assert result.exit_code == 3
    assert "cannot be edited" in result.stderr
    assert not (tmp_path / "out.safetensors").exists()


def test_a_file_here_that_is_called_like_an_address_is_a_file(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("http:/x").mkdir(parents=True)
    large(Path("http:/x/m.safetensors"), layers=1)
    assert not is_address("http://x/m.safetensors")
    assert len(rows("layers", "http://x/m.safetensors")) == 1
    assert not any(map(is_address, ("C:/x.pt", "c://x.pt", "x.pt", "http:", "http:x", "/http://x", "-", "s3:/x")))
    assert is_address("S3://bucket/x.pt")


@pytest.mark.parametrize(
    "address",
    [
        "ftp://host/x.pt",
        "file:///etc/passwd",
        "http://user:secret@host/x.pt",
        "http:///x.pt",
        "https://ho st/x.pt",
        "https://host:99999/x.pt",
        "simplecache::http://host/x.pt",
        "memory://a::http://host/x.pt",
        "local:///etc/passwd",
        "github://a:b@c/d.pt",
    ],
)
def test_other_addresses_are_usage(address: str) -> None:
    result = convsv("layers", address)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert "secret" not in result.stderr


def test_nothing_is_imported_without_an_address(tmp_path: Path) -> None:
    large(tmp_path / "m.safetensors", layers=1)
    script = (
        "import sys; sys.argv = ['convsv', 'layers', sys.argv[1]]\n"
        "import atexit; there = lambda: {'fsspec', 'urllib3', 'aiohttp'} & set(sys.modules)\n"
        "atexit.register(lambda: print(there(), file=sys.stderr))\n"
        "from convsv.__main__ import main; main()"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "m.safetensors")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()[-1] == "set()"


@pytest.mark.parametrize(
    ("address", "package", "install"),
    [
        ("http://127.0.0.1/x.pt", "urllib3", "convsv[remote]"),
        ("s3://bucket/x.pt", "fsspec", "convsv[remote]"),
        ("s3://bucket/x.pt", "s3fs", "pip install s3fs"),
        ("gs://bucket/x.pt", "gcsfs", "pip install gcsfs"),
        ("hf://org/model/x.pt", "huggingface_hub", "pip install huggingface_hub"),
    ],
)
def test_a_missing_package_is_named(address: str, package: str, install: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    code, line = layers_error(address)
    assert code == 3
    assert package in line
    assert install in line


# ---------------------------------------------------------------------------------------------------------- bad servers


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("answer", [stalls, stalls_within, drips])
def test_a_server_that_hangs_is_left_in_time(web: Web, answer: Answer) -> None:
    web.answers["m.pt"] = answer
    code, line = layers_error(web.url("m.pt"))
    assert code == 3
    assert "time" in line or "reached" in line or "ended" in line
    assert not web.outlasted


@pytest.mark.usefixtures("impatient")
def test_a_server_that_hangs_does_not_stop_the_others(web: Web) -> None:
    large(web.folder / "m.safetensors", layers=1)
    web.answers["slow.pt"] = stalls
    result = convsv("layers", web.url("slow.pt"), web.url("m.safetensors"), "--format", "jsonl", "-q")
    assert (result.exit_code, len(result.stdout.splitlines())) == (3, 2)


def test_nobody_there_is_one_line() -> None:
    with serving(Path("/nonexistent")) as gone:
        pass
    code, line = layers_error(gone.url("m.pt"))
    assert code == 3
    assert "cannot be reached" in line


def other_size(request: Request) -> None:
    in_parts(request, Content_Range="bytes 0-65535/99999999999")


def other_part(request: Request) -> None:
    in_parts(request, Content_Range="bytes 7-65542/70000")


def no_part(request: Request) -> None:
    in_parts(request, Content_Range="")


def odd_part(request: Request) -> None:
    in_parts(request, Content_Range="bytes 0-65535/*")


def longer(request: Request) -> None:
    content = request.content or b""
    request.answer(206, content + b"x", Content_Range=f"bytes 0-{len(content) - 1}/{len(content)}")


def endless(request: Request) -> None:
    request.close_connection = True
    request.answer(206, b"", Content_Length="", Content_Range="bytes 0-99/100", Connection="close")
    while not request.web.done.is_set():
        request.send(b"x" * 100_000)


def packed(request: Request) -> None:
    in_parts(request, Content_Encoding="gzip")


def status(code: int) -> Answer:
    return lambda request: request.answer(code, b"no")


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (closes_early, 3),
        (other_size, 3),
        (other_part, 3),
        (no_part, 3),
        (odd_part, 3),
        (longer, 3),
        (endless, 3),
        (packed, 3),
        (status(404), 2),
        (status(403), 3),
        (status(204), 3),
        (status(503), 3),
        (leads_to("file:///etc/passwd"), 3),
        (leads_to("ftp://127.0.0.1/x"), 3),
        (leads_to("//"), 3),
        (leads_to(""), 3),
        (leads_to("\x1b[31mred"), 3),
        (leads_to("m.safetensors"), 3),
    ],
)
def test_a_server_that_is_wrong_is_one_line(web: Web, answer: Answer, code: int) -> None:
    large(web.folder / "m.safetensors", layers=1)
    web.answers["m.safetensors"] = answer
    assert layers_error(web.url("m.safetensors"))[0] == code
    assert "\x1b" not in layers_error(web.url("m.safetensors"))[1]


def test_redirects_on_the_web_are_followed(web: Web) -> None:
    large(web.folder / "m.safetensors", layers=2)
    web.answers["latest"] = leads_to("m.safetensors?signed=1")
    found = rows("analyze", web.url("latest"), "--tol", "1")
    assert found == rows("analyze", str(web.folder / "m.safetensors"), "--tol", "1")


def test_a_protected_connection_never_leads_to_an_open_one() -> None:
    from convsv.checkpoints._http import _next

    assert _next("https://a/b", "/c") == "https://a/c"
    assert _next("http://a/b", "https://c/d") == "https://c/d"
    with pytest.raises(UnsafeCheckpointError):
        _next("https://a/b", "http://a/c")


@pytest.mark.parametrize("how", ["ETag", "size", "shorter", "gone"])
def test_a_file_that_changes_meanwhile_is_an_error(web: Web, how: str) -> None:
    size = large(web.folder / "m.safetensors", layers=4)
    checkpoint = open_checkpoint(web.url("m.safetensors"))
    content = (web.folder / "m.safetensors").read_bytes()
    if how == "ETag":
        web.answers["m.safetensors"] = lambda request: in_parts(request, etag='"two"')
    elif how == "gone":
        (web.folder / "m.safetensors").unlink()
    else:
        (web.folder / "m.safetensors").write_bytes(content + b"x" if how == "size" else content[: size // 8])
    with pytest.raises(UsageError if how == "gone" else CorruptCheckpointError):
        checkpoint.tensors[-1].read()


def test_what_is_too_large_is_not_fetched_whole(
    web: Web, sample_checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(sample_checkpoints / "digits.h5", web.folder)
    monkeypatch.setattr("convsv.checkpoints._remote.MOST_FETCHED", 10_000)
    assert "too large to be fetched whole" in layers_error(web.url("digits.h5"))[1]
    for answer in (whole, without_length):
        web.answers["digits.h5"] = answer
        assert layers_error(web.url("digits.h5"))[0] == 3


def test_a_full_disk_is_one_line(web: Web, sample_checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(sample_checkpoints / "digits.h5", web.folder)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    code, line = layers_error(web.url("digits.h5"))
    assert code == 3
    assert "No space left" in line


def test_a_temporary_file_does_not_stay(web: Web, sample_checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    shutil.copy(sample_checkpoints / "digits.h5", web.folder)
    place = web.folder.parent / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    assert rows("layers", web.url("digits.h5"))
    assert list(place.iterdir()) == []


# ------------------------------------------------------------------------------------- names in files are no addresses


@pytest.mark.parametrize(
    "name",
    [
        "http://127.0.0.1/evil.safetensors",
        "//host/evil.safetensors",
        "../evil.safetensors",
        "/etc/evil.safetensors",
        "file:///evil.safetensors",
        "a/b.safetensors",
        "memory://evil.safetensors",
        "..",
    ],
)
def test_an_index_leads_nowhere_else(web: Web, store: str, name: str) -> None:
    index = json.dumps({"weight_map": {"a.weight": name, "b.weight": "b.safetensors"}}).encode()
    (web.folder / "m.safetensors.index.json").write_bytes(index)
    fsspec.filesystem("memory").pipe("/bucket/m.safetensors.index.json", index)
    for address in (web.url("m.safetensors.index.json"), f"{store}/m.safetensors.index.json"):
        with pytest.raises(UnsafeCheckpointError, match="outside its folder"):
            open_checkpoint(address)
    assert {path for path, _ in web.asked} == {"m.safetensors.index.json"}


def test_odd_names_of_shards_stay_names(web: Web) -> None:
    name = "a?b#c%2F..%2fd e.safetensors"
    assert neighbour("http://h/x/i.json?t=1#f", name) == "http://h/x/a%3Fb%23c%252F..%252fd%20e.safetensors?t=1#f"
    assert neighbour("s3://b/x/i.json", name) == f"s3://b/x/{name}"


def test_a_missing_shard_is_said_to_be_missing(web: Web) -> None:
    index = json.dumps({"weight_map": {"a.weight": "b.safetensors"}}).encode()
    (web.folder / "m.safetensors.index.json").write_bytes(index)
    with pytest.raises(CorruptCheckpointError, match="a shard is missing"):
        open_checkpoint(web.url("m.safetensors.index.json"))


# --------------------------------------------------------------------------------------------------------------- stores


def test_stores_are_read_by_parts(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large(tmp_path / "m.safetensors")
    system = fsspec.filesystem("memory")
    system.pipe("/bucket/m.safetensors", (tmp_path / "m.safetensors").read_bytes())
    fetched: list[int] = []
    plain = type(system).cat_file

    def cat_file(self: Any, path: str, start: int | None = None, end: int | None = None, **more: Any) -> bytes:
        data: bytes = plain(self, path, start=start, end=end, **more)
        fetched.append(len(data))
        return data

    monkeypatch.setattr(type(system), "cat_file", cat_file)
    assert len(rows("layers", f"{store}/m.safetensors")) == 40
    assert fetched == [BLOCK]
    args = ("--include", "layers.7.*", "--tol", "1")
    assert rows("analyze", f"{store}/m.safetensors", *args) == rows("analyze", str(tmp_path / "m.safetensors"), *args)


def test_folders_and_patterns_of_a_store(store: str, tmp_path: Path, sample_checkpoints: Path) -> None:
    system = fsspec.filesystem("memory")
    large(tmp_path / "m.safetensors", layers=1)
    content = (tmp_path / "m.safetensors").read_bytes()
    for name in ("epoch_10.safetensors", "epoch_9.safetensors", ".hidden.pt", "notes.txt", "sub/1.safetensors"):
        system.pipe(f"/bucket/run/{name}", content)
    for path in (sample_checkpoints / "digits-sharded").iterdir():
        system.pipe(f"/bucket/sharded/{path.name}", path.read_bytes())

    def paths(*args: str) -> list[str]:
        result = convsv("layers", *args, "--format", "json", "-q")
        assert result.exit_code == 0, result.stderr
        return [c["path"].removeprefix(f"{store}/") for c in json.loads(result.stdout)["checkpoints"]]

    both = ["run/epoch_9.safetensors", "run/epoch_10.safetensors"]
    assert paths(f"{store}/run") == both
    assert paths(f"{store}/run/epoch_*.safetensors", f"{store}/run") == both
    assert paths(f"{store}/**/*.safetensors", f"{store}/run/epoch_9.safetensors") == [
        *both,
        "run/sub/1.safetensors",
        "sharded/model-00001-of-00002.safetensors",
        "sharded/model-00002-of-00002.safetensors",
    ]
    assert paths(f"{store}/sharded") == ["sharded/model.safetensors.index.json"]
    assert layers_error(f"{store}/run/*.onnx")[0] == 2
    assert layers_error(f"{store}/run/*.txt")[0] == 3
    assert layers_error(f"{store}/nothing.pt")[0] == 2


def test_a_store_that_changes_or_fails_is_an_error(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = fsspec.filesystem("memory")
    large(tmp_path / "m.safetensors", layers=4)
    content = (tmp_path / "m.safetensors").read_bytes()
    system.pipe("/bucket/m.safetensors", content)
    checkpoint = open_checkpoint(f"{store}/m.safetensors")
    system.pipe("/bucket/m.safetensors", content)  # the same bytes, written again
    with pytest.raises(CorruptCheckpointError, match="changed while it was read"):
        checkpoint.tensors[-1].read()
    checkpoint = open_checkpoint(f"{store}/m.safetensors")
    plain = type(system).cat_file
    monkeypatch.setattr(type(system), "cat_file", lambda *args, **more: plain(*args, **more)[:-1])
    with pytest.raises(CorruptCheckpointError, match="contradicts itself"):
        checkpoint.tensors[-1].read()

    def fails(*_: Any, **__: Any) -> bytes:
        raise RuntimeError("a \x1b[31m token\nexpired")

    monkeypatch.setattr(type(system), "cat_file", fails)
    with pytest.raises(CheckpointError, match=r"RuntimeError: a \\x1b\[31m token expired"):
        checkpoint.tensors[-1].read()


@pytest.mark.usefixtures("impatient")
def test_a_store_that_hangs_is_left_in_time(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    system = fsspec.filesystem("memory")
    left, outlasted = threading.Event(), []
    monkeypatch.setattr(type(system), "isdir", lambda *_, **__: outlasted.append(not left.wait(30)))
    code, line = layers_error(f"{store}/m.pt")
    assert (code, "in time" in line, outlasted) == (3, True, [])
    left.set()


def test_a_time_that_is_none_is_usage(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for said in ("soon", "-1", "0", "nan", "inf"):
        monkeypatch.setenv("CONVSV_REMOTE_TIMEOUT", said)
        assert layers_error(f"{store}/m.pt")[0] == 2
