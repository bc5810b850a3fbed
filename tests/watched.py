"""Runs convsv under limits and under watch: ``python watched.py LOG SECONDS BYTES ARGUMENTS...``.

The system ends a process that takes more processor time than ``SECONDS``, and gives it at most ``BYTES`` of address
space. LOG gets a JSON object: the files that were opened, changed or looked for by name, the modules that were
imported, and the programs that were started, by what Python's audit hooks tell, which see every part of Python. What
happens inside the folder of the cache is left out. Besides, the processor time that the programs took which it started
and waited for, of which each has a limit of its own, and the most memory that one of them held.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import sysconfig
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
CACHE = os.environ["CONVSV_CACHE_DIR"]
PACKAGES = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
OWN = (
    sys.prefix,
    sys.base_prefix,
    *sysconfig.get_paths().values(),
    *PACKAGES,
    str(HERE.parents[1] / "convsv"),
    str(HERE),
    CACHE,
)
SYSTEM = ("/proc/", "/sys/", "/dev/null", "/dev/shm/", "/dev/tty", "/etc/", "/lib", "/usr/")
PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "pty.spawn")
CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate")
OTHERS = ("socket.", "pickle.find_class", "ctypes.dlopen", "shutil.", "urllib.", "ftplib.", "http.")

seen: dict[str, list[str]] = {"opened": [], "written": [], "imported": [], "programs": [], "changed": [], "others": []}


def note(event: str, args: tuple[Any, ...]) -> None:
    """Keep what is of interest."""
    if event == "open" and isinstance(args[0], (str, bytes)):
        path = os.path.abspath(os.fsdecode(args[0]))  # noqa: PTH100 - links are not followed
        if not path.startswith((*OWN, *SYSTEM)):
            flags = args[2] if isinstance(args[2], int) else 0
            seen["written" if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) else "opened"].append(path)
    elif event == "import":
        seen["imported"].append(str(args[0]))
    elif event in PROGRAMS:
        seen["programs"].append(repr(args[1] if event == "subprocess.Popen" else args))
    elif event in CHANGES and not all(str(path).startswith(CACHE) for path in args if isinstance(path, (str, Path))):
        seen["changed"].append(f"{event} {args}")
    elif event == "ctypes.dlopen" and (args[0] is None or str(args[0]).startswith(OWN)):
        pass  # opening the program itself is ctypes' habit, and torch loads its own libraries
    elif event.startswith(OTHERS):
        seen["others"].append(f"{event} {args}")


def main(log: str, seconds: str, size: str, *arguments: str) -> None:
    """Run it, and write what was seen, whatever happens."""
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds)))
    resource.setrlimit(resource.RLIMIT_AS, (int(size), int(size)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.path[0] = ""  # as ``python -m``: a module beside the file could be imported by its name
    sys.argv = ["convsv", *arguments]
    sys.addaudithook(note)
    try:
        from convsv.__main__ import main as convsv

        convsv()
    finally:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        unit = 1 if sys.platform == "darwin" else 1024
        used = {"children": children.ru_utime + children.ru_stime, "largest": children.ru_maxrss * unit}
        told = json.dumps({**seen, **used})
        Path(log).write_text(told)


if __name__ == "__main__":
    main(*sys.argv[1:])
