"""Two HDF5 files compared object by object, through libhdf5: part of the program of ``_hdf5_edit_child.py``.

Nothing of ours is imported, except the reading child, by its path.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convsv.checkpoints import _hdf5_child as reading
else:
    reading = sys.modules["_hdf5_child"]  # the program has loaded it

Pair = tuple[Any, Any]


class Comparison:
    """Two files, object by object: everything is the same but the values of some datasets.

    Args:
        files: both, as stretches of their descriptors.
        edited: addresses of the datasets whose values may differ.
    """

    def __init__(self, files: tuple[Any, Any], edited: set[int]) -> None:
        self._files, self._edited = files, edited
        self._seen: set[int] = set()

    def run(self) -> None:
        """Walk both.

        Raises:
            RefusalError: they differ.
        """
        import h5py

        opened = [h5py.File(file, "r") for file in self._files]
        plists = [file.id.get_create_plist() for file in opened]
        require(plists[0].equal(plists[1]), "how the file is organised", b"")
        self._same_bytes(0, plists[0].get_userblock(), b"")
        waiting = [(b"", *(h5py.h5g.open(file.id, b"/") for file in opened))]
        while waiting:
            path, *pair = waiting.pop()
            waiting += self._compare(path, (pair[0], pair[1]))

    def _compare(self, path: bytes, pair: Pair) -> Iterator[tuple[bytes, Any, Any]]:
        """Compare one object, and yield what is in it."""
        from h5py import h5d, h5g, h5o

        before, after = (h5o.get_info(item) for item in pair)
        require(before.addr == after.addr and type(pair[0]) is type(pair[1]), "where its objects stand", path)
        if before.addr in self._seen:
            return
        self._seen.add(before.addr)
        times = [(info.atime, info.mtime, info.ctime, info.btime) for info in (before, after)]
        require(times[0] == times[1], "its recorded time of change", path)
        compare_attributes(pair, path)
        if isinstance(pair[0], h5g.GroupID):
            names, others = (reading.children(group, path) for group in pair)
            require(names == others and links(pair[0]) == links(pair[1]), "the order of its names", path)
            for name in names:
                yield reading.join(path, name), h5o.open(pair[0], name), h5o.open(pair[1], name)
        elif isinstance(pair[0], h5d.DatasetID):
            self._compare_datasets(pair, path, edited=before.addr in self._edited)
        else:
            require(pair[0] == pair[1], "its type", path)

    def _compare_datasets(self, pair: Pair, path: bytes, *, edited: bool) -> None:
        from h5py import h5d

        first, second = (reading.check_dataset(item, path) for item in pair)
        kinds, spaces = [item.get_type() for item in pair], [item.get_space() for item in pair]
        require(kinds[0] == kinds[1], "its type", path)
        require(extent(spaces[0]) == extent(spaces[1]), "its shape", path)
        require(first.equal(second) != 0, "its chunks, filters or fill value", path)
        if edited:
            return
        require(pair[0].get_storage_size() == pair[1].get_storage_size(), "the size of its values", path)
        if first.get_layout() == h5d.CHUNKED:
            compare_chunks(pair, path)
        elif first.get_layout() == h5d.CONTIGUOUS and pair[0].get_storage_size():
            require(pair[0].get_offset() == pair[1].get_offset(), "where its values stand", path)
            self._same_bytes(pair[0].get_offset(), pair[0].get_storage_size(), path)
        if first.get_layout() == h5d.COMPACT or not is_plain(kinds[0]):
            values, others = (read_all(item, kinds[0]) for item in pair)
            require(values == others, "its values", path)

    def _same_bytes(self, start: int, size: int, path: bytes) -> None:
        for position in range(start, start + size, reading.SLAB):
            count = min(reading.SLAB, start + size - position)
            parts = []
            for file in self._files:
                file.seek(position)
                parts.append(file.read(count))
            require(parts[0] == parts[1], "its values", path)


def require(same: bool, what: str, path: bytes) -> None:
    """Refuse a copy that differs.

    Raises:
        RefusalError: ``same`` is false.
    """
    if not same:
        raise reading.RefusalError("refused", f"the edit would also change {what}", path)


def links(group: Any) -> list[tuple[bytes, int]]:
    """Return the names in a group with their order of creation, where it is recorded."""
    found: list[tuple[bytes, int]] = []

    def visit(name: bytes, info: Any) -> None:
        found.append((name, info.corder if info.corder_valid else -1))

    group.links.iterate(visit, info=True)
    return found


def extent(space: Any) -> tuple[Any, ...]:
    """Return the shape of a dataspace, also the one it may grow to."""
    kind = space.get_simple_extent_type()
    return kind, space.get_simple_extent_dims(), space.get_simple_extent_dims(True)


def compare_chunks(pair: Pair, path: bytes) -> None:
    """Compare chunks as they are stored, compressed or not.

    Raises:
        RefusalError: they differ.
    """
    first, second = (chunks(item) for item in pair)
    require([where for where, _ in first] == [where for where, _ in second], "its chunks", path)
    for where, stored in first:
        if stored:
            require(pair[0].read_direct_chunk(where) == pair[1].read_direct_chunk(where), "its values", path)


def chunks(dataset: Any) -> list[tuple[tuple[int, ...], int]]:
    """Return where the chunks of a dataset are in it and their stored sizes."""
    found: list[tuple[tuple[int, ...], int]] = []

    def visit(info: Any) -> None:
        found.append((tuple(info.chunk_offset), info.size))

    dataset.chunk_iter(visit)
    return found


def compare_attributes(pair: Pair, path: bytes) -> None:
    """Compare the attributes of an object: names and their order, types, shapes and values.

    Raises:
        RefusalError: they differ.
    """
    from h5py import h5, h5a

    counts = [h5a.get_num_attrs(item) for item in pair]
    require(counts[0] == counts[1], "its attributes", path)
    for index in range(counts[0]):
        first, second = (h5a.open(item, index=index, order=h5.ITER_NATIVE) for item in pair)
        kind, where = first.get_type(), reading.join(path, first.name)
        require(first.name == second.name and kind == second.get_type(), "its attributes", where)
        require(extent(first.get_space()) == extent(second.get_space()), "its attributes", where)
        require(read_all(first, kind) == read_all(second, kind), "its attributes", where)


def is_plain(kind: Any) -> bool:
    """Tell whether values of a type are stored in themselves, not in a heap of the file."""
    from h5py import h5t

    if kind.get_class() == h5t.STRING:
        return not kind.is_variable_str()
    return not kind.detect_class(h5t.VLEN) and not kind.detect_class(h5t.STRING)


def read_all(item: Any, kind: Any) -> Any:
    """Return all values of a dataset or an attribute, as something that can be compared."""
    import numpy
    from h5py import h5a, h5s

    if item.get_space().get_simple_extent_type() == h5s.NULL:
        return None
    plain = is_plain(kind)
    values = numpy.empty(item.shape, f"V{kind.get_size()}" if plain else item.dtype)
    if isinstance(item, h5a.AttrID):
        item.read(values, kind if plain else None)
    else:
        item.read(h5s.ALL, h5s.ALL, values, kind if plain else None)
    return values.tobytes() if plain else [comparable(value) for value in values.reshape(-1).tolist()]


def comparable(value: Any) -> Any:
    """Return a value of a heap without arrays in it, which do not compare as a whole."""
    import numpy

    if isinstance(value, numpy.ndarray):
        return str(value.dtype), [comparable(part) for part in value.reshape(-1).tolist()]
    return tuple(map(comparable, value)) if isinstance(value, tuple) else value
