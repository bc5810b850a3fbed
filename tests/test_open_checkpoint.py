"""The door of the readers: what is opened at all, who reads it, and what is said about files that nobody reads."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pickle
import socket
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from safetensors.numpy import save_file

from convsv.checkpoints import FORMATS, RegularFile, find_checkpoints, open_checkpoint
from convsv.errors import CheckpointError, CorruptCheckpointError, UnknownFormatError, UsageError

pytestmark = pytest.mark.timeout(120)


def safetensors_file(path: Path) -> Path:
    save_file({"conv.weight": np.ones((2, 2, 3, 3), np.float32)}, path)
    return path


def hdf5_file(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        file["conv/kernel:0"] = np.ones((3, 3, 2, 2), "f4")
    return path


# ----------------------------------------------------------------------------------------------- regular files only


def test_a_fifo_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="regular"):
        open_checkpoint(tmp_path / "m.pt")


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/dev/random"])
def test_a_device_is_refused(device: str) -> None:
    with pytest.raises(CheckpointError, match="regular"):
        open_checkpoint(device)


def test_a_socket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("m.pt")
        with pytest.raises(CheckpointError, match=r"opened|regular"):
            open_checkpoint("m.pt")


def test_what_is_opened_is_looked_at_and_nothing_that_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kind is that of the open descriptor: between a look at the name and its opening another file may take it."""
    path = safetensors_file(tmp_path / "m.safetensors")

    def looked(*_: object, **__: object) -> os.stat_result:
        raise AssertionError("the name was looked at")

    with monkeypatch.context() as blind:
        for name in ("stat", "lstat"):
            blind.setattr(os, name, looked)
        file = RegularFile(path)
    assert file.read(0, file.size) == path.read_bytes()


SWAPPED = {
    "a pipe": os.mkfifo,
    "a folder": os.mkdir,
    "a device": lambda path: Path(path).symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("kind", SWAPPED)
def test_a_file_that_becomes_something_else_at_the_last_moment_is_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever looked before saw a regular file; an opening that waits would wait for ever."""
    path = safetensors_file(tmp_path / "m.safetensors")
    opened: list[int] = []
    real = os.open

    def swapping(name: object, flags: int, *more: object) -> int:
        if name == path and not opened:
            path.unlink()
            SWAPPED[kind](path)
            opened.append(flags)
        return real(name, flags, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", swapping)
    with pytest.raises(CheckpointError, match="is not a regular file"):
        open_checkpoint(path)
    assert opened[0] & os.O_NONBLOCK


@pytest.mark.parametrize("kind", SWAPPED)
def test_a_file_whose_name_is_taken_by_something_else_is_read_as_it_was_opened(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = safetensors_file(tmp_path / "m.safetensors")
    real = os.open

    def swapping(name: object, flags: int, *more: object) -> int:
        descriptor = real(name, flags, *more)  # type: ignore[arg-type]
        if name == path:
            path.unlink()
            SWAPPED[kind](path)
        return descriptor

    monkeypatch.setattr(os, "open", swapping)
    assert open_checkpoint(path).tensors[0].read().shape == (2, 2, 3, 3)


@pytest.mark.parametrize("command", ["layers", "compare", "clip"])
@pytest.mark.parametrize("kind", SWAPPED)
def test_every_command_refuses_what_is_no_file_without_waiting(kind: str, command: str, tmp_path: Path) -> None:
    """A process of its own, with a time after which it certainly waits for something."""
    SWAPPED[kind](tmp_path / "m.pt")
    needed = {"compare": (tmp_path / "m.pt",), "clip": ("--max-norm", "1", "--dry-run")}.get(command, ())
    done = subprocess.run(
        [sys.executable, "-m", "convsv", command, tmp_path / "m.pt", *needed],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode in ((2, 3) if kind == "a folder" else (3,)), done.stderr
    assert len(errors) in ((1, 2) if command == "compare" else (1,))
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["missing.pt", "a\x00b.pt", "missing/m.pt"])
def test_a_file_that_is_not_there_is_a_usage_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        open_checkpoint(tmp_path / name)


def test_a_file_that_may_not_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(CheckpointError, match="Permission denied"):
        open_checkpoint(tmp_path / "m.pt")


def test_reading_beyond_the_end_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"12345")
    file = RegularFile(tmp_path / "f")
    assert file.read(1, 4) == b"2345"
    for offset, count in [(0, 6), (5, 1), (-1, 2), (0, -1), (1 << 70, 1)]:
        with pytest.raises(CorruptCheckpointError):
            file.read(offset, count)


def test_of_small_files_the_last_one_is_at_hand(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_bytes(name.encode() * 9)
    first, second = (RegularFile(tmp_path / name) for name in "ab")
    assert first.at_hand() == b"a" * 9
    (tmp_path / "a").write_bytes(b"x" * 9)  # what was read is what is read
    assert first.read(2, 3) == b"aaa"
    assert first.sha256() == hashlib.sha256(b"a" * 9).hexdigest()
    for offset, count in [(0, 10), (-1, 2), (0, -1)]:
        with pytest.raises(CorruptCheckpointError):
            first.read(offset, count)
    assert second.at_hand() == b"b" * 9
    assert first.read(2, 3) == b"xxx"
    os.truncate(tmp_path / "b", 5 << 20)
    assert RegularFile(tmp_path / "b").at_hand() is None


def test_a_descriptor_is_closed_with_its_checkpoint(tmp_path: Path) -> None:
    path = safetensors_file(tmp_path / "m.safetensors")
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        pytest.skip("needs /proc")
    before = len(list(descriptors.iterdir()))
    for _ in range(20):
        open_checkpoint(path)
    assert len(list(descriptors.iterdir())) <= before + 1


# ------------------------------------------------------------------------------------------------- content decides


def pickled() -> bytes:
    return pickle.dumps({"a": [1, 2.5]}, protocol=2)


def npz() -> bytes:
    out = io.BytesIO()
    np.savez(out, a=np.ones(3))
    return out.getvalue()


def zipped(*names: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as pack:
        for name in names:
            pack.writestr(name, b"x" * 50)
    return out.getvalue()


def tarred() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as pack:
        pack.addfile(tarfile.TarInfo("notes.txt"))
    return out.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a2146" * 8 + b"\nsize 12345\n"
UNREADABLE: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "empty file"),
    "git-lfs pointer": (lambda: POINTER, "git lfs pull"),
    "HTML": (lambda: b"\n <!DOCTYPE html><html><body>404</body></html>", "HTML"),
    "XML": (lambda: b"<?xml version='1.0'?><Error/>", "XML"),
    "text": (lambda: "Wörter\n".encode() * 900, "text"),
    "JSON": (lambda: json.dumps({"architectures": ["ResNet"]}).encode(), "JSON"),
    "an index of other shards": (lambda: json.dumps({"weight_map": {"a": "m-1.bin"}}).encode(), "index"),
    "npz": (npz, "npz"),
    "a zip of notes": (lambda: zipped("notes.txt"), "zip"),
    "an empty zip": (zipped, "zip"),
    "tar": (tarred, "tar"),
    "gzip": (lambda: gzip.compress(b"x" * 100), "gzip"),
    "bzip2": (lambda: b"BZh91AY&SY", "bzip2"),
    "numpy array": (lambda: b"\x93NUMPY\x01\x00v\x00", "numpy"),
    "GGUF": (lambda: b"GGUF\x03\x00\x00\x00" + bytes(90), "GGUF"),
    "SavedModel": (lambda: b"\x08\x01\x12\x8f\x01" + bytes(range(200)), "SavedModel"),
    "TensorFlow Lite": (lambda: b"\x1c\x00\x00\x00TFL3" + bytes(90), "TensorFlow Lite"),
    "zeros": (lambda: bytes(5000), "zero bytes"),
    "noise": (lambda: np.random.default_rng(1).bytes(5000), "unknown kind"),
    "one byte": (lambda: b"\xff", "unknown kind"),
}


@pytest.mark.parametrize("suffix", ["", ".pt", ".h5", ".keras"])
@pytest.mark.parametrize("case", UNREADABLE)
def test_what_nobody_reads_is_named_in_one_line_with_advice(tmp_path: Path, case: str, suffix: str) -> None:
    make, word = UNREADABLE[case]
    path = tmp_path / f"m{suffix}"
    path.write_bytes(make())
    with pytest.raises(UnknownFormatError, match=word) as caught:
        open_checkpoint(path)
    text = str(caught.value)
    assert text.isprintable()
    assert text.startswith(str(path))
    assert caught.value.advice


def test_a_plain_pickle_is_never_run(tmp_path: Path) -> None:
    target = tmp_path / "ran"
    path = tmp_path / "m.pkl"
    path.write_bytes(b"cos\nsystem\n(S'touch " + str(target).encode() + b"'\ntR.")
    with pytest.raises(CheckpointError):
        open_checkpoint(path)
    assert not target.exists()


def test_an_onnx_model_is_recognised_whether_or_not_onnx_is_installed(shared_checkpoints: Path) -> None:
    assert FORMATS["onnx"].recognises(RegularFile(shared_checkpoints / "ultraface-rfb320.onnx"))


def test_every_reader_refuses_noise_quietly(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    for size in (*range(12), 29, 30, 31, 63, 64, 65, 511, 512, 513, 4096):
        path = tmp_path / f"{size}.bin"
        path.write_bytes(rng.bytes(size))
        assert not any(reader.recognises(RegularFile(path)) for _, reader in FORMATS.items())


@pytest.mark.parametrize(
    ("make", "name", "format_name"),
    [
        (safetensors_file, "m.pth", "safetensors"),
        (safetensors_file, "m.h5", "safetensors"),
        (hdf5_file, "m.keras", "keras"),
        (hdf5_file, "m.safetensors", "keras"),
        (hdf5_file, "m.pt", "keras"),
    ],
)
def test_a_misleading_suffix_is_read_anyway(
    tmp_path: Path, make: Callable[[Path], Path], name: str, format_name: str
) -> None:
    checkpoint = open_checkpoint(make(tmp_path / name))
    assert checkpoint.format == format_name
    assert checkpoint.tensors[0].read().sum() == 36


def test_the_path_is_the_one_the_user_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    safetensors_file(tmp_path / "-m.safetensors")
    assert open_checkpoint("-m.safetensors").path == "-m.safetensors"
    assert open_checkpoint("./-m.safetensors").path == "./-m.safetensors"


# ----------------------------------------------------------------------------------------------------------- folders


def test_a_folder_of_checkpoints_is_each_of_them_sorted(tmp_path: Path) -> None:
    safetensors_file(tmp_path / "b.safetensors")
    safetensors_file(tmp_path / "a")  # by content
    hdf5_file(tmp_path / "c.H5")
    (tmp_path / "d.pt").write_bytes(b"broken")  # by suffix: its error is worth seeing
    (tmp_path / "README.md").write_text("no checkpoint")
    safetensors_file(tmp_path / ".hidden.safetensors")
    (tmp_path / "folder.pt").mkdir()
    safetensors_file(tmp_path / "folder.pt" / "inner.safetensors")
    os.mkfifo(tmp_path / "fifo.pt")
    (tmp_path / "broken link.pt").symlink_to("nowhere")
    assert [path.name for path in find_checkpoints(tmp_path)] == ["a", "b.safetensors", "c.H5", "d.pt"]


def test_a_file_stands_for_itself_whatever_it_holds(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no checkpoint")
    assert find_checkpoints(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]
    assert find_checkpoints(tmp_path / "missing") == [tmp_path / "missing"]


def index(folder: Path, name: str, shard: str) -> Path:
    safetensors_file(folder / shard)
    path = folder / name
    path.write_text(json.dumps({"weight_map": {"conv.weight": shard}}))
    return path


def test_a_folder_with_an_index_is_one_checkpoint(tmp_path: Path) -> None:
    index(tmp_path, "model.safetensors.index.json", "s-1.safetensors")
    safetensors_file(tmp_path / "other.safetensors")
    assert find_checkpoints(tmp_path) == [tmp_path]
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.path == str(tmp_path)
    assert len(checkpoint.files) == 2


def test_a_folder_with_two_indices_is_two_checkpoints(tmp_path: Path) -> None:
    both = [index(tmp_path, f"{n}.safetensors.index.json", f"{n}-1.safetensors") for n in ("a", "b")]
    assert find_checkpoints(tmp_path) == both
    with pytest.raises(CheckpointError, match="several"):
        open_checkpoint(tmp_path)
    assert len(open_checkpoint(both[1]).tensors) == 1


def test_the_index_of_another_format_does_not_make_a_folder_one_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": "p-1.bin"}}))
    safetensors_file(tmp_path / "m.safetensors")
    assert find_checkpoints(tmp_path) == [tmp_path / "m.safetensors"]


def test_a_folder_with_one_checkpoint_is_opened_and_with_several_is_refused(tmp_path: Path) -> None:
    safetensors_file(tmp_path / "m.safetensors")
    assert open_checkpoint(tmp_path).path == str(tmp_path)
    safetensors_file(tmp_path / "n.safetensors")
    with pytest.raises(CheckpointError, match=r"m\.safetensors, n\.safetensors"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("names", "word"),
    [([], "no file"), (["a.txt"], "1 other file"), (["a", "b"], "2 other files"), (["saved_model.pb"], "SavedModel")],
)
def test_a_folder_without_a_checkpoint_says_so(tmp_path: Path, names: list[str], word: str) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"\x08\x01\x12\x01")
    for function in (find_checkpoints, open_checkpoint):
        with pytest.raises(UnknownFormatError, match=word):
            function(tmp_path)


def test_a_folder_of_folders_names_them(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    for part in ("unet", "vae", ".git"):
        (tmp_path / part).mkdir()
    with pytest.raises(UnknownFormatError, match=r"name one of unet, vae$"):
        find_checkpoints(tmp_path)


def test_a_link_to_itself_does_not_hide_the_other_files_of_a_folder(tmp_path: Path) -> None:
    safetensors_file(tmp_path / "m.safetensors")
    (tmp_path / "loop.pt").symlink_to("loop.pt")
    (tmp_path / "folder.pt").symlink_to(".")
    assert find_checkpoints(tmp_path) == [tmp_path / "m.safetensors"]


# ----------------------------------------------------------------------------------------------------------- imports


def test_opening_imports_neither_torch_nor_any_format_library(tmp_path: Path) -> None:
    safetensors_file(tmp_path / "a.safetensors")
    hdf5_file(tmp_path / "b.h5")
    (tmp_path / "c.html").write_text("<html>")
    code = (
        "import sys\nfrom convsv.checkpoints import open_checkpoint\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n        [tensor.read() for tensor in open_checkpoint(path).tensors]\n"
        "    except Exception as error:\n        print(type(error).__name__)\n"
        "print(sorted({'torch', 'h5py', 'safetensors', 'onnx', 'rich', 'typer', 'keras'} & set(sys.modules)))"
    )
    paths = [str(tmp_path / name) for name in ("a.safetensors", "b.h5", "c.html")]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.split("\n") == ["UnknownFormatError", "[]", ""]
