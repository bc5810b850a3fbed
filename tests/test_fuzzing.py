"""Thousands of damaged files of every format: only our own errors come out, within limits of time and memory."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).with_name("fuzz")))

import remote
import seeds
import store
import zygote
from limits import limited
from mutation import mutated, operations
from targets import TARGETS, judge_report

from convsv.checkpoints import RegularFile, _child, _hdf5
from convsv.errors import CorruptCheckpointError
from convsv.results import CheckpointReport, Report
from reportcases import layer

MEMORY = Path("/dev/shm")
"""Where thousands of small files do not wait for a disk."""


@pytest.fixture(scope="module")
def place() -> Callable[[], contextlib.AbstractContextManager[Path]]:
    """A way to an empty folder."""

    @contextlib.contextmanager
    def make() -> Iterator[Path]:
        with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
            yield Path(folder)

    return make


@pytest.mark.parametrize("name", TARGETS)
def test_a_damaged_file_ends_in_our_own_error_or_in_tensors(name: str, place: Callable[..., object]) -> None:
    target = TARGETS[name]
    if name.startswith("onnx"):
        pytest.importorskip("onnx")
    if name.startswith("http"):
        pytest.importorskip("urllib3")
    with place() as folder:  # type: ignore[attr-defined]
        target.attack(target.seed(), folder)  # what is imported on the way is not counted as the case's

    @settings(max_examples=target.cases)
    @given(operations)
    def attack(todo: list[tuple[str, int, int, int]]) -> None:
        data = mutated(target.seed(), todo)
        with place() as folder, limited():  # type: ignore[attr-defined]
            target.attack(data, folder)

    attack()


@pytest.mark.parametrize(
    ("file", "way"), [("m.safetensors", "in_parts"), ("m.pt", "in_parts"), ("m.safetensors", "whole")]
)
def test_a_conversation_that_nobody_changed_is_read(file: str, way: str) -> None:
    pytest.importorskip("urllib3")
    assert remote.attack(file, remote.conversation(file, way), lambda _: None) == len(remote.KERNELS)


def test_the_answers_of_a_store_that_nobody_changed_are_read() -> None:
    lines = store.conversation("m.safetensors")
    assert store.attack("m.safetensors", lines, lambda _: None) == len(remote.KERNELS)


def test_a_store_that_shows_another_state_once_gives_numbers_of_one_state_or_none() -> None:
    lines = store.conversation("m.safetensors").split(b"\n")
    counts = []
    for number in range(1, len(lines) - 1, 2):
        changed = [line.replace(b"one", b"two") if n > number else line for n, line in enumerate(lines)]
        changed[number] = changed[number].replace(b"false", b"true")
        with contextlib.suppress(CorruptCheckpointError):
            counts.append(store.attack("m.safetensors", b"\n".join(changed), lambda _: None))
    assert counts == [0, 1, 2, 2]  # at the first the file does not even open


def test_a_store_that_goes_back_to_a_state_is_not_believed_any_more() -> None:
    """It says once that the file is another one, and sends bytes of that one when the file seems to be back."""
    lines = store.conversation("m.safetensors").split(b"\n")
    other = lines[0].replace(b"one", b"two")
    tensor, info = lines[-2:]
    there_and_back = [*lines[:3], tensor, other, tensor, info, tensor, info]
    assert store.attack("m.safetensors", b"\n".join(there_and_back), lambda _: None) == 0


@pytest.mark.skipif(not Path("/proc/self/limits").exists(), reason="the system does not tell limits")
@pytest.mark.parametrize("others", [0, 200], ids=lambda n: f"{n} files open before")
def test_a_forked_child_is_confined_like_one_that_was_started(others: int, tmp_path: Path) -> None:
    (tmp_path / "m.h5").write_bytes(seeds.hdf5())
    file = RegularFile(tmp_path / "m.h5")

    def seen() -> tuple[object, list[str], list[str], str]:
        worker = _hdf5.Worker(file, 0, file.size)
        answer = worker.ask_json({"do": "index"})
        assert worker._process is not None
        process = Path(f"/proc/{worker._process.pid}")
        # Processor time is counted from what the imports took.
        limits = [row for row in (process / "limits").read_text().splitlines() if not row.startswith("Max cpu")]
        opened = sorted(descriptor.name for descriptor in (process / "fd").iterdir())
        worker._process.kill()
        with pytest.raises(CorruptCheckpointError) as error:
            worker.ask_json({"do": "index"})
        return answer, limits, opened, str(error.value)

    with contextlib.ExitStack() as stack:
        for _ in range(others):
            stack.enter_context((tmp_path / "m.h5").open("rb"))
        file = RegularFile(tmp_path / "m.h5")
        started = seen()
        stack.enter_context(mock.patch.object(zygote, "_zygotes", {}))
        stack.enter_context(mock.patch.object(_child.subprocess, "Popen", zygote.Forked))
        assert seen() == started


FOUND: dict[str, tuple[str, list[tuple[bytes, bytes]]]] = {
    "a control character in the name of a view": (
        "torch-legacy",
        [(b"conv.weight", b"c\t\x1b[31m.abc"), (b"K\x09K\x09K\x03K\x01", b"K\x01K\x01K\x01K\x01")],
    ),
    "a line end in the key of what is malformed": (
        "torchscript-pickle",
        [(b"X\x01\x00\x00\x000q\x03", b"X\x01\x00\x00\x00\nq\x03"), (b"K\x01K\x03K\x03t", b"K\x01K\x03N)t")],
    ),
    "a tab in a glob": ("sidecar", [(b"*.conv1", b"*.\tonv1")]),
    "an infinite number from the child": ("hdf5-answer", [(b'"address": ', b'"address": 1e999, "a": ')]),
    "attributes of lists from the child": ("hdf5-answer", [(b'["conv", "bn"]', b'[["conv"], {}]')]),
    "a lone surrogate for the number of a dtype": ("pt2-weights", [(b'"dtype": 7', b'"dtype": "\\ud800"')]),
    "a redirect to brackets": ("http", [(b"Location: /real/", b"Location: //[/")]),
    "a redirect to a port of letters": ("http", [(b"Location: /real/", b"Location: http://host:port/")]),
    "a signalling NaN in half precision": ("safetensors", [(b"\x00<\x00<", b"\x01|\x00<")]),
}
"""What fuzzing found."""


@pytest.mark.parametrize("case", FOUND)
def test_what_was_found_once_stays_fixed(case: str, tmp_path: Path) -> None:
    name, changes = FOUND[case]
    data = TARGETS[name].seed()
    for old, new in changes:
        assert old in data
        data = data.replace(old, new)
    TARGETS[name].attack(data, tmp_path)


@settings(max_examples=300)
@given(st.text(st.characters(), max_size=40), st.text(st.characters(), max_size=20))
def test_no_name_or_path_steers_a_terminal_or_breaks_a_report(name: str, path: str) -> None:
    with limited():
        judge_report(
            Report("layers", {}, (CheckpointReport(path, "pytorch", problems=(name,), layers=(layer(name),)),))
        )
