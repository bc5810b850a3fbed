"""The child that runs libhdf5, forked from a process that has imported it: the same program without its start-up.

``Forked`` stands in for ``subprocess.Popen``. Every case still has a process of its own, with the limits that the
program sets; only the imports are shared, and they were done before any file was seen.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, BinaryIO

_popen = subprocess.Popen  # the real one, while the stand-in has its place
_zygotes: dict[str, socket.socket] = {}


class Forked:
    """One child, as far as ``convsv.checkpoints._child`` looks at it."""

    def __init__(self, command: list[str], *, env: dict[str, str], pass_fds: tuple[int, ...], **_: object) -> None:
        _, _, program, *arguments = command
        self._zygote = _zygotes.get(program) or _zygotes.setdefault(program, _start(program, arguments[3:], env))
        theirs_in, ours_in = os.pipe()
        ours_out, theirs_out = os.pipe()
        said = json.dumps({"argv": [program, *arguments], "descriptors": pass_fds}).encode()
        socket.send_fds(self._zygote, [said], [theirs_in, theirs_out, *pass_fds])
        for descriptor in (theirs_in, theirs_out):
            os.close(descriptor)
        self.stdin: BinaryIO = os.fdopen(ours_in, "wb", 0)
        self.stdout: BinaryIO = os.fdopen(ours_out, "rb", 0)
        self.pid = int(self._zygote.recv(64))
        self.returncode: int | None = None

    def kill(self) -> None:
        """End it, unless it has ended and was waited for."""
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Return its exit status; that of a signal is negative."""
        if self.returncode is None:
            self._zygote.send(json.dumps({"wait": self.pid}).encode())
            self.returncode = int(self._zygote.recv(64))
        return self.returncode


def _start(program: str, folders: list[str], env: dict[str, str]) -> socket.socket:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-I", __file__, str(there.fileno()), program, *folders]
    process = _popen(command, stdin=subprocess.DEVNULL, cwd="/", env=env, pass_fds=[there.fileno()])
    there.close()
    atexit.register(_stop, here, process)
    return here


def _stop(control: socket.socket, process: subprocess.Popen[bytes]) -> None:
    control.close()
    process.wait()


def main(control: str, program: str, *folders: str) -> None:
    """Fork when told; end when nobody is there to tell."""
    import resource

    sys.path += [folder for folder in folders if folder not in sys.path]
    resource.setrlimit(resource.RLIMIT_AS, (resource.getrlimit(resource.RLIMIT_AS)[1],) * 2)
    spec = importlib.util.spec_from_file_location("child", program)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    import h5py
    import numpy

    assert h5py.version.hdf5_version
    assert numpy.__version__
    with socket.socket(fileno=int(control)) as ours:
        while True:
            said, descriptors, _, _ = socket.recv_fds(ours, 1 << 16, 8)
            if not said:
                return
            request = json.loads(said)
            if "wait" in request:
                status = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
                ours.send(str(status).encode())
                continue
            pid = os.fork()
            if pid == 0:
                _become(module, request, descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
            ours.send(str(pid).encode())


def _become(module: Any, request: dict[str, Any], descriptors: list[int]) -> None:
    with contextlib.suppress(BaseException):
        targets = [0, 1, *request["descriptors"]]
        moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, max(targets) + 1) for descriptor in descriptors]
        for source, target in zip(moved, targets, strict=True):
            os.dup2(source, target)
        for descriptor in {int(entry.name) for entry in Path("/proc/self/fd").iterdir()} - {*targets, 2}:
            with contextlib.suppress(OSError):  # that of the list itself
                os.close(descriptor)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
        sys.argv = request["argv"]
        module.main()
    os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
