"""The headers of tar files, read as the tarfile module reads them; corrupt ones are one error."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_datasets import picture, tar

from avarc_cli.data import Preprocess, open_images
from avarc_cli.data.tar import CorruptTar, TarScanner
from avarc_cli.errors import UnreadableImage, UsageError

FIT = Preprocess("fit", 8)
FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(
        st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/"), min_size=1, max_size=120),
        min_size=1,
        max_size=5,
    ),
    format=st.sampled_from(FORMATS),
)
def test_members_agree_with_the_tarfile_module(tmp_path, names, format):
    path = tmp_path / "x.tar"
    members = {f"d{i}/{name}": bytes([i]) * (i * 700) for i, name in enumerate(names)}
    try:
        tar(path, members, format)
    except (ValueError, UnicodeEncodeError):
        return  # too long for ustar
    scanner = TarScanner(str(path))
    found = [(m.name, m.offset, m.size) for m in scanner]
    with tarfile.open(path) as archive:
        expected = [(m.name, m.offset_data, m.size) for m in archive if m.isfile()]
    assert found == expected and scanner.complete


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_may_be_long(tmp_path, format):
    names = ["d/" + "a" * 150 + ".jpg", "b.jpg", "é" * 80 + ".jpg"]
    assert [m.name for m in TarScanner(str(tar(tmp_path / "x.tar", dict.fromkeys(names, b"x"), format)))] == names


def test_a_flipped_bit_in_a_header_is_detected(tmp_path):
    path = tar(tmp_path / "x.tar", {"a.jpg": b"x"}, tarfile.GNU_FORMAT)
    data = bytearray(path.read_bytes())
    data[0] ^= 4
    path.write_bytes(data)
    with pytest.raises(CorruptTar, match="at byte 0 is corrupt"):
        list(TarScanner(str(path)))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(st.tuples(st.integers(0, 6000), st.binary(min_size=1, max_size=8)), min_size=1, max_size=3),
    format=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_corrupt_tars_give_members_or_an_error(tmp_path, edits, format):
    path = tmp_path / "x.tar"
    names = {"a" * 150 + ".jpg": b"x" * 600, "é.png": b"y" * 10, "c.cls": b"1"}
    data = bytearray(tar(path, names, format).read_bytes())
    for position, patch in edits:
        data[position : position + len(patch)] = patch
    path.write_bytes(data)
    try:
        for member in TarScanner(str(path)):
            assert member.size >= 0
    except CorruptTar:
        pass


def test_huge_sizes_in_a_header_are_reported(tmp_path):
    data = bytearray(tar(tmp_path / "x.tar", {"a.png": picture()}, tarfile.GNU_FORMAT).read_bytes())
    for size in (b"\x80" + b"\xff" * 11, b"\x80" + b"\0" * 4 + b"\x7f" + b"\xff" * 6, b"77777777777\0"):
        data[124:136] = size
        data[148:156] = b"%06o\0 " % (sum(data[:148]) + sum(data[156:512]) + 8 * 32)
        (tmp_path / "x.tar").write_bytes(data)
        with pytest.raises((UsageError, UnreadableImage)) as error:
            open_images([tmp_path / "x.tar"]).load(0, FIT)
        assert "is corrupt" in error.value.why or "the tar ends within it" in error.value.why


def with_size(data: bytes, size: bytes) -> bytes:
    """A tar whose first header has this size field, and the checksum that belongs to it."""
    changed = bytearray(data)
    changed[124:136] = size.ljust(12, b"\0")
    changed[148:156] = b"%06o\0 " % (sum(changed[:148]) + sum(changed[156:512]) + 8 * 32)
    return bytes(changed)


@pytest.mark.parametrize(
    "size",
    [b"-0000001000", b"-1", b"-777", b"+1", b"1_0", b"0o17", b"0x1f", b"9", b"1 2", b"abc", b"\xd9\xa3", b"\xff" * 12],
)
@pytest.mark.parametrize("name", ["a.png", "a.txt", "a.bin"])
def test_a_size_that_is_no_octal_number_is_reported(tmp_path, size, name):
    whole = tar(tmp_path / "x.tar", {name: picture(), "b.png": picture()}, tarfile.GNU_FORMAT).read_bytes()
    (tmp_path / "x.tar").write_bytes(with_size(whole, size))
    with pytest.raises(UsageError, match="is not a readable tar"):
        open_images([tmp_path / "x.tar"])


def test_a_size_may_be_padded_or_binary(tmp_path):
    whole = tar(tmp_path / "x.tar", {"a.png": picture()}, tarfile.GNU_FORMAT).read_bytes()
    length = len(picture())
    for size in (b" %o " % length, b"%011o" % length, b"\x80" + length.to_bytes(11, "big")):
        (tmp_path / "x.tar").write_bytes(with_size(whole, size))
        assert open_images([tmp_path / "x.tar"]).load(0, FIT).shape == (8, 8, 3)


@pytest.mark.parametrize("record", [b"5 a=\n", b"6 k=v\n"])
def test_a_pax_header_may_have_many_records(tmp_path, record):
    """A million bytes of the shortest records; a parser that copies the rest for each would take minutes."""
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as file:
        for name, kind, data in (("pax", tarfile.XHDTYPE, record * 160_000), ("a.png", tarfile.REGTYPE, picture())):
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, len(data)
            file.addfile(info, io.BytesIO(data))
    assert [member.name for member in TarScanner(str(path))] == ["a.png"]


@pytest.mark.parametrize(
    "records", [b"0 a=b\n", b"-5 a=b\n", b"3 a=b\n", b"99999999 a=b\n", b"50 a=b\n", b"x", b"18 size=-5\n", b"2 \n"]
)
def test_a_pax_header_that_is_none_is_reported(tmp_path, records):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as file:
        info = tarfile.TarInfo("pax")
        info.type, info.size = tarfile.XHDTYPE, len(records)
        file.addfile(info, io.BytesIO(records))
    with pytest.raises(CorruptTar, match="pax"):
        list(TarScanner(str(path)))
