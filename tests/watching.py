"""The whole program in a process of its own, within limits, and what it did there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["MEMORY", "SECONDS", "Ended", "watched"]

WATCHED = Path(__file__).with_name("watched.py")
SECONDS, MEMORY = 10, 2 << 30
CHILDREN = ("_hdf5_child.py", "_onnx_child.py")


@dataclass
class Ended:
    """How a run ended, and what it did.

    Attributes:
        children: processor time of the programs that it started, in seconds.
        largest: bytes of memory that the largest of them held.
    """

    code: int
    out: str
    err: str
    opened: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    imported: list[str] = field(default_factory=list)
    programs: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    children: float = 0.0
    largest: int = 0

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("error: ")]

    def check_quiet(self, *known: Path) -> None:
        """Nothing but these files was opened, nothing was written, no program but a reader was started."""
        assert set(self.opened) <= {str(path) for path in known}, set(self.opened) - {str(path) for path in known}
        assert not self.written, self.written
        assert not self.changed, self.changed
        assert not self.others, self.others
        assert all(any(child in program for child in CHILDREN) for program in self.programs), self.programs
        assert "stranger" not in self.imported


def watched(room: Path, log: Path, *arguments: str | Path, files: int = 1) -> Ended:
    """Run the program in a folder, within the limits.

    Args:
        room: the folder.
        log: a file to tell what it did.
        arguments: of the program.
        files: how many files it reads: the programs that it starts may take the time of one for each.
    """
    command = [sys.executable, str(WATCHED), str(log), str(SECONDS), str(MEMORY), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # Far more than the limit of processor time: only for what waits for ever.
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=room, env=environment, timeout=120, stdin=-3
    )
    assert done.returncode >= 0, f"ended by {signal.Signals(-done.returncode).name}\n{done.stderr}"
    assert not (room / "ran").exists()
    assert "Traceback" not in done.stderr
    assert "weights_only" not in done.stdout + done.stderr
    assert "Warning" not in done.stderr
    assert all(line.isprintable() for line in done.stderr.splitlines()), done.stderr
    ended = Ended(done.returncode, done.stdout, done.stderr, **json.loads(log.read_text()))
    assert ended.children <= SECONDS * files, "the programs that it started took more processor time than one file may"
    assert ended.largest <= MEMORY
    return ended
