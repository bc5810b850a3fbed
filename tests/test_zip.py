"""The strict zip index: what it accepts, what it refuses, and that it knows where every byte stands."""

import contextlib
import io
import struct
import tracemalloc
import zipfile
import zlib

import pytest

from convsv.checkpoints import _zip
from convsv.checkpoints._file import AnonymousFile, RegularFile
from convsv.checkpoints._zip import StoredZip
from convsv.errors import CheckpointError, CorruptCheckpointError, UnsafeCheckpointError

CONTENT = {"a/data.pkl": b"pickle", "a/data/0": bytes(range(256)) * 16, "a/empty": b"", "a/ümlaut\n": b"x"}


@pytest.fixture
def opened(tmp_path):
    def write_and_open(data, **options):
        path = tmp_path / "archive.zip"
        path.write_bytes(data)
        return StoredZip(RegularFile(path), **options)

    return write_and_open


class _Unseekable(io.RawIOBase):
    """A stream that cannot seek: zipfile then writes data descriptors instead of filling in the local headers."""

    def __init__(self):
        self.data = bytearray()

    def writable(self):
        return True

    def write(self, data):
        self.data += data
        return len(data)


def archive(content=None, *, method=zipfile.ZIP_STORED, streamed=False, comment=b"", force_zip64=False):
    stream = _Unseekable() if streamed else io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as z:
        z.comment = comment
        for name, data in (CONTENT if content is None else content).items():
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            with z.open(info, "w", force_zip64=force_zip64) as entry:
                entry.write(data)
    return bytes(stream.data) if streamed else stream.getvalue()


def replaced(data, old, new, count=-1):
    assert old in data
    return data.replace(old, new, count)


@pytest.mark.parametrize("streamed", [False, True], ids=["local sizes", "data descriptors"])
@pytest.mark.parametrize("force_zip64", [False, True], ids=["32 bit", "zip64"])
def test_every_entry_is_read_and_every_copy_of_its_checksum_is_found(opened, streamed, force_zip64):
    data = archive(streamed=streamed, force_zip64=force_zip64)
    index = opened(data)
    assert list(index.entries) == list(CONTENT)
    for name, expected in CONTENT.items():
        entry = index.entries[name]
        assert index.read(name) == expected
        assert data[entry.offset : entry.offset + entry.size] == expected
        assert len(entry.crc_offsets) == 2
        for at in entry.crc_offsets:
            assert data[at : at + 4] == struct.pack("<L", zlib.crc32(expected))


def test_patching_data_and_all_checksums_gives_a_valid_archive(opened):
    data = bytearray(archive(streamed=True))
    entry = opened(bytes(data)).entries["a/data/0"]
    new = bytes(reversed(CONTENT["a/data/0"]))
    data[entry.offset : entry.offset + entry.size] = new
    for at in entry.crc_offsets:
        data[at : at + 4] = struct.pack("<L", zlib.crc32(new))
    assert opened(bytes(data)).read("a/data/0") == new
    with zipfile.ZipFile(io.BytesIO(data)) as z:
        assert z.read("a/data/0") == new


def test_a_range_is_read_and_the_whole_entry_is_checked_first(opened):
    index = opened(archive())
    assert index.read_range("a/data/0", 10, 20) == CONTENT["a/data/0"][10:30]
    assert index.read_range("a/data/0", 0, 4096) == CONTENT["a/data/0"]
    damaged = bytearray(archive())
    damaged[index.entries["a/data/0"].offset + 4000] ^= 1
    with pytest.raises(CorruptCheckpointError, match="wrong checksum"):
        opened(bytes(damaged)).read_range("a/data/0", 10, 20)


@pytest.mark.parametrize(("start", "count"), [(-1, 2), (0, 4097), (4096, 1), (5, -1)])
def test_a_range_beyond_the_entry_is_refused(opened, start, count):
    with pytest.raises(CorruptCheckpointError, match="too short"):
        opened(archive()).read_range("a/data/0", start, count)


def test_a_wrong_checksum_is_refused(opened):
    data = replaced(archive(), b"pickle", b"pickls")
    with pytest.raises(CorruptCheckpointError, match="wrong checksum"):
        opened(data).read("a/data.pkl")


@pytest.mark.parametrize("streamed", [False, True], ids=["local sizes", "data descriptors"])
def test_an_archive_whose_checksums_are_all_zero_is_read_unchecked(opened, streamed):
    data = archive(streamed=streamed)
    for content in CONTENT.values():
        if content:
            data = replaced(data, struct.pack("<L", zlib.crc32(content)), bytes(4))
    index = opened(replaced(data, b"pickle", b"pickls"))
    assert not index.has_checksums
    assert index.read("a/data.pkl") == b"pickls"
    assert index.read_range("a/data/0", 1, 2) == b"\x01\x02"


def test_one_zero_checksum_among_others_is_a_wrong_checksum(opened):
    data = replaced(archive(), struct.pack("<L", zlib.crc32(b"pickle")), bytes(4))
    with pytest.raises(CorruptCheckpointError, match="wrong checksum"):
        opened(data).read("a/data.pkl")


def test_a_comment_is_accepted_even_if_it_looks_like_an_end_record(opened):
    index = opened(archive(comment=b"PK\x05\x06 not an end record"))
    assert index.read("a/data.pkl") == b"pickle"


@pytest.mark.parametrize("change", ["before", "after"])
def test_bytes_before_or_after_the_archive_are_refused(opened, change):
    data = archive()
    with pytest.raises(CheckpointError):
        opened(b"PK\x03\x04" + data if change == "before" else data + b"\0")


def test_bytes_between_the_first_byte_and_the_first_entry_are_refused(opened):
    buffer = io.BytesIO(b"PK\x03\x04" + bytes(60))
    with zipfile.ZipFile(buffer, "a") as z:
        z.writestr("x", b"1")
    with pytest.raises(UnsafeCheckpointError, match="before its first entry"):
        opened(buffer.getvalue())


def test_every_truncation_is_refused(opened):
    data = archive({"a/data.pkl": b"pickle", "a/data/0": b"01234567"}, streamed=True)
    for length in range(len(data)):
        with pytest.raises(CheckpointError):
            opened(data[:length])


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF], ids=hex)
def test_every_flipped_byte_is_refused_or_changes_no_content(opened, flip):
    content = {"a/data.pkl": b"pickle", "a/data/0": b"01234567"}
    data = archive(content, force_zip64=True)
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= flip
        with contextlib.suppress(CheckpointError):
            index = opened(bytes(changed))
            assert {index.read(name) for name in index.entries} <= set(content.values())


def test_two_entries_of_one_name_are_refused(opened):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as z:
        z.writestr("a/data.pkl", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            z.writestr("a/data.pkl", b"2")
    with pytest.raises(UnsafeCheckpointError, match="two entries of one name"):
        opened(buffer.getvalue())


def test_overlapping_entries_are_refused(opened):
    # Both directory records name the same local header; the second under a name of the same length.
    data = bytearray(archive({"a/1": b"same", "a/2": b"same"}))
    second = data.rindex(b"PK\x01\x02")
    data[second + 42 : second + 46] = bytes(4)
    with pytest.raises(CheckpointError):
        opened(bytes(data))


def test_an_entry_nested_in_the_data_of_another_is_refused(opened):
    inner = archive({"in": b"nested"})
    inner_entry = inner[: inner.index(b"PK\x01\x02")]
    data = archive({"out": inner_entry})
    at = data.index(b"PK\x01\x02")
    start = data.index(inner_entry, 4)
    record = bytearray(inner[inner.index(b"PK\x01\x02") : inner.index(b"PK\x05\x06")])
    record[42:46] = struct.pack("<L", start)
    end = bytearray(data[data.index(b"PK\x05\x06") :])
    size = data.index(b"PK\x05\x06") - at + len(record)
    end[8:16] = struct.pack("<2HL", 2, 2, size)
    with pytest.raises(UnsafeCheckpointError, match="overlap"):
        opened(data[: data.index(b"PK\x05\x06")] + bytes(record) + bytes(end))


def test_compressed_entries_are_refused_unless_allowed(opened):
    data = archive(method=zipfile.ZIP_DEFLATED)
    with pytest.raises(UnsafeCheckpointError, match="is compressed"):
        opened(data)
    index = opened(data, allow_deflate=True)
    assert index.read("a/data/0") == CONTENT["a/data/0"]
    with pytest.raises(UnsafeCheckpointError, match="is compressed"):
        index.read_range("a/data/0", 0, 1)


def test_other_compressions_are_refused(opened):
    with pytest.raises(UnsafeCheckpointError, match="unknown way"):
        opened(archive(method=zipfile.ZIP_LZMA), allow_deflate=True)


def test_an_encrypted_entry_is_refused(opened):
    data = bytearray(archive({"x": b"1"}))
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(UnsafeCheckpointError, match="encrypted"):
        opened(bytes(data))


def test_a_deflate_bomb_is_not_inflated_beyond_its_size_or_the_limit(opened):
    bomb = archive({"bomb": bytes(1 << 26)}, method=zipfile.ZIP_DEFLATED)
    with pytest.raises(UnsafeCheckpointError, match="too large"):
        opened(bomb, allow_deflate=True).read("bomb", limit=1 << 20)
    lying = replaced(bomb, struct.pack("<L", 1 << 26), struct.pack("<L", 100))
    tracemalloc.start()
    try:
        with pytest.raises(CorruptCheckpointError, match="does not inflate to its size"):
            opened(lying, allow_deflate=True).read("bomb")
        assert tracemalloc.get_traced_memory()[1] < 1 << 23
    finally:
        tracemalloc.stop()


def test_a_size_beyond_the_file_is_refused_before_it_is_allocated(opened):
    data = replaced(archive({"x": b"abcd"}), struct.pack("<2L", 4, 4), struct.pack("<2L", 0xFFFFFFF0, 0xFFFFFFF0))
    with pytest.raises(CorruptCheckpointError, match="beyond the file"):
        opened(data)


def test_a_huge_number_of_entries_is_refused(opened):
    data = bytearray(archive({"x": b"1"}))
    end = data.index(b"PK\x05\x06")
    data[end + 8 : end + 12] = struct.pack("<2H", 0xFFFE, 0xFFFE)
    with pytest.raises(CorruptCheckpointError, match="damaged"):
        opened(bytes(data))


def test_a_header_that_contradicts_the_directory_is_refused(opened):
    data = archive({"a/data/0": b"1234"})
    with pytest.raises(CorruptCheckpointError, match="contradicts"):
        opened(replaced(data, b"a/data/0", b"a/data/1", 1))


def test_a_part_of_a_split_archive_is_refused(opened):
    data = bytearray(archive({"x": b"1"}))
    data[data.index(b"PK\x05\x06") + 4] = 1
    with pytest.raises(UnsafeCheckpointError, match="several parts"):
        opened(bytes(data))


def test_a_missing_entry_is_an_error_of_one_line(opened):
    with pytest.raises(CorruptCheckpointError, match="no entry") as caught:
        opened(archive()).read("no\nsuch entry")
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------ one field of the directory at a time


def changed_record(data, field, value, which=1):
    """Change a 16-bit field of a record of the directory, at its offset in the record."""
    at = -1
    for _ in range(which + 1):
        at = data.index(b"PK\x01\x02", at + 1)
    return data[: at + field] + struct.pack("<H", value) + data[at + field + 2 :]


def test_a_range_that_is_the_whole_entry_is_checked_too(opened):
    index = opened(replaced(archive(), b"\x07\x08\x09", b"\x07\x09\x09", 1))
    with pytest.raises(CorruptCheckpointError, match="wrong checksum"):
        index.read_range("a/data/0", 0, 4096)


@pytest.mark.parametrize("bit", [0, 6, 13], ids=["encrypted", "strongly encrypted", "masked"])
def test_every_kind_of_encryption_is_refused(opened, bit):
    data, at = archive(), archive().index(b"PK\x03\x04", 1)
    data = data[: at + 6] + struct.pack("<H", 1 << bit) + data[at + 8 :]
    with pytest.raises(UnsafeCheckpointError, match="encrypted"):
        opened(changed_record(data, 8, 1 << bit))


def test_an_entry_on_another_part_is_refused(opened):
    with pytest.raises(UnsafeCheckpointError, match="several parts"):
        opened(changed_record(archive(), 34, 1))


def test_an_entry_that_reaches_into_the_directory_is_refused(opened):
    """Its size is the same wherever it is written, and reaches over the directory to the end of the file."""
    data = archive({"a": bytes(60)})
    end = data.index(b"PK\x01\x02")
    sizes, wrong = struct.pack("<LL", 60, 60), struct.pack("<LL", 80, 80)
    crc = struct.pack("<L", zlib.crc32(bytes(60)))
    right = struct.pack("<L", zlib.crc32(data[end - 60 : end + 20]))
    for _ in range(2):
        data = data.replace(sizes, wrong).replace(crc, right)
    with pytest.raises(UnsafeCheckpointError, match="overlaps the directory"):
        opened(data).read("a")


@pytest.mark.parametrize("at", [1 << 62, 1000], ids=["beyond the file", "beyond its locator"])
def test_a_zip64_end_record_beyond_its_locator_is_refused(opened, at):
    data = archive()
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, len(data) + at, 1)
    end = data.index(b"PK\x05\x06")
    with pytest.raises(CorruptCheckpointError, match="beyond its locator"):
        opened(data[:end] + locator + data[end:])


def test_sizes_of_64_bits_are_read_from_the_extra_field(opened):
    """A record whose 32-bit fields are full says its sizes in an extra field, behind another extra field."""
    data, content = archive({"a": bytes(70)}), 70
    at, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    record = bytearray(data[at:end])
    extra = struct.pack("<HHL", 0x9999, 4, 7) + struct.pack("<HHQQ", 1, 16, content, content)
    struct.pack_into("<LL", record, 20, 0xFFFFFFFF, 0xFFFFFFFF)
    struct.pack_into("<H", record, 30, len(extra))
    tail = bytearray(data[end:])
    struct.pack_into("<L", tail, 12, len(record) + len(extra))
    assert opened(data[:at] + bytes(record) + extra + bytes(tail)).read("a") == bytes(content)


# ------------------------------------------------------------------------------------------- archives alike, in a row


def outcome(data, *, alone=False):
    """Return what the index of an archive is, or why there is none."""
    try:
        if alone:
            return _zip._checked_index(_zip._Whole(data), True)
        found = _zip._index(AnonymousFile("archive", data), True)
        return found.directory, dict(found.entries), found.compressed
    except CheckpointError as error:
        return type(error), str(error)


def saved_alike(kind, folder, seed):
    """Return an archive as others of its kind, but for the name of the folder in it and the content."""
    content = {f"{folder}/data.pkl": b"pickle%d" % seed, f"{folder}/data/0": bytes([seed]) * 40}
    return archive(content, streamed=kind != "local sizes", force_zip64=kind == "zip64")


@pytest.mark.parametrize("kind", ["local sizes", "data descriptors", "zip64"])
def test_the_index_of_an_archive_alike_is_as_if_it_were_made_alone(kind, monkeypatch):
    first, second = saved_alike(kind, "epoch_1", 1), saved_alike(kind, "epoch_2", 2)
    assert len(first) == len(second)
    wanted = outcome(second, alone=True)
    assert outcome(first) == outcome(first, alone=True)
    with monkeypatch.context() as patched:
        patched.setattr(_zip, "_checked_index", lambda *some: pytest.fail("made anew"))
        assert outcome(second) == wanted
        assert wanted[1].keys() == {"epoch_2/data.pkl", "epoch_2/data/0"}


@pytest.mark.parametrize("kind", ["local sizes", "data descriptors", "zip64"])
@pytest.mark.parametrize("flip", [1, 0x80])
def test_a_byte_that_differs_from_an_archive_alike_changes_what_it_changes_alone(kind, flip):
    first, second = saved_alike(kind, "epoch_1", 1), bytearray(saved_alike(kind, "epoch_2", 2))
    for at in range(len(second)):
        second[at] ^= flip
        _zip._LAST.clear()
        outcome(first)
        assert _zip._LAST
        assert outcome(bytes(second)) == outcome(bytes(second), alone=True), at
        second[at] ^= flip


def test_archives_whose_index_may_depend_on_more_are_not_remembered():
    without_folder = archive({"data.pkl": b"x"})
    two_folders = archive({"a/data.pkl": b"x", "b/data/0": b"y"})
    for data in (without_folder, two_folders, archive({"é/data.pkl": b"x"})):
        _zip._LAST.clear()
        assert len(outcome(data)[1]) > 0
        assert not _zip._LAST
