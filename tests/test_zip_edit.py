"""One entry of an archive replaced: the archive reads, and every byte that does not speak of the entry is the same."""

from __future__ import annotations

import os
import struct
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convsv.checkpoints import _zip_edit
from convsv.checkpoints._file import RegularFile
from convsv.checkpoints._zip import StoredZip
from convsv.checkpoints._zip_edit import replace_entry
from convsv.errors import CheckpointError

EXTRA = struct.pack("<2H4s", 0xCAFE, 4, b"note")
OLD = b"the old content, " * 40
NAMES = ("before", "chosen", "after", "ümlaut/last")


class Unseekable:
    """A stream that cannot seek: zipfile then writes data descriptors behind the entries."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes) -> int:
        self.data += data
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""


def write_archive(
    path: Path, method: int, *, streamed: bool = False, zip64: bool = False, level: int | None = None
) -> None:
    stream = Unseekable()
    with zipfile.ZipFile(stream if streamed else path, "w", method, compresslevel=level) as archive:
        archive.comment = b"a comment"
        for number, name in enumerate(NAMES):
            info = zipfile.ZipInfo(name, (1999 + number, 2, 3, 4, 5, 6))
            info.compress_type, info.extra, info.comment = method, EXTRA, f"comment {number}".encode()
            info.external_attr = (0o600 + number) << 16
            with archive.open(info, "w", force_zip64=zip64) as entry:
                entry.write(OLD if name == "chosen" else name.encode() * 99)
    if streamed:
        path.write_bytes(stream.data)


def replaced(path: Path, content: bytes) -> Path:
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    with copy.open("r+b") as file:
        replace_entry(StoredZip(RegularFile(path), allow_deflate=True), "chosen", content, file.fileno())
    return copy


def described(info: zipfile.ZipInfo) -> tuple[object, ...]:
    places = ("orig_filename", "date_time", "compress_type", "comment", "extra", "create_system", "create_version")
    more = ("extract_version", "flag_bits", "internal_attr", "external_attr")
    return tuple(getattr(info, name) for name in (*places, *more))


def raw(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """Header and data of an entry as they stand in the file, up to the next entry or the directory."""
    starts = sorted([*(other.header_offset for other in archive.infolist()), archive.start_dir])
    assert archive.fp is not None
    archive.fp.seek(info.header_offset)
    return archive.fp.read(min(start for start in starts if start > info.header_offset) - info.header_offset)


def check(path: Path, copy: Path, content: bytes) -> None:
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(copy) as after:
        assert after.testzip() is None
        assert after.read("chosen") == content
        assert (after.namelist(), after.comment) == (before.namelist(), before.comment)
        for old, new in zip(before.infolist(), after.infolist(), strict=True):
            if old.filename == "chosen":
                # A zip64 extra field holds the sizes, which are the entry's own.
                assert described(new)[:4] + described(new)[5:] == described(old)[:4] + described(old)[5:]
                assert len(new.extra) == len(old.extra)
            else:
                assert described(new) == described(old)
                assert raw(after, new) == raw(before, old)
    assert StoredZip(RegularFile(copy), allow_deflate=True).read("chosen") == content


@pytest.mark.parametrize("zip64", [False, True], ids=["32 bit", "zip64"])
@pytest.mark.parametrize("streamed", [False, True], ids=["local sizes", "data descriptors"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
@pytest.mark.parametrize("size", [0, 1, len(OLD), 100_000])
def test_an_entry_gets_another_content_and_the_rest_stays(
    tmp_path: Path, size: int, method: int, streamed: bool, zip64: bool
) -> None:
    path, content = tmp_path / "archive", os.urandom(size)
    write_archive(path, method, streamed=streamed, zip64=zip64)
    check(path, replaced(path, content), content)


@pytest.mark.parametrize("streamed", [False, True], ids=["local sizes", "data descriptors"])
@pytest.mark.parametrize("level", [1, 6, 9])
def test_the_same_content_again_changes_no_byte(tmp_path: Path, streamed: bool, level: int) -> None:
    path = tmp_path / "archive"
    write_archive(path, zipfile.ZIP_STORED, streamed=streamed)
    assert replaced(path, OLD).read_bytes() == path.read_bytes()
    write_archive(path, zipfile.ZIP_DEFLATED, streamed=streamed, level=level)
    check(path, replaced(path, OLD), OLD)


@given(content=st.binary(max_size=300), deflated=st.booleans(), streamed=st.booleans(), zip64=st.booleans())
def test_any_content_in_any_archive(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, deflated: bool, streamed: bool, zip64: bool
) -> None:
    path = tmp_path_factory.mktemp("zip") / "archive"
    write_archive(path, zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED, streamed=streamed, zip64=zip64)
    check(path, replaced(path, content), content)


def with_zip64_end(data: bytes) -> bytes:
    """The same archive with a zip64 end record and locator, as writers of large archives add them."""
    at = data.rindex(b"PK\x05\x06")
    count, size, start = struct.unpack_from("<H2L", data, at + 10)
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, start)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, at, 1)
    narrow = data[at : at + 16] + struct.pack("<L", 0xFFFFFFFF) + data[at + 20 :]
    return data[:at] + end64 + locator + narrow


@pytest.mark.parametrize("size", [3, 5000])
def test_a_zip64_end_record_moves_with_its_directory(tmp_path: Path, size: int) -> None:
    path, content = tmp_path / "archive", os.urandom(size)
    write_archive(path, zipfile.ZIP_STORED)
    path.write_bytes(with_zip64_end(path.read_bytes()))
    check(path, replaced(path, content), content)


def test_checksums_that_are_all_zero_stay_zero(tmp_path: Path) -> None:
    path = tmp_path / "archive"
    write_archive(path, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    for entry in StoredZip(RegularFile(path)).entries.values():
        for at in entry.crc_offsets:
            data[at : at + 4] = bytes(4)
    path.write_bytes(data)
    archive = StoredZip(RegularFile(replaced(path, b"new")))
    assert not archive.has_checksums
    assert archive.read("chosen") == b"new"


def test_a_number_that_no_longer_fits_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "archive"
    write_archive(path, zipfile.ZIP_STORED)
    monkeypatch.setattr(_zip_edit, "_FULL32", 2000)
    with pytest.raises(CheckpointError, match="too large"):
        replaced(path, bytes(3000))
