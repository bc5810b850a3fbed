"""The program that runs libhdf5: a child process that can crash, hang or run out of memory without harm.

Started by ``_hdf5.py`` with the file as an inherited descriptor; it opens nothing else, and after it has opened the
file it no longer could. It imports h5py, numpy and the standard library, nothing of ours: it is run by its path.

Requests are lines of JSON on standard input; answers are frames ``kind (1 byte), length (8 bytes, big endian),
payload`` on standard output: ``J`` a JSON answer, ``D`` some of a dataset's bytes, ``E`` their end, ``X`` an error.
"""

from __future__ import annotations

import io
import json
import math
import os
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

MAX_OBJECTS = 200_000
MAX_DEPTH = 64
MAX_NAME = 4096
MAX_ATTRIBUTE = 1 << 26
MAX_INDEX = 1 << 27
MAX_DECODED = 1 << 30
MAX_FILLED = 1 << 20
SLAB = 1 << 24
MEMORY = 3 << 29

ROOT_ATTRIBUTES = (b"model_config", b"keras_version", b"backend")
LIST_ATTRIBUTES = (b"layer_names", b"weight_names")
FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 4: "szip", 32000: "lzf"}
# Deflate and lzf shrink a constant by at most about 1032 and 90; a file that claims more lies about its size.
MAX_RATIO = 1100

FLOATS: dict[tuple[tuple[int, ...], int, int], str] = {
    ((15, 10, 5, 0, 10), 15, 2): "float16",
    ((15, 7, 8, 0, 7), 127, 2): "bfloat16",
    ((31, 23, 8, 0, 23), 127, 4): "float32",
    ((63, 52, 11, 0, 52), 1023, 8): "float64",
}


class RefusalError(Exception):
    """Why the file is not read: ``kind`` is ``unsafe`` or ``corrupt``."""

    def __init__(self, kind: str, what: str, where: bytes = b"", found: str = "") -> None:
        super().__init__(what)
        self.answer = {"kind": kind, "what": what, "where": text(where), "found": found}


class Span(io.RawIOBase):
    """A stretch of the inherited descriptor, read with ``pread``: what libhdf5 takes for the whole file."""

    def __init__(self, descriptor: int, start: int, size: int) -> None:
        super().__init__()
        self._descriptor, self._start, self._size, self._at = descriptor, start, size, 0

    def readable(self) -> bool:
        """Say yes."""
        return True

    def seekable(self) -> bool:
        """Say yes."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to ``offset``."""
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        """Return where the next read starts."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer``; fewer bytes only at the end of the stretch."""
        count = max(min(len(buffer), self._size - self._at), 0)
        data = os.pread(self._descriptor, count, self._start + self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def text(name: bytes) -> str:
    """Return a name for people; names that are not UTF-8 are escaped."""
    return name.decode("utf-8", "backslashreplace")


# ------------------------------------------------------------------------------------------------------ choke point


def children(group: Any, path: bytes) -> list[bytes]:
    """Return the names in a group, none of which leads anywhere but to an object of this file.

    Raises:
        RefusalError: one does, or there are too many.
    """
    from h5py import h5l

    names: list[bytes] = []
    refused: list[RefusalError] = []

    def visit(name: bytes, info: Any) -> bool | None:
        # Anything but None ends the iteration; an exception would have to pass through libhdf5.
        if info.type != h5l.TYPE_HARD:
            kind = {h5l.TYPE_SOFT: "soft", h5l.TYPE_EXTERNAL: "external"}.get(info.type, "user-defined")
            refused.append(RefusalError("unsafe", f"is a {kind} link: only hard links are read", join(path, name)))
        elif len(name) > MAX_NAME or len(names) >= MAX_OBJECTS:
            refused.append(RefusalError("unsafe", "holds too many or too long names", path))
        else:
            names.append(name)
        return True if refused else None

    group.links.iterate(visit, info=True)
    if refused:
        raise refused[0]
    return names


def check_dataset(dataset: Any, path: bytes) -> Any:
    """Return the creation properties of a dataset whose values lie in this file.

    Raises:
        RefusalError: they do not.
    """
    from h5py import h5d

    properties = dataset.get_create_plist()
    if properties.get_layout() == h5d.VIRTUAL:
        raise RefusalError("unsafe", "is a virtual dataset, which reads other files", path)
    if properties.get_external_count():
        raise RefusalError("unsafe", "keeps its values in another file", path)
    return properties


def join(path: bytes, name: bytes) -> bytes:
    """Return a path with one part more."""
    return path + b"/" + name if path else name


# ------------------------------------------------------------------------------------------------------------ index


class Index:
    """Every dataset and every attribute that is asked for, collected without recursion."""

    def __init__(self) -> None:
        self.datasets: list[dict[str, Any]] = []
        self.groups: dict[str, dict[str, Any]] = {}
        self.problems: list[str] = []
        self.size = 0
        self._seen: set[int] = set()

    def collect(self, root: Any) -> None:
        """Walk from the root.

        Raises:
            RefusalError: something leads out of the file, or there is too much.
        """
        from h5py import h5o

        self._seen.add(h5o.get_info(root).addr)
        waiting = [(b"", root)]
        while waiting:
            path, group = waiting.pop()
            self._describe_group(group, path)
            if path.count(b"/") >= MAX_DEPTH:
                raise RefusalError("unsafe", "nests too deeply", path[:MAX_NAME])
            for name in children(group, path):
                if self._add(item := h5o.open(group, name), where := join(path, name)):
                    waiting.append((where, item))

    def _add(self, item: Any, path: bytes) -> bool:
        # Returns whether it is a group that was not met before.
        from h5py import h5d, h5g, h5o

        if len(self.datasets) + len(self._seen) + len(self.problems) > MAX_OBJECTS:
            raise RefusalError("unsafe", f"holds more than {MAX_OBJECTS} objects")
        address = h5o.get_info(item).addr
        if isinstance(item, h5d.DatasetID):
            self.datasets.append(self._charged(describe_dataset(item, path, address)))
        if not isinstance(item, h5g.GroupID):
            return False
        if address in self._seen:
            self.problems.append(self._charged(f"{text(path)}: the same group again, not followed"))
            return False
        self._seen.add(address)
        return True

    def _describe_group(self, group: Any, path: bytes) -> None:
        found = {text(key): value for key, value in group_attributes(group, path)}
        if found:
            self.groups[text(path)] = self._charged(found)

    def _charged(self, value: Any) -> Any:
        self.size += len(str(value))
        if self.size > MAX_INDEX:
            raise RefusalError("unsafe", "says more about its objects than is read", found=f"{self.size} bytes")
        return value


def describe_dataset(dataset: Any, path: bytes, address: int) -> dict[str, Any]:
    """Return what the parent needs to know; what cannot be read gets a ``problem``.

    Raises:
        RefusalError: it leads to another file, or its sizes contradict each other.
    """
    from h5py import h5d

    properties = check_dataset(dataset, path)
    dtype, order, itemsize, problem = describe_type(dataset)
    shape = dataset.shape
    if shape is None:
        shape, problem = (), "has no values"
    filters = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
    stored = dataset.get_storage_size()
    # Where there is a user block, libhdf5 also tells an offset, a meaningless one, of values that were never written.
    offset = dataset.get_offset() if properties.get_layout() == h5d.CONTIGUOUS and stored else None
    size = itemsize
    for length in shape:
        size *= length
    if problem is None and offset is not None and stored != size:
        raise RefusalError("corrupt", "stores fewer or more bytes than its shape says", path, f"{stored}, not {size}")
    if offset is None:
        problem = problem or decoding_problem(size, stored, filters)
    answer: dict[str, Any] = {
        "path": text(path),
        "shape": list(shape),
        "dtype": dtype,
        "order": order,
        "offset": offset,
        "address": address,
        "problem": problem,
    }
    if answer["path"].encode() != path:
        answer["raw"] = path.hex()
    return answer


def decoding_problem(size: int, stored: int, filters: list[int]) -> str | None:
    """Return why a dataset that libhdf5 must assemble is not assembled."""
    unknown = [code for code in filters if code not in FILTERS]
    if unknown:
        return f"uses HDF5 filter {unknown[0]}, which is not read"
    if size > MAX_DECODED:
        return f"{size} bytes are more than is decoded ({MAX_DECODED})"
    if size > max(MAX_RATIO * stored, MAX_FILLED):
        return f"{size} bytes are declared where {stored} are stored"
    return None


def describe_type(dataset: Any) -> tuple[str, str, int, str | None]:
    """Return dtype name, byte order, bytes an item, and why it is not read, if so."""
    from h5py import h5t

    kind = dataset.get_type()
    size, family = kind.get_size(), kind.get_class()
    order = ">" if family in (h5t.INTEGER, h5t.FLOAT) and kind.get_order() == h5t.ORDER_BE else "<"
    if family == h5t.FLOAT and kind.get_order() in (h5t.ORDER_LE, h5t.ORDER_BE):
        fields = tuple(int(n) for n in kind.get_fields())
        name = FLOATS.get((fields, int(kind.get_ebias()), size))
        if name and (kind.get_precision(), kind.get_offset()) == (8 * size, 0) and kind.get_norm() == h5t.NORM_IMPLIED:
            return name, order, size, None
    if family == h5t.INTEGER and size in (1, 2, 4, 8) and (kind.get_precision(), kind.get_offset()) == (8 * size, 0):
        return f"{'u' if kind.get_sign() == h5t.SGN_NONE else ''}int{8 * size}", order, size, None
    if family == h5t.ENUM and size == 1 and kind.get_nmembers() == 2:
        return "bool", order, size, None
    if family == h5t.OPAQUE and size == 2 and attribute(dataset, b"dtype", b"") == "bfloat16":
        return "bfloat16", "<", size, None
    names = {h5t.STRING: "string", h5t.VLEN: "vlen", h5t.COMPOUND: "compound", h5t.REFERENCE: "reference"}
    name = names.get(family, f"hdf5 type {family} of {size} bytes")
    return name, order, size, f"{name} values are not numbers that are read"


# ------------------------------------------------------------------------------------------------------- attributes


def group_attributes(group: Any, path: bytes) -> Iterator[tuple[bytes, Any]]:
    """Yield the attributes that Keras uses, joined where it had to split them."""
    from h5py import h5a

    if not h5a.get_num_attrs(group):
        return
    names = LIST_ATTRIBUTES + (ROOT_ATTRIBUTES if path in (b"", b"model_weights") else ())
    if path == b"vars" or path.endswith(b"/vars"):
        names += (b"name",)
    for name in names:
        value = attribute(group, name, path)
        if value is None and name in LIST_ATTRIBUTES:
            value = numbered_attribute(group, name, path)
        if value is not None:
            yield name, value


def numbered_attribute(group: Any, name: bytes, path: bytes) -> list[str] | None:
    """Return the list that Keras split over ``name0``, ``name1`` ... because an attribute holds 64 KiB."""
    joined: list[str] = []
    number = 0
    while isinstance(part := attribute(group, name + str(number).encode(), path), list):
        joined += part
        number += 1
    return joined if number else None


def attribute(item: Any, name: bytes, path: bytes) -> Any:
    """Return a string attribute as a string or a list of strings; None for anything else.

    Raises:
        RefusalError: it is too large.
    """
    import numpy
    from h5py import h5a, h5s, h5t

    if not h5a.exists(item, name):
        return None
    found = h5a.open(item, name)
    space, kind = found.get_space(), found.get_type()
    if space.get_simple_extent_type() == h5s.NULL or len(found.shape) > 1:
        return None
    count = space.get_simple_extent_npoints()
    if kind.get_class() != h5t.STRING:
        return [] if count == 0 else None
    if count > MAX_OBJECTS or found.get_storage_size() > MAX_ATTRIBUTE or kind.get_size() * count > MAX_ATTRIBUTE:
        raise RefusalError("unsafe", f"attribute {text(name)} is too large", path)
    values = numpy.empty(found.shape, dtype=found.dtype)
    found.read(values)
    words = [text(v) if isinstance(v, bytes) else text(str(v).encode("utf-8", "surrogateescape")) for v in values.flat]
    if sum(map(len, words)) > MAX_ATTRIBUTE:
        raise RefusalError("unsafe", f"attribute {text(name)} is too large", path)
    return words if found.shape else words[0]


# ---------------------------------------------------------------------------------------------------------- reading


def open_dataset(root: Any, path: bytes) -> Any:
    """Return a dataset that is read.

    Raises:
        RefusalError: the path leads to none.
    """
    from h5py import h5d, h5g, h5o

    item = root
    for depth, name in enumerate(path.split(b"/")):
        if not isinstance(item, h5g.GroupID) or name not in children(item, b"/".join(path.split(b"/")[:depth])):
            raise RefusalError("corrupt", "is gone", path)
        item = h5o.open(item, name)
    described = describe_dataset(item, path, 0)
    if not isinstance(item, h5d.DatasetID) or described["problem"]:
        raise RefusalError("corrupt", "cannot be read", path, str(described["problem"]))
    return item


def hyperslabs(item: Any) -> Iterator[tuple[tuple[int, ...], Any, Any]]:
    """Yield shape, memory space and file space of some rows of a dataset at a time, whole chunks."""
    from h5py import h5d, h5s

    properties, shape = item.get_create_plist(), item.shape
    if not shape or 0 in shape:
        yield shape, h5s.ALL, h5s.ALL
        return
    row = item.get_type().get_size() * math.prod(shape[1:])
    step = properties.get_chunk()[0] if properties.get_layout() == h5d.CHUNKED else 1
    step *= max(SLAB // (row * step), 1)
    for start in range(0, shape[0], step):
        part = (min(step, shape[0] - start), *shape[1:])
        stretch = item.get_space()
        stretch.select_hyperslab((start, *(0 for _ in shape[1:])), part)
        yield part, h5s.create_simple(part), stretch


def slabs(item: Any) -> Iterator[bytes]:
    """Yield the bytes of a dataset in C order, in its stored byte order, some rows at a time."""
    import numpy

    memory_type = item.get_type()
    for shape, memory, stretch in hyperslabs(item):
        values = numpy.empty(shape, f"V{memory_type.get_size()}")
        item.read(memory, stretch, values, memory_type)
        yield values.tobytes()


# ------------------------------------------------------------------------------------------------------------ process


def send(kind: bytes, payload: bytes = b"") -> None:
    """Write one frame."""
    out: BinaryIO = sys.stdout.buffer
    out.write(kind + struct.pack(">Q", len(payload)))
    out.write(payload)
    out.flush()


def limit_resources(largest_file: int = 0) -> None:
    """Bound memory and the size of files, and forbid core dumps and processes of its own."""
    import resource

    limits = {"RLIMIT_AS": MEMORY, "RLIMIT_FSIZE": largest_file, "RLIMIT_CORE": 0, "RLIMIT_NPROC": 0}
    for name, value in limits.items():
        try:
            resource.setrlimit(getattr(resource, name), (value, value))
        except (ValueError, OSError, AttributeError):
            continue  # a system without this limit, or a stricter one already


def limit_time(seconds: float) -> None:
    """Let the request in hand use so many more seconds of processor time; the parent watches the clock besides."""
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def close_the_door() -> None:
    """Make opening any further file impossible, also for modules that Python would import late."""
    import importlib
    import resource

    for late in ("encodings.ascii", "encodings.latin_1", "encodings.unicode_escape"):
        importlib.import_module(late)

    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))


def answer(request: dict[str, Any], root: Any) -> None:
    """Serve one request."""
    if request["do"] == "index":
        index = Index()
        index.collect(root)
        found = {"datasets": index.datasets, "groups": index.groups, "problems": index.problems}
        send(b"J", json.dumps(found).encode())
        return
    for part in slabs(open_dataset(root, bytes.fromhex(request["path"]))):
        send(b"D", part)
    send(b"E")


def serve(handle: Callable[[dict[str, Any]], None]) -> None:
    """Answer requests until standard input ends, and errors with the reason."""
    for line in sys.stdin.buffer:
        try:
            request = json.loads(line)
            limit_time(request["seconds"])
            handle(request)
        except RefusalError as refusal:
            send(b"X", json.dumps(refusal.answer).encode())
        except MemoryError:
            send(b"X", json.dumps({"kind": "unsafe", "what": "needs too much memory to read"}).encode())
        except ImportError as error:
            send(b"X", json.dumps({"kind": "missing", "what": str(error)}).encode())
        except Exception as error:  # noqa: BLE001 -- whatever the library says about a bad file is the answer
            message = " ".join(str(error.args[0] if error.args else error).split())[:200]
            send(b"X", json.dumps({"kind": "failed", "what": "", "found": message}).encode())
    sys.stdout.buffer.flush()
    os._exit(0)  # no clean-up: libhdf5 would visit the file again


def main() -> None:
    """Open the file once and answer."""
    descriptor, start, size = (int(word) for word in sys.argv[1:4])
    sys.path += [folder for folder in sys.argv[4:] if folder not in sys.path]
    limit_resources()
    root: Any = None

    def handle(request: dict[str, Any]) -> None:
        nonlocal root
        if root is None:
            import h5py

            file = h5py.File(Span(descriptor, start, size), "r")
            root = h5py.h5g.open(file.id, b"/")
            close_the_door()
        answer(request, root)

    serve(handle)


if __name__ == "__main__":
    main()
