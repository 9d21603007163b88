"""Archives that are damaged, or that claim more than they hold."""

import io
import struct
import zipfile

import numpy as np
import pytest

from avarc_cli.zip_check import check_zip, open_npz

GIB = 2**30


def archive(members, compression=zipfile.ZIP_STORED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as file:
        for name, data in members:
            file.writestr(name, data)
    return out.getvalue()


def header(shape, dtype="<u2"):
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": dtype, "fortran_order": False, "shape": shape})
    return out.getvalue()


def test_arrays_come_back(tmp_path):
    np.savez(tmp_path / "a.npz", one=np.arange(5), two=np.zeros((2, 3)))
    with open_npz(tmp_path / "a.npz") as arrays:
        assert arrays["one"].tolist() == [0, 1, 2, 3, 4] and arrays["two"].shape == (2, 3)


def bomb():
    """A gigabyte of zeros, in a megabyte."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file, file.open("a.npy", "w", force_zip64=True) as member:
        for _ in range(64):
            member.write(bytes(GIB // 64))
    return out.getvalue()


def overlapping():
    """Many members that are the same bytes."""
    data = archive([("a.npy", bytes(100_000))])
    start = data.index(b"PK\1\2")
    entry, end = data[start : data.index(b"PK\5\6")], data[data.index(b"PK\5\6") :]
    entries = b"".join(entry.replace(b"a.npy", b"%c.npy" % (65 + i)) for i in range(20))
    counts = struct.pack("<HHII", 20, 20, len(entries), start)
    return data[:start] + entries + end[:8] + counts + end[20:]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: b"", "not a zip"),
        (lambda: b"PK\3\4 nonsense", "not a zip"),
        (lambda: archive([("a.npy", header((3,)) + bytes(6))])[:-30], "not a zip"),
        (
            lambda: archive([("a.npy", b"abcdefgh")]).replace(b"abcdefgh", b"abcdefgi"),
            "checksum of its member 'a.npy'",
        ),
        (bomb, "claim 1,073,741,824 bytes"),  # functions, because this one takes seconds: not where tests are collected
        (overlapping, "claim 2,000,000 bytes"),
    ],
    ids=["empty", "nonsense", "cut", "changed", "bomb", "overlapping"],
)
def test_a_damaged_or_hostile_archive_is_refused_before_it_is_unpacked(tmp_path, make, says):
    (tmp_path / "a.npz").write_bytes(make())
    with pytest.raises(ValueError, match=says):
        check_zip(tmp_path / "a.npz")
    with pytest.raises(ValueError, match=says), open_npz(tmp_path / "a.npz"):
        pass


@pytest.mark.parametrize("shape", [(10**12,), (16, 2**40), (2**62, 8), (-1, 2)])
def test_an_array_that_claims_more_than_its_member_is_refused(tmp_path, shape):
    (tmp_path / "a.npz").write_bytes(archive([("a.npy", header(shape) + bytes(4000))]))
    with pytest.raises((ValueError, MemoryError, OverflowError)), open_npz(tmp_path / "a.npz") as arrays:
        arrays["a"]
