"""Whatever stops the writer, and whenever: the target is the old or the new one, whole, and the source as it was."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

PROGRAM = Path(__file__).with_name("interruptions.py")
MEMORY = Path("/dev/shm")
"""Where thousands of writes do not wait for a disk."""


def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {f"{name}.weight": torch.randn(64, 32, 3, 3) for name in "abcd"}


def archive(path: Path) -> None:
    torch.save(state(), path)


def shards(folder: Path) -> None:
    folder.mkdir()
    where = {key: f"model-{i // 2}.safetensors" for i, key in enumerate(state())}
    for name in set(where.values()):
        save_file({key: value for key, value in state().items() if where[key] == name}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


KINDS: dict[str, Callable[[Path], None]] = {"file": archive, "folder": shards}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """An empty folder, in memory if there is a place for that."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else tmp_path) as made:
        yield Path(made)


@pytest.fixture(params=KINDS)
def scene(request: pytest.FixtureRequest, folder: Path) -> Path:
    KINDS[request.param](folder / "model")
    return folder


def with_old(scene: Path) -> Path:
    """Put something where the output goes: for a folder, files of the same names."""
    model, old = scene / "model", scene / "old"
    if model.is_dir():
        old.mkdir()
        for path in model.iterdir():
            (old / path.name).write_text("old")
    else:
        old.write_text("old")
    return scene


def run(*command: str | Path) -> dict[str, Any]:
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    assert answer["wrong"] == []
    return answer


@pytest.mark.parametrize("blow", ["kill", "terminate", "hang up", "interrupt"])
def test_a_blow_before_any_line_leaves_the_old_or_the_new(scene: Path, blow: str) -> None:
    assert run(PROGRAM, blow, with_old(scene), "force")["blows"] > 100


def test_a_blow_before_any_line_leaves_nothing_or_the_new(scene: Path) -> None:
    assert run(PROGRAM, "kill", scene)["blows"] > 100


@pytest.mark.parametrize("blow", ["kill", "terminate", "interrupt"])
def test_where_names_cannot_be_exchanged_an_old_folder_is_never_lost(folder: Path, blow: str) -> None:
    shards(folder / "model")
    assert run(PROGRAM, blow, with_old(folder), "force", "without exchange")["blows"] > 100


def test_a_limit_of_file_sizes_is_an_error_and_leaves_the_old(scene: Path) -> None:
    said = run(PROGRAM, "limit", with_old(scene), "force")["said"]
    assert said[-1] is None
    assert len(said) > 20
    assert all("out: cannot be written (found File too large); give another place" in text for text in said[:-1])


def test_a_full_disk_is_an_error_and_leaves_the_old(scene: Path) -> None:
    disk = with_old(scene) / "disk"
    disk.mkdir()
    own = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=64m none "$1" && shift && exec "$@"', "sh", str(disk)]
    try:
        allowed = subprocess.run([*own, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("no file system of our own can be mounted here")
    done = subprocess.run(
        [*own, sys.executable, str(PROGRAM), "disk", str(scene), "force"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["wrong"] == []
    *said, last = answer["said"]
    assert "out: cannot be written (found Read-only file system)" in last
    full = [text for text in said if text]
    assert len(full) > 3
    assert said[-1] is None
    assert all("out: cannot be written (found No space left on device); give another place" in text for text in full)
