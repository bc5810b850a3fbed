"""The program that lets libhdf5 write: it puts values into a copy of a file and compares the copy with the original.

Started by ``_hdf5_edit.py`` as ``_hdf5_child.py`` is by ``_hdf5.py``, with the same limits, except that the copy may
grow to the size it is told. It inherits three descriptors: the original, the copy and the values.

libhdf5 opens a copy for writing only when values are in its care (chunks, filters, values in an object header); the
comparison is always made, object by object, by what libhdf5 finds in both files.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn


def load_sibling(name: str) -> ModuleType:
    """Return a module beside this one, without the package that both are part of."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if TYPE_CHECKING:
    from convsv.checkpoints import _hdf5_child as reading
    from convsv.checkpoints import _hdf5_comparison as comparison
else:
    reading, comparison = load_sibling("_hdf5_child"), load_sibling("_hdf5_comparison")


class Copy(reading.Span):
    """A stretch of the copy that libhdf5 may write to.

    What the system refuses ends the program with that answer: libhdf5 crashes where writing raises.
    """

    @property
    def size(self) -> int:
        """Its size by now."""
        return self._size

    def writable(self) -> bool:
        """Say yes."""
        return True

    def write(self, data: Any) -> int:
        """Write all of ``data``."""
        rest, position = memoryview(data).cast("B"), self._start + self._at
        count = len(rest)
        try:
            while rest:
                written = os.pwrite(self._descriptor, rest, position)
                rest, position = rest[written:], position + written
        except OSError as error:
            give_up(error)
        self._at += count
        self._size = max(self._size, self._at)
        return count

    def truncate(self, size: int | None = None) -> int:
        """Let the file end there."""
        self._size = self._at if size is None else size
        try:
            os.ftruncate(self._descriptor, self._start + self._size)
        except OSError as error:
            give_up(error)
        return self._size


def give_up(error: OSError) -> NoReturn:
    """Say what the system refused, and end."""
    answer = {"kind": "output", "what": str(error.strerror)}
    reading.send(b"X", json.dumps(answer).encode())
    os._exit(0)


# ---------------------------------------------------------------------------------------------------------- writing


def write(copy: Copy, values: int, edits: list[dict[str, Any]]) -> None:
    """Let libhdf5 put values into datasets.

    Args:
        copy: the copy.
        values: a descriptor of the bytes of all values, in C order, each in its dataset's byte order.
        edits: ``path`` of a dataset, in hexadecimal, and ``at``, where its bytes start.

    Raises:
        RefusalError: that would change more than these datasets.
    """
    import h5py

    size = copy.size
    with h5py.File(copy, "r+") as file:
        h5py.h5f.flush(file.id)
        if copy.size < size:
            what = "cannot be edited: it goes on behind the end of its HDF5 data, and libhdf5 would cut that off"
            raise reading.RefusalError("refused", what, found=f"{size - copy.size} bytes")
        root = h5py.h5g.open(file.id, b"/")
        for edit in edits:
            path = bytes.fromhex(edit["path"])
            put(reading.open_dataset(root, path), path, values, edit["at"])


def put(dataset: Any, path: bytes, values: int, position: int) -> None:
    """Write a dataset from a descriptor.

    Raises:
        RefusalError: a filter of it cannot encode here.
    """
    import numpy
    from h5py import h5z

    properties, kind = dataset.get_create_plist(), dataset.get_type()
    for code in (properties.get_filter(i)[0] for i in range(properties.get_nfilters())):
        if not h5z.filter_avail(code) or not h5z.get_filter_info(code) & h5z.FILTER_CONFIG_ENCODE_ENABLED:
            name = reading.FILTERS.get(code, code)
            raise reading.RefusalError("refused", f"cannot be compressed again: no encoder of {name} here", path)
    itemsize = kind.get_size()
    for shape, memory, stretch in reading.hyperslabs(dataset):
        part = numpy.empty(shape, f"V{itemsize}")
        data = os.pread(values, part.nbytes, position)
        part.reshape(-1).view("u1")[:] = numpy.frombuffer(data, "u1")
        dataset.write(memory, stretch, part, kind)
        position += len(data)


# ---------------------------------------------------------------------------------------------------------- process


def edit(request: dict[str, Any]) -> None:
    """Serve the one request.

    Raises:
        RefusalError: the values cannot be written, or not without changing something else.
    """
    import h5py

    source, copy = reading.Span(*request["source"]), Copy(*request["copy"])
    h5py.File(source, "r").close()  # imports whatever opening a file takes
    reading.close_the_door()
    if request["edits"]:
        write(copy, request["values"], request["edits"])
    comparison.Comparison((source, copy), set(request["addresses"])).run()
    reading.send(b"E")


def main() -> None:
    """Answer one request."""
    sys.path += [folder for folder in sys.argv[2:] if folder not in sys.path]
    reading.limit_resources(int(sys.argv[1]))
    reading.serve(edit)


if __name__ == "__main__":
    main()
