"""Claim: a `.npy` or `.npz` file may hold anything: it is read right, or refused in a sentence, and takes no memory."""

from __future__ import annotations

import io
import os
import pickle
import random
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
import torch

from sde_diffusion.cli import main as cli
from sde_diffusion.data import _npy, load_array, memory

X = np.random.default_rng(0).normal(size=(10, 2))
DESCR = "'descr': '<f8', 'fortran_order': False, 'shape': (10, 2)"


def npy(
    header: str | None = None, body: bytes | None = None, *, version: int = 1, magic: bytes = b"\x93NUMPY"
) -> bytes:
    """A file with a header of one's own."""
    text = (header if header is not None else "{" + DESCR + "}").encode("latin1")
    size = len(text).to_bytes(2 if version == 1 else 4, "little")
    return magic + bytes((version, 0)) + size + text + (X.tobytes() if body is None else body)


def archive(**arrays: object) -> bytes:
    made = io.BytesIO()
    np.savez_compressed(made, **arrays)  # type: ignore[arg-type]  # the stubs know no keyword but `allow_pickle`
    return made.getvalue()


def zipped(*entries: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as file:
        for name, data in entries:
            file.writestr(name, data)
    return made.getvalue()


def encrypted() -> bytes:
    """An archive whose member is marked as encrypted, in its own header and in the directory."""
    data = bytearray(zipped(("x.npy", npy()), method=zipfile.ZIP_STORED))
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    return bytes(data)


def method(number: int) -> bytes:
    data = bytearray(zipped(("x.npy", npy()), method=zipfile.ZIP_STORED))
    data[8], data[data.index(b"PK\x01\x02") + 10] = number, number
    return bytes(data)


def bomb(size: int) -> bytes:
    """An archive of some kilobytes whose directory says that its member has `size` bytes."""
    data = bytearray(archive(x=np.zeros((1000, 1000))))
    at = data.index(b"PK\x01\x02") + 24
    data[at : at + 4] = size.to_bytes(4, "little")
    return bytes(data)


def shape(value: str) -> bytes:
    return npy(DESCR.replace("(10, 2)", value).join("{}"))


def kind(value: str) -> bytes:
    return npy(DESCR.replace("'<f8'", value).join("{}"))


V, T = ValueError, TypeError
REFUSED = [
    # what is no array
    (
        ".npy",
        b"1.0,2.0\n3.0,4.0\n",
        V,
        "it is text, '1.0,2.0\\n3.0,4.0\\n', and no array: read it with numpy.loadtxt first",
    ),
    (".npz", b"1.0 2.0\r\n", V, "it is text"),
    (".npy", b"", V, "it is empty"),
    (".npz", b"", V, "it is empty"),
    (".npy", pickle.dumps([1, 2]), V, "it is a pickle, which may run code and is not read"),
    (".npy", bytes(100), V, "as no array does"),
    (".npy", b"\x93NUM", V, "as no array does"),
    # headers
    (".npy", npy(version=9), V, "version 09 00 of the format is not known"),
    (".npy", npy()[:9], V, "it is cut short within its header"),
    (".npy", npy()[:30], V, "it is cut short within its header"),
    (".npy", npy(version=2)[:8] + b"\xff\xff\xff\xff", V, "its header has 4,294,967,295 bytes, more than the 10,000"),
    (".npy", npy("{'descr': '<f8',"), V, "its header is damaged"),  # TokenError of NumPy
    (".npy", npy("(" * 9000), V, "its header is damaged"),
    (".npy", npy("-" * 9000 + "1"), V, "its header is damaged"),
    (".npy", npy("\0" + DESCR), V, "its header is damaged"),
    (".npy", npy("[1, 2]"), V, "its header is damaged"),
    (".npy", npy("{'descr': '<f8', 'shape': (10, 2)}"), V, "its header is damaged"),
    (".npy", npy("{" + DESCR + ", 'more': 1}"), V, "its header is damaged"),
    (".npy", npy("{" + DESCR.replace("False", "'no'") + "}"), V, "a shape that no array has"),
    # shapes
    (".npy", shape("(1000000000, 2)"), V, "of shape (1000000000, 2), 16,000,000,000 bytes, and 160 bytes follow"),
    (".npy", shape(f"({10**30}, 2)"), V, "a shape that no array has"),
    (".npy", shape(f"({2**62}, {2**62})"), V, "and 160 bytes follow"),
    (".npy", shape(f"({2**62}, 0)"), V, "and 160 bytes follow"),
    (".npy", shape("(10, -2)"), V, "a shape that no array has"),
    (".npy", shape("(10, 2.0)"), V, "a shape that no array has"),
    (".npy", shape("(True, 20)"), V, "a shape that no array has"),
    (".npy", shape("[10, 2]"), V, "a shape that no array has"),
    (".npy", shape("(" + "1, " * 2000 + ")"), V, "a shape that no array has"),
    (".npy", shape("(5, 2)"), V, "80 bytes, and 160 bytes follow"),
    (".npy", shape("(11, 2)"), V, "176 bytes, and 160 bytes follow"),
    # kinds
    (".npy", kind("'|O'"), T, "holds Python objects, which are not read"),
    (".npy", kind("[('a', '<f8'), ('b', '<f8')]"), T, "holds records of the kind [('a', '<f8'), ('b', '<f8')], wanted"),
    (".npy", kind("'<f8,<f8'"), T, "holds records"),
    (".npy", kind("('<f8', (2,))"), T, "holds records"),
    (".npy", kind("'<M8[s/0]'"), T, "holds records"),
    (".npy", kind("'<f7'"), V, "its header announces '<f7', which is no kind of number"),
    (".npy", kind("'<q99'"), V, "which is no kind of number"),
    (".npy", kind("'<M8[ns]'"), T, "holds datetime64[ns], wanted floating point"),
    (".npy", kind("'<m8[ns]'"), T, "holds timedelta64[ns], wanted floating point"),
    (".npy", kind("'<i8'"), T, "holds int64, wanted floating point"),
    (".npy", kind("'|S8'"), T, "holds |S8, wanted floating point"),
    (".npy", kind("'<U2'"), T, "holds <U2, wanted floating point"),
    (".npy", kind("'|V8'"), T, "holds |V8, wanted floating point"),
    (".npy", kind("'|S0'"), V, "0 bytes, and 160 bytes follow"),
    (".npy", kind("'|V999999999'"), V, "19,999,999,980 bytes, and 160 bytes follow"),
    (".npy", npy(DESCR.replace("(10, 2)", "()").join("{}"), bytes(8)), V, "has shape (), wanted (N, *shape)"),
    # archives
    (".npz", b"PK\x03\x04" + bytes(50), V, "it is a damaged zip archive"),
    (".npz", zipped(), V, "no array named 'x'"),
    (".npz", zipped(("x/", b"")), V, "no array named 'x'"),
    (".npz", zipped(("x.npy", b"")), V, "'x.npy': it is empty"),
    (".npz", zipped(("x.npy", b"1,2\n")), V, "'x.npy': it is text"),
    (".npz", zipped(("x.npy", npy()), ("x", npy())), V, "it holds two arrays named 'x'"),
    (".npz", zipped(("x.npy", npy() + b"more")), V, "160 bytes, and 164 bytes follow"),
    (".npz", zipped(("x.npy", shape("(1000000000, 2)"))), V, "16,000,000,000 bytes, and 160 bytes follow"),
    (".npz", encrypted(), V, "'x.npy' is encrypted"),
    (".npz", method(99), V, "'x.npy' is compressed by method 99, and numpy writes 0 and 8 alone"),
    (".npz", zipped(("x.npy", npy()), method=zipfile.ZIP_LZMA), V, "is compressed by method 14"),
    (".npz", bomb(4_000_000_000), V, "unpacks to 3.73 GiB, more than 100 times its compressed size"),
    (".npz", bomb(900_000_000), V, "8,000,000 bytes, and 899,999,872 bytes follow"),
    # labels
    (".npz", archive(x=X, label=np.full(10, 10**9)), V, "go up to 1000000000, wanted integers below 100,000"),
    (".npz", archive(x=X, label=np.full(10, 2**63, np.uint64)), V, "go up to 9223372036854775808, wanted"),
    (".npz", archive(x=X, label=np.full(10, 100_000)), V, "Number yours 0, 1, ...: numpy.unique"),
    (".npz", archive(x=X, label=np.array(3)), V, "have shape (), wanted (10,)"),
    (".npz", archive(x=X, label=np.zeros(10, "M8[s]")), T, "Labels in"),
]


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
@pytest.mark.parametrize(("suffix", "data", "error", "text"), REFUSED, ids=[f"{i}" for i in range(len(REFUSED))])
def test_a_file_that_cannot_be_meant_is_refused_without_taking_memory(suffix, data, error, text, tmp_path, capsys):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(error) as caught:
            load_array(path)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
    assert type(caught.value) is error
    assert text in str(caught.value)
    assert "pickle=" not in str(caught.value)
    assert "unsafe" not in str(caught.value)
    assert cli.main(["train", "--data", str(path), "--out", str(tmp_path / "model")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sde-diffusion: error: ")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "array",
    [
        np.asfortranarray(X),
        X.astype(">f8"),
        X.astype("f4"),
        X.astype("f2"),
        X.astype(np.longdouble),
        X.reshape(5, 2, 2, 1),
        np.asfortranarray(X.reshape(5, 2, 2)),
        X[::2],
        X[:1],
    ],
    ids=lambda a: f"{a.dtype.str}{a.shape}",
)
@pytest.mark.parametrize("save", ["npy", "npz", "compressed", "version 2", "wrong suffix"])
def test_every_array_that_numpy_writes_comes_back_as_numpy_reads_it(array, save, tmp_path):
    path = tmp_path / ("a.npy" if save in ("npy", "version 2") else "a.npz")
    if save == "version 2":
        with open(path, "wb") as file:
            np.lib.format.write_array(file, array, version=(2, 0))
    elif save == "compressed":
        np.savez_compressed(path, x=array, label=np.arange(len(array)), extra=np.array(["text"]))
    elif save == "npz":
        np.savez(path, x=array)
    else:
        with open(path, "wb") as file:
            np.save(file, array)
    x, label = load_array(path)
    assert torch.equal(x, torch.from_numpy(np.ascontiguousarray(array).astype(str(x.dtype).removeprefix("torch."))))
    assert (label is None) == (save != "compressed")


def test_a_member_may_lie_in_a_folder_and_others_may_be_anything(tmp_path):
    (tmp_path / "a.npz").write_bytes(zipped(("../data/points.npy", npy())))
    assert torch.equal(load_array(tmp_path / "a.npz")[0], torch.from_numpy(X).to(load_array(tmp_path / "a.npz")[0]))
    entries = (("x.npy", npy()), ("big.npy", shape("(1000000000, 2)")), ("notes.txt", b"text"), ("more/", b""))
    (tmp_path / "b.npz").write_bytes(zipped(*entries))
    assert load_array(tmp_path / "b.npz")[0].shape == (10, 2)


def test_three_thousand_mutated_headers_give_a_sentence_or_an_array():
    whole = npy(("{" + DESCR + ", }").ljust(117) + "\n")
    pieces = (
        b"9" * 20,
        b"(",
        b"'",
        b"-",
        b"\0",
        b"L",
        b"[",
        b"1e9",
        b"{",
        b"#",
        b"\n",
        b"O",
        b"M8[s]",
        b"True",
        b"\xff",
    )
    rng, read = random.Random(0), 0
    for _ in range(3000):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 4, 16))):
            i, how = rng.randrange(6, 128), rng.randrange(4)
            if how == 0:
                data[i] = rng.randrange(256)
            elif how == 1:
                data[i] ^= 1 << rng.randrange(8)
            elif how == 2:
                del data[i : i + rng.randrange(1, 9)]
            else:
                data[i:i] = rng.choice(pieces)
        try:
            array = _npy._read(io.BytesIO(data), len(data))
        except (ValueError, TypeError):
            continue
        read += 1
        assert array.nbytes == len(X.tobytes())
    assert read > 30  # spaces and line ends


def test_mutated_archives_give_a_sentence_or_the_array_itself(tmp_path):
    whole, rng, path = archive(x=X), random.Random(0), tmp_path / "a.npz"
    for _ in range(200):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 2, 4))):
            data[rng.randrange(4, len(data))] = rng.randrange(256)
        path.write_bytes(data)
        try:
            x, _ = load_array(path)
        except (ValueError, TypeError):
            continue
        assert torch.equal(x, torch.from_numpy(X).to(x.dtype))  # the sum over the bytes has seen to that


def test_an_empty_name_in_an_archive_is_refused(tmp_path):
    data = bytearray(zipped(("x", npy())))
    for at in (26, data.index(b"PK\x01\x02") + 28):
        data[at] = 0
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(ValueError, match=r"cannot be read as \.npz"):
        load_array(tmp_path / "a.npz")


def test_an_array_larger_than_the_memory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", np.zeros((1000, 1000)))
    monkeypatch.setattr(memory, "memory", lambda: 20_000_000)
    with pytest.raises(
        ValueError, match=r"an array of shape \(1000, 1000\) would need about 0.0224 GiB, and this machine"
    ):
        load_array(tmp_path / "a.npy")
    monkeypatch.setattr(memory, "memory", lambda: 25_000_000)
    assert load_array(tmp_path / "a.npy")[0].shape == (1000, 1000)


@pytest.mark.parametrize("what", ["folder", "fifo", "zero", "dangling"])
def test_what_is_no_file_is_not_opened(what, tmp_path):
    path = tmp_path / "a.npy"
    if what == "folder":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if what == "zero" else tmp_path / "no")
    kind = "regular" if what in ("fifo", "zero") else "data"
    with pytest.raises(FileNotFoundError, match=f"No {kind} file at .*a.npy. Give the path of a .npy or .npz file"):
        load_array(path)


@pytest.mark.parametrize(
    ("claim", "text"),
    [(4_000_000_128, "unpacks to 3.73 GiB, more than 100 times"), (288, "Bad CRC-32 for file 'x.npy'")],
    ids=["as it is", "claiming to be small"],
)
def test_four_gigabytes_of_zeros_in_four_megabytes_are_refused_at_once(claim, text, tmp_path):
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    header = npy(DESCR.replace("(10, 2)", "(500000000, 1)").join("{}"), b"")
    packed = squeeze.compress(header) + squeeze.flush(zlib.Z_FULL_FLUSH)
    zeros = squeeze.compress(bytes(2**20)) + squeeze.flush(zlib.Z_FULL_FLUSH)  # the same each time
    packed += 3815 * zeros + squeeze.flush()
    data = bytearray(zipped(("x.npy", b"")))
    at, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    start = 30 + len("x.npy")
    data[at + 20 : at + 28] = len(packed).to_bytes(4, "little") + claim.to_bytes(4, "little")
    data[end + 16 : end + 20] = (start + len(packed)).to_bytes(4, "little")
    path = tmp_path / "a.npz"
    path.write_bytes(data[:start] + packed + data[at:])
    assert path.stat().st_size < 5e6
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=text):
            load_array(path)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
