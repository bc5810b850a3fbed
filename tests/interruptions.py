"""A program that writes an edited checkpoint again and again, struck at every line, or on disks of every size.

It is run by ``test_interruptions.py``: ``python interruptions.py WHAT FOLDER``, where the folder holds ``model`` and,
if there is something to replace, ``old``. It forks for each blow, so it imports nothing that starts threads. What it
says is one JSON object: how often it struck, and every state of the folder that must not be.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from convsv import files
from convsv.checkpoints import _copying, _place, _zip_patch, open_checkpoint, writing
from convsv.checkpoints.writing import save_edited
from convsv.errors import OutputError
from edits import edit

STRUCK = {str(Path(str(module.__file__)).resolve()) for module in (files, _copying, _place, _zip_patch, writing)}
CLEANING = {"_remove", "_unwatch_signals", "beside", "_sweep", "output_errors"}
"""Where an interrupt strikes the cleaning up itself, and may leave something hidden behind."""
DONE, FAILED = 0, 7


def content(path: Path) -> Any:
    """What is at a path, whole: None, a file's bytes, or a folder's files."""
    if path.is_dir():
        return {p.name: p.read_bytes() for p in sorted(path.iterdir())}
    return path.read_bytes() if path.exists() else None


def write(folder: Path, target: Path, *, force: bool) -> None:
    source = open_checkpoint(folder / "model")
    save_edited(source, [edit(t) for t in source.tensors[1:3]], target, force=force)


@dataclass
class Scene:
    """The folder, what must be in it, and what went wrong."""

    folder: Path
    place: Path
    force: bool
    old: Any = None
    new: Any = None
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model = content(self.folder / "model")
        write(self.folder, self.folder / "wanted", force=False)
        self.new = content(self.folder / "wanted")
        self.old = content(self.folder / "old")
        self.set_up()

    @property
    def target(self) -> Path:
        return self.place / "out"

    def set_up(self) -> None:
        for path in self.place.iterdir():
            if path.name not in ("model", "old", "wanted"):
                files._remove(path)
        old = self.folder / "old"
        if old.is_dir():
            shutil.copytree(old, self.target)
        elif old.exists():
            shutil.copy(old, self.target)

    def judge(self, when: str, *, done: bool, clean: bool, lost: bool = False) -> None:
        """Note what must not be after a blow.

        Args:
            when: when it struck.
            done: the writer said that all is well.
            clean: nothing may be left behind.
            lost: the old content may stand under a hidden name.
        """
        found = content(self.target)
        others = [p for p in self.place.iterdir() if p.name not in ("model", "old", "wanted", "out")]
        legal = [self.new] if done else [self.old, self.new]
        if found not in legal and not (lost and found is None and any(content(p) == self.old for p in others)):
            self.wrong.append(f"{when}: the target is neither old nor new")
        if content(self.folder / "model") != self.model:
            self.wrong.append(f"{when}: the source changed")
        if clean and others:
            self.wrong.append(f"{when}: left {sorted(p.name for p in others)}")
        if not all(p.name.startswith(".out.") and p.name.endswith(".part") for p in others):
            self.wrong.append(f"{when}: left something that nobody recognises")
        self.set_up()


# ------------------------------------------------------------------------------------------------------ at every line


def blow(kind: str) -> None:
    if kind == "interrupt":
        raise KeyboardInterrupt
    os.kill(os.getpid(), {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "hang up": signal.SIGHUP}[kind])


def watched(scene: Scene, at_line: Callable[[str], None]) -> None:
    """Write, and call back before each line of the writer's modules, with its function and number."""

    def trace(frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
        if frame.f_code.co_filename not in STRUCK:
            return None
        if event == "line":
            at_line(f"{frame.f_code.co_name}:{frame.f_lineno}")
        return trace

    sys.settrace(trace)
    try:
        write(scene.folder, scene.target, force=scene.force)
    finally:
        sys.settrace(None)


def strike(scene: Scene, kind: str, number: int) -> None:
    """Write with a blow before the line of that number; the process ends here."""
    left = itertools.count(number, -1)

    def at_line(_: str) -> None:
        if next(left) == 0:
            sys.settrace(None)
            blow(kind)

    try:
        watched(scene, at_line)
    except KeyboardInterrupt:
        os._exit(FAILED)
    os._exit(DONE)


def every_line(scene: Scene, kind: str, *, lost: bool = False) -> int:
    """Strike before each line, the first and the last time that it is reached; return how many blows these were."""
    lines: list[str] = []
    watched(scene, lines.append)
    scene.judge("undisturbed", done=True, clean=True)
    last = {line: number for number, line in enumerate(lines)}
    first = {line: len(lines) - 1 - number for number, line in enumerate(reversed(lines))}
    numbers = sorted({*last.values(), *first.values()})
    ends = {"kill": -signal.SIGKILL, "terminate": -signal.SIGTERM, "hang up": -signal.SIGHUP, "interrupt": FAILED}
    for number in numbers:
        child = os.fork()
        if child == 0:
            strike(scene, kind, number)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        cleaning = lines[number].split(":")[0] in (CLEANING | {"_put_folder"} if lost else CLEANING)
        clean = not cleaning if kind == "interrupt" else kind != "kill" and not lost
        scene.judge(f"{kind} at {lines[number]}", done=False, clean=clean, lost=lost)
        if code != ends[kind]:
            scene.wrong.append(f"{kind} at {lines[number]}: ended with {code}")
    return len(numbers)


# ------------------------------------------------------------------------------------------------------- at every size


def failure(scene: Scene) -> str | None:
    """Try to write; return what the error says, if there is one."""
    try:
        write(scene.folder, scene.target, force=scene.force)
    except OutputError as error:
        return str(error)
    return None


def sizes(scene: Scene) -> list[int]:
    return [len(part) for part in (scene.new.values() if isinstance(scene.new, dict) else [scene.new])]


def every_limit(scene: Scene) -> list[str | None]:
    """Write under limits of a file's size, up to one that is no hindrance."""
    said, largest = [], max(sizes(scene))
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (0, 1, *range(512, largest - 1, largest // 20), largest - 1, largest):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        said.append(failure(scene))
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        scene.judge(f"limit {limit}", done=said[-1] is None, clean=True)
    return said


def every_disk(scene: Scene) -> list[str | None]:
    """Write to file systems with more and more space, at last to one that is read-only."""
    said: list[str | None] = []
    needed = sum(size // 4096 + 1 for size in sizes(scene))
    for pages in range(1, needed + 16, needed // 20):
        free = os.statvfs(scene.place)
        used = (free.f_blocks - free.f_bfree) * free.f_frsize
        remount(scene, f"size={used + 4096 * pages}")
        said.append(failure(scene))
        remount(scene, "size=64m")
        scene.judge(f"{pages} pages", done=said[-1] is None, clean=True)
    remount(scene, "ro")
    return [*said, failure(scene)]


def remount(scene: Scene, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(scene.place)], check=True)


def main(what: str, folder: Path, *options: str) -> None:
    """Strike, and say what happened."""
    place = folder / "disk" if what == "disk" else folder
    scene = Scene(folder, place, "force" in options)
    if "without exchange" in options:
        files._exchange = lambda one, other: False
    if what == "disk":
        answer: dict[str, Any] = {"said": every_disk(scene)}
    elif what == "limit":
        answer = {"said": every_limit(scene)}
    else:
        answer = {"blows": every_line(scene, what, lost="without exchange" in options)}
    print(json.dumps({**answer, "wrong": scene.wrong}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
