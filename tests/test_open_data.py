"""Claim: arrays, tables and folders of images open as rows with conditions; what is wrong is named by its place."""

from __future__ import annotations

import re
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from sde_diffusion.data import files, open_data
from sde_diffusion.data.sources.arrays import Rows
from sde_diffusion.data.sources.mapped import Mapped
from sde_diffusion.data.sources.pictures import Pictures
from sde_diffusion.data.sources.tables import table

RANDOM = np.random.default_rng(0)
FRAME = pd.DataFrame(
    {
        "hue": [0.1, 0.2, 0.3, 0.4],
        "label": [0, 1, 0, 2],
        "age": [30.0, np.nan, 50.0, 60.0],
        "species": ["b", "a", "b", "c"],
        "count": [3, 1, 2, 7],
        "day": pd.to_datetime(["2020-01-01"] * 4),
    }
)
NUMERIC = FRAME[["hue", "count", "label", "age"]]


def refused(make, kind, text):
    with pytest.raises(kind, match=re.escape(text)):
        make()


def write(frame, path):
    frame.to_csv(path, index=False) if path.suffix == ".csv" else frame.to_parquet(path)
    return path


# --- tables


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_columns_are_data_and_conditions_by_name(ending, tmp_path):
    path = write(NUMERIC, tmp_path / f"t{ending}")
    source = open_data(path, ["age", "label"])
    assert (source.columns, source.shape, len(source)) == (("hue", "count"), (2,), 4)
    x, cond = source.rows(torch.tensor([3, 1]))
    assert torch.equal(x, torch.tensor([[0.4, 7.0], [0.2, 1.0]], dtype=torch.float64))
    assert cond["label"].tolist() == [2, 1]
    assert cond["context"].dtype == torch.float64
    assert cond["context"][0].item() == 60
    assert cond["context"].isnan().tolist() == [[False], [True]]
    assert source.about == {"columns": ["hue", "count"], "context": ["age"]}


def test_words_are_classes_and_a_mapping_says_which_is_which():
    source = table(FRAME, {"label": "species", "context": ["age", "hue"]}, columns=["count"])
    assert torch.equal(source.x, torch.tensor([[3], [1], [2], [7]]))  # whole numbers stay so
    assert source.labels().tolist() == [1, 0, 1, 2]  # type: ignore[union-attr]  # there are labels
    assert source.cond["context"][:, 1].tolist() == FRAME["hue"].tolist()
    assert source.about == {"columns": ["count"], "labels": ["a", "b", "c"], "context": ["age", "hue"]}


BAD_TABLES: list[tuple[Any, Any, Any, str]] = [
    (FRAME, {}, TypeError, "column 'species' of the table holds"),
    (FRAME[["hue", "day"]], {}, TypeError, "turn dates into a number, days since the first for instance"),
    (
        NUMERIC,
        {},
        ValueError,
        "column 'age' of the table has no value in row 1: remove or fill in those rows, or make it a condition",
    ),
    (NUMERIC, {"cond": "sex"}, ValueError, "the table has no column 'sex': its columns are hue, count, label, age"),
    (NUMERIC, {"cond": "age", "columns": ["age"]}, ValueError, "column 'age' of the table is used twice"),
    (NUMERIC[["label"]], {"cond": "label"}, ValueError, "no column of the table is left for the data: all 1 are"),
    (
        FRAME[["hue", "age"]],
        {"cond": {"label": "age"}},
        ValueError,
        "has no value in row 1: each row needs a class",
    ),
    (
        FRAME[["hue", "count"]],
        {"cond": {"label": "hue"}},
        TypeError,
        "holds float64, and classes are integers",
    ),
    (FRAME, {"cond": {"label": []}}, ValueError, "condition 'label' of the table has 0 columns, wanted one"),
    (FRAME[["hue"]].replace(0.4, np.inf), {}, ValueError, "column 'hue' of the table has an infinite value in row 3"),
    (NUMERIC.rename(columns={"hue": "Unnamed: 0"}), {"cond": "age"}, ValueError, "to_csv(path, index=False)"),
]


@pytest.mark.parametrize("case", range(len(BAD_TABLES)))
def test_a_bad_column_is_named(case):
    frame, options, kind, text = BAD_TABLES[case]
    refused(lambda: table(frame, **options), kind, text)


def test_a_file_that_is_no_table_is_refused(tmp_path, monkeypatch):
    csv, parquet = tmp_path / "t.csv", tmp_path / "t.parquet"
    csv.write_text("1.0,2.0\n3.0,4.0\n")
    refused(lambda: open_data(csv), ValueError, "is numbers, 1.0, 2.0, and is taken for the names of the columns")
    csv.write_text("a,b\n")
    refused(lambda: open_data(csv), ValueError, "is empty: it has 2 columns and 0 rows")
    csv.write_text("")
    refused(lambda: open_data(csv), ValueError, "cannot be read as a table: No columns to parse from file")
    csv.write_text("a,b\n1,2\n1,2,3\n")
    refused(lambda: open_data(csv), ValueError, "Expected 2 fields in line 3, saw 3")
    parquet.write_bytes(b"PAR1" + bytes(20))
    refused(lambda: open_data(parquet), ValueError, "cannot be read as a table")
    for name in ("pandas", "pyarrow"):
        monkeypatch.setitem(sys.modules, name, None)
        refused(lambda: open_data(parquet), ImportError, "pip install 'sde-diffusion[tables]'")


# --- arrays


def test_arrays_of_a_file_are_data_and_conditions(tmp_path):
    x, other = RANDOM.normal(size=(5, 3)), RANDOM.normal(size=(5, 2)).astype("f4")
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(5), context=other, image=other[:, None], more=other, table=np.eye(3))
    found = open_data(tmp_path / "a.npz").rows(torch.tensor([4])).cond
    assert sorted(found) == ["context", "image", "label"]
    assert found["label"].tolist() == [4]
    found = open_data(tmp_path / "a.npz", ["more"]).rows(torch.tensor([4])).cond
    assert sorted(found) == ["context", "image", "label", "more"]
    found = open_data(tmp_path / "a.npz", {"context": "more", "other": "context"}).rows(torch.tensor([4])).cond
    assert torch.equal(found["context"], torch.from_numpy(other[4:]))
    refused(lambda: open_data(tmp_path / "a.npz", "what"), ValueError, "has no array 'what': beside the data it holds")
    refused(lambda: open_data(tmp_path / "a.npz", "table"), ValueError, "'table' has 3 rows, and 'x' has 5")
    np.save(tmp_path / "x.npy", x)
    assert torch.equal(open_data(tmp_path / "x.npy").rows(torch.arange(5)).x, torch.from_numpy(x))


def test_bytes_stay_bytes_and_a_large_file_is_not_held(tmp_path, monkeypatch):
    path = tmp_path / "x.npy"
    np.save(path, RANDOM.integers(0, 256, (5, 1, 4, 4), dtype=np.uint8))
    whole = open_data(path)
    assert whole.rows(torch.tensor([0])).x.dtype == torch.uint8
    monkeypatch.setattr(files, "LARGE", 100)
    large = open_data(path)
    assert isinstance(large, Mapped)
    assert torch.equal(large.rows(torch.tensor([3])).x, whole.rows(torch.tensor([3])).x)
    refused(lambda: open_data(path, "label"), ValueError, "is one array, without conditions: write a .npz")
    path.write_bytes(path.read_bytes()[:-1])
    refused(lambda: open_data(path), ValueError, "cannot be read as .npy: its header announces")


def test_what_is_no_array_of_rows_is_refused(tmp_path):
    path = tmp_path / "x.npy"
    x = RANDOM.normal(size=(20_000, 2))
    x[17, 1] = x[19_000, 0] = np.nan
    np.save(path, x)
    refused(lambda: open_data(path), ValueError, "holds NaN or infinity in rows 17, 19000 (2 of 20000)")
    np.save(path, np.zeros(4))
    refused(lambda: open_data(path), ValueError, "has shape (4,), wanted (N, *shape)")
    np.save(path, np.array(["a", "b"])[:, None])
    refused(lambda: open_data(path), TypeError, "holds <U1, wanted numbers")
    np.savez(tmp_path / "a.npz", a=x, b=x)
    refused(lambda: open_data(tmp_path / "a.npz"), ValueError, "but no array named 'x' (or 'data')")
    refused(lambda: open_data(tmp_path / "b.npz"), FileNotFoundError, "No data at")
    (tmp_path / "t.txt").write_text("1")
    refused(
        lambda: open_data(tmp_path / "t.txt"), ValueError, "must be a .npy, .npz, .csv or .parquet file or a folder"
    )
    refused(lambda: open_data(path, size=3), ValueError, "size is that of images in a folder")


# --- images


def picture(path, shape=(6, 5, 3), mode=None):
    path.parent.mkdir(exist_ok=True)
    values = RANDOM.integers(0, 256, shape, dtype=np.uint8)
    image = Image.fromarray(values)
    (image.convert(mode) if mode else image).save(path)
    return torch.from_numpy(values)


def test_a_folder_of_images_is_bytes_and_its_folders_are_classes(tmp_path, monkeypatch):
    a, b, c = (picture(tmp_path / name) for name in ("dog/1.png", "cat/1.png", "cat/2.png"))
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    for most, kind in ((2**28, Rows), (0, Pictures)):  # in memory, and image by image
        monkeypatch.setattr(files, "LARGE", most)
        source = open_data(tmp_path)
        assert isinstance(source, kind)
        assert (len(source), source.shape, source.about) == (3, (3, 6, 5), {"labels": ["cat", "dog"]})
        x, cond = source.rows(torch.tensor([2, 0, 1]))
        assert x.dtype == torch.uint8
        assert torch.equal(x, torch.stack([a, b, c]).permute(0, 3, 1, 2))
        assert cond["label"].tolist() == [1, 0, 0]
        assert source.labels().tolist() == [0, 0, 1]  # type: ignore[union-attr]  # there are labels


def test_grey_images_have_one_channel_and_colour_wins(tmp_path):
    grey = picture(tmp_path / "1.png", (6, 5))
    source = open_data(tmp_path)
    assert source.shape == (1, 6, 5)
    assert torch.equal(source.rows(torch.tensor([0])).x[0, 0], grey)
    assert source.rows(torch.tensor([0])).cond == {}
    picture(tmp_path / "2.jpg")
    picture(tmp_path / "3.png", mode="P")
    source = open_data(tmp_path)
    assert source.shape == (3, 6, 5)
    assert torch.equal(source.rows(torch.tensor([0])).x[0, 1], grey)


def test_images_of_many_sizes_are_scaled_and_cut_to_one(tmp_path):
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 200  # the middle
    Image.fromarray(wide).save(tmp_path / "1.png")
    picture(tmp_path / "2.png")
    refused(lambda: open_data(tmp_path), ValueError, "1.png has 8 x 24 pixels and 2.png 6 x 5. Give size=")
    source = open_data(tmp_path, size=4)
    assert source.shape == (3, 4, 4)
    assert (source.rows(torch.tensor([0])).x[0, :, :, 1:3] > 190).all()
    assert open_data(tmp_path, size=(4, 2)).shape == (3, 4, 2)


def test_what_is_no_folder_of_images_is_refused(tmp_path, monkeypatch):
    refused(lambda: open_data(tmp_path), ValueError, "holds no images: wanted .png, .jpg, .jpeg")
    picture(tmp_path / "1.png")
    picture(tmp_path / "a" / "1.png")
    refused(lambda: open_data(tmp_path), ValueError, "holds 1.png and, in the folder a, more images")
    (tmp_path / "1.png").unlink()
    refused(lambda: open_data(tmp_path, "label"), ValueError, "a folder of images, whose only condition is label")
    picture(tmp_path / "a" / "2.png", (6, 5, 4))
    refused(lambda: open_data(tmp_path), ValueError, "2.png is an image of mode RGBA, wanted grey or RGB of 8 bits")
    (tmp_path / "a" / "2.png").write_bytes(b"no image")
    refused(lambda: open_data(tmp_path), ValueError, "2.png cannot be read as an image: cannot identify")
    picture(tmp_path / "a" / "2.png")
    data = (tmp_path / "a" / "2.png").read_bytes()
    (tmp_path / "a" / "2.png").write_bytes(data[: len(data) // 2])
    refused(lambda: open_data(tmp_path), ValueError, "2.png cannot be read as an image: ")
    monkeypatch.setitem(sys.modules, "PIL", None)
    refused(lambda: open_data(tmp_path), ImportError, "pip install 'sde-diffusion[images]'")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a;b\n-0,560;0,112\n1,5;2,25\n", r"has one column, 'a;b': its fields are parted by ';', wanted a comma"),
        ("a\tb\n1.5\t2\n", r"its fields are parted by '\\t'"),
        ("a,b\n50.1,0.2,9.3\n50.2,0.1,9.2\n", r"have more fields than its first row names, a, b: name every column"),
    ],
    ids=["semicolons", "tabs", "more"],
)
def test_text_whose_rows_do_not_have_the_fields_of_the_first_is_refused(text, message, tmp_path):
    path = tmp_path / "x.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        open_data(path)
