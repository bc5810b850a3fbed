"""What a reader's tests leave behind, through the whole program: none of it may do what hostile files must not."""

from __future__ import annotations

import json
import random
import stat
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from convsv.errors import escaped
from watching import watched

__all__ = ["MOST", "judge"]

MOST = {
    "test_hdf5": 30,
    "test_keras": 30,
    "test_onnx": 15,
    "test_pytorch": 100,
    "test_safetensors": 100,
    "test_torch_archives": 50,
    "test_zip": 100,
}
"""Test modules of readers, and how many of their files are judged: HDF5 and ONNX files take a process each."""
LARGEST = 1 << 20
"""Larger files are valid ones, or are judged by tests of their own."""
HONEST = "forward"
"""How folders of valid models are called whose hundreds of layers take their time: the limits are for hostile files."""
BATCH = 50


def judge(folders: Iterable[Path], most: int, room: Path) -> None:
    """Run the program on what lies in some folders; all files of a batch get the limits that one may have.

    Args:
        folders: where tests wrote.
        most: how many files.
        room: an empty folder to run in.
    """
    strange = [folder for folder in folders if not folder.name.startswith(HONEST)]
    found = [path for folder in strange for path in folder.rglob("*") if _is_input(path)]
    chosen = random.Random(1).sample(sorted(found), min(most, len(found)))
    for start in range(0, len(chosen), BATCH):
        _judge_batch(chosen[start : start + BATCH], found, room)


def _is_input(path: Path) -> bool:
    status = path.lstat()
    regular, other = stat.S_ISREG(status.st_mode), stat.S_ISFIFO(status.st_mode) or stat.S_ISSOCK(status.st_mode)
    return other or (regular and status.st_size <= LARGEST and path.suffix not in (".py", ".pyc"))


def _judge_batch(paths: list[Path], known: list[Path], room: Path) -> None:
    # By one process: so many files together may be worth several, whose answers to each other are pickles.
    options = ("--no-cache", "--size", "6", "--tol", "1", "--format", "json", "--quiet", "--jobs", "1")
    ended = watched(room, room / "log", "analyze", *options, "--", *paths, files=len(paths))
    assert ended.code in (0, 3), ended.err
    assert bool(ended.errors) == (ended.code == 3)
    assert ended.err.splitlines() == ended.errors
    # A shard that is missing is looked for beside its index.
    beside = {path.parent for path in known}
    ended.check_quiet(*known, *(path for path in map(Path, ended.opened) if path.parent in beside))
    checkpoints = {checkpoint["path"]: checkpoint for checkpoint in json.loads(ended.out)["checkpoints"]}
    assert set(checkpoints) == set(map(str, paths))
    for path, checkpoint in checkpoints.items():
        lines = [line for line in ended.errors if line.startswith(f"error: {escaped(path)}: ")]
        reasons = Counter(layer["unread"] for layer in checkpoint["layers"] if "unread" in layer)
        assert len(lines) == max(len(reasons), not checkpoint["format"]) or not checkpoint["layers"], lines
        assert all(len(line) < 1000 for line in lines)
