"""What a file that no reader recognises looks like, and what its owner can do about it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from convsv.checkpoints._file import RegularFile

__all__ = ["describe_content", "describe_folder", "printable"]

_HEAD = 4096
_FOLDERS = 6

_NOT_FETCHED = "fetch the real file"
_FRAMEWORK = "save the weights as .pt, .safetensors or .h5 with the framework that wrote them"

_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs.github.com/spec/", "a git-lfs pointer", "fetch the real file with git lfs pull"),
    (b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (b"BZh", "a bzip2 archive", "unpack it first"),
    (b"\xfd7zXZ\x00", "an xz archive", "unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstandard archive", "unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "unpack it first"),
    (b"Rar!\x1a\x07", "a RAR archive", "unpack it first"),
    (b"GGUF", "a GGUF file", "name the checkpoint it was converted from"),
    (b"GGML", "a GGML file", "name the checkpoint it was converted from"),
    (b"ggml", "a GGML file", "name the checkpoint it was converted from"),
    (b"\x93NUMPY", "a single numpy array", "pass the array to convsv.operator_norm"),
    (b"%PDF", "a PDF document", _NOT_FETCHED),
    (b"\x89PNG\r\n", "a PNG picture", _NOT_FETCHED),
    (b"\xff\xd8\xff", "a JPEG picture", _NOT_FETCHED),
    (b"\x7fELF", "a program", _NOT_FETCHED),
    (b"SQLite format 3\x00", "an SQLite database", _NOT_FETCHED),
    (b"MATLAB 5.0 MAT-file", "a MATLAB file", "save the weights as .h5 or .safetensors"),
    (b"\xd0\xcf\x11\xe0", "an old Microsoft document", _NOT_FETCHED),
)


def printable(text: str, limit: int = 80) -> str:
    """Return a text found in a file so that it fits a message of one line: shortened, and escaped as ``repr`` does."""
    return repr(text[:limit])[1:-1] + ("..." if len(text) > limit else "")


def describe_content(file: RegularFile) -> tuple[str, str]:
    """Return what the content looks like and what to do, each a few words on one line.

    Nothing of the content is repeated in the words.

    Args:
        file: a file that no reader recognises.

    Raises:
        CorruptCheckpointError: the file shrank while it was read.
    """
    if file.size == 0:
        return "an empty file", "fetch or save it again"
    head = file.read(0, min(file.size, _HEAD))
    for magic, what, advice in _MAGIC:
        if head.startswith(magic):
            return what, advice
    for test in (_sparse, _zip, _tar, _ort, _tflite, _pickle, _text, _protobuf):
        found = test(head, file)
        if found:
            return found
    return f"{file.size} bytes of an unknown kind", "name a PyTorch, safetensors, Keras, HDF5 or ONNX file"


def describe_folder(names: Sequence[str], folders: Sequence[str] = ()) -> tuple[str, str]:
    """Return what a folder without a checkpoint looks like and what to do.

    Args:
        names: names of the files in it.
        folders: names of the folders in it.
    """
    if "saved_model.pb" in names:
        return "a TensorFlow SavedModel", "save the model as .keras or .h5"
    count = f"{len(names)} other {'file' if len(names) == 1 else 'files'}" if names else "no file"
    if folders:  # as in the layout of diffusers: unet, vae, text_encoder ...
        listed = ", ".join(printable(name, 40) for name in folders[:_FOLDERS]) + (" ..." if folders[_FOLDERS:] else "")
        return count, f"folders in it are not searched: name one of {listed}"
    return count, "name a checkpoint file, or the folder that holds it"


def _sparse(head: bytes, _: RegularFile) -> tuple[str, str] | None:
    return ("only zero bytes at its start", "fetch or save it again") if not any(head) else None


def _zip(head: bytes, file: RegularFile) -> tuple[str, str] | None:
    if head.startswith((b"PK\x05\x06", b"PK\x07\x08")):
        return "an empty or split zip archive", "fetch or save it again"
    if not head.startswith(b"PK\x03\x04"):
        return None
    tail = file.read(max(file.size - _HEAD, 0), min(file.size, _HEAD))
    if b"PK\x05\x06" not in tail and file.size < 1 << 16:
        return "a truncated zip archive", "fetch or save it again"
    name_size = int.from_bytes(head[26:28], "little")
    if head[30 : 30 + name_size].endswith(b".npy"):
        return "a numpy .npz archive", "save the arrays as .safetensors or .h5"
    return "a zip archive without a known checkpoint in it", "unpack it and name the checkpoint"


def _tar(head: bytes, _: RegularFile) -> tuple[str, str] | None:
    return ("a tar archive", "unpack it first") if head[257:262] == b"ustar" else None


def _ort(head: bytes, _: RegularFile) -> tuple[str, str] | None:
    return ("an ONNX Runtime model (.ort)", "name the .onnx file it was made from") if head[4:8] == b"ORTM" else None


def _tflite(head: bytes, _: RegularFile) -> tuple[str, str] | None:
    return ("a TensorFlow Lite model", "name the model it was converted from") if head[4:8] == b"TFL3" else None


def _pickle(head: bytes, _: RegularFile) -> tuple[str, str] | None:
    is_pickle = len(head) > 2 and head[0] == 0x80 and 2 <= head[1] <= 5
    return ("a plain pickle, not one of PyTorch's", "save the tensors with torch.save") if is_pickle else None


def _text(head: bytes, _: RegularFile) -> tuple[str, str] | None:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text[:15].lower().startswith((b"<!doctype html", b"<html")):
        return "an HTML page", "the download failed or needs a login: fetch the real file"
    if text.startswith((b"<?xml", b"<Error>")):
        return "an XML document", _NOT_FETCHED
    if re.match(rb"<?\s*ir_version\s*:", text):
        return "an ONNX model as text", "write it as a binary .onnx file with onnx.save"
    if b"\x00" in head:
        return None
    try:
        # The last character may be cut.
        head[: _HEAD - 4].decode("utf-8") if len(head) == _HEAD else head.decode("utf-8")
    except UnicodeDecodeError:
        return None
    if text.startswith((b"{", b"[")):
        sharded = b'"weight_map"' in head
        return ("the index of shards that are not safetensors", "name the shards") if sharded else ("JSON", _FRAMEWORK)
    return "plain text", _NOT_FETCHED


def _protobuf(head: bytes, _: RegularFile) -> tuple[str, str] | None:
    # A SavedModel starts with field 1 (version 1), field 2 a MetaGraphDef; ONNX with ir_version and producer strings.
    if head.startswith(b"\x08\x01\x12"):
        return "a TensorFlow SavedModel", "save the model as .keras or .h5"
    if head[0] == 0x08 and head[1:2] <= b"\x20" and head[2:3] in (b"\x12", b"\x1a", b"\x22", b"\x3a"):
        return "a damaged ONNX model (protobuf)", "fetch or export it again"
    return None
