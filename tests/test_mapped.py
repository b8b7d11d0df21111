"""Claim: rows of an array on disk are read as they are asked for, the same as those in memory, in little of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sde_diffusion.data.source import Source, source_of
from sde_diffusion.data.sources.mapped import Mapped, Sliced

NUMBERS = torch.tensor([19, 0, 7, 7])
PLAIN = np.arange(120.0).reshape(20, 3, 2)


def mapped(path: Path, array: Any) -> Any:
    np.save(path, array)
    return np.load(path, mmap_mode="r")


@pytest.mark.parametrize("kind", ["<f4", ">f8", "|u1", "<i2", "<f2"])
@pytest.mark.parametrize("seek", [False, True], ids=["preadv", "seek"])
def test_rows_of_a_file_are_those_of_the_array(kind, seek, tmp_path, monkeypatch):
    if seek:  # where there is no preadv
        monkeypatch.delattr(os, "preadv", raising=False)
    array = PLAIN.astype(kind)
    np.save(tmp_path / "x.npy", array)
    source = Mapped.of_npy(tmp_path / "x.npy")
    assert (len(source), source.shape) == (20, (3, 2))
    wanted = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
    wanted = wanted.float() if kind == "<f2" else wanted
    assert torch.equal(source.rows(NUMBERS).x, wanted[NUMBERS])
    assert source.rows(NUMBERS).x.dtype == wanted.dtype
    assert torch.equal(torch.cat([batch.x for batch in source.chunks(7)]), wanted)


VIEWS = {
    "whole": lambda x: x,
    "some rows": lambda x: x[3:17],
    "every second row": lambda x: x[::2],
    "backwards": lambda x: x[::-1],
    "a column": lambda x: x[:, :, :1],
    "a half": lambda x: x[2:, 1:2],
    "transposed": lambda x: x.swapaxes(1, 2),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("offset", [0, 128, 5000])
def test_a_view_of_a_map_is_read_from_where_it_lies(view, offset, tmp_path):
    (tmp_path / "x.bin").write_bytes(bytes(offset) + PLAIN.tobytes())
    whole = np.memmap(tmp_path / "x.bin", "<f8", "r", offset, PLAIN.shape)
    array, wanted = VIEWS[view](whole), torch.from_numpy(VIEWS[view](PLAIN).copy())
    source = source_of(array)
    assert type(source) is (Sliced if view in ("a column", "transposed") else Mapped)
    numbers = torch.tensor([len(array) - 1, 0, 3])
    assert torch.equal(source.rows(numbers).x, wanted[numbers])
    assert torch.equal(torch.cat([batch.x for batch in source.chunks(4)]), wanted)


def test_what_was_changed_in_memory_alone_is_read_from_memory(tmp_path):
    np.save(tmp_path / "x.npy", PLAIN)
    changed = np.load(tmp_path / "x.npy", mmap_mode="c")
    changed[1] = 0
    source = source_of(changed)
    assert isinstance(source, Source)
    assert float(source.rows(torch.tensor([1])).x.abs().max()) == 0
    assert torch.equal(Mapped.of_npy(tmp_path / "x.npy").rows(torch.tensor([1])).x, torch.from_numpy(PLAIN[1:2]))


def test_a_file_that_is_no_such_array_is_refused(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.asfortranarray(PLAIN))
    with pytest.raises(ValueError, match=r"its first index runs fastest.*numpy.ascontiguousarray"):
        Mapped.of_npy(path)
    np.save(path, np.float64(3))
    with pytest.raises(ValueError, match=r"has shape \(\), wanted"):
        Mapped.of_npy(path)
    np.save(path, PLAIN[:0])
    with pytest.raises(ValueError, match=r"is empty: its shape is \(0, 3, 2\)"):
        Mapped.of_npy(path)
    with pytest.raises(ValueError, match=r"the data are empty: their shape is \(0, 3\)"):
        source_of(np.memmap(path, "<f8", "w+", 0, (4, 3)).T[:, :0].T)
    np.save(path, np.array(["a"] * 3))
    with pytest.raises(TypeError, match="holds <U1, wanted numbers"):
        Mapped.of_npy(path)
    np.save(path, PLAIN)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="960 bytes, and 959 bytes follow"):
        Mapped.of_npy(path)
    with pytest.raises(ValueError, match="is too short for float64 of shape"):
        Mapped(path, 128, 48, PLAIN.shape, PLAIN.dtype)
    np.save(path, PLAIN)
    source = Mapped.of_npy(path)
    os.truncate(path, 1000)
    with pytest.raises(ValueError, match="ends at byte 1,040: it was cut short since it was opened"):
        source.rows(torch.tensor([3, 19]))
    with pytest.raises(IndexError, match="has 20 rows, and row 20 was asked for"):
        source.rows(torch.tensor([3, 20]))


LARGE = """
import sys, numpy as np
import warnings
from sde_diffusion import VPSDE, Network, predict
from sde_diffusion.data import Dequantised
from sde_diffusion.nets import MLP
from sde_diffusion.training import Recipe, train

x = np.load(sys.argv[1], mmap_mode="r")
warnings.simplefilter("ignore")  # of bytes that are all alike
model = Network(MLP(x.shape[1], hidden=32, layers=1), VPSDE(), predict.edm, shape=x.shape[1:])
recipe = Recipe(batch_size=128, transform=Dequantised.levels(256))
run = train(model, x, steps=10, recipe=recipe, seed=0)
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel does not tell the peak of memory")
def test_three_gigabytes_train_in_less_than_one(tmp_path):
    n = 3 * 2**30 // 32  # a hundred million rows: their order alone would take 800 MB
    path = tmp_path / "x.npy"
    np.lib.format.open_memmap(path, "w+", np.uint8, (n, 32))  # of holes, which take no place on disk
    ran = subprocess.run([sys.executable, "-c", LARGE, str(path)], check=True, capture_output=True, text=True)
    print(f"{int(ran.stdout) / 2**20:.2f} GiB at most")
    assert int(ran.stdout) < 2**20
