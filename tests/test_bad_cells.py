"""Claim: what is bad in a table, a cell, a name twice, truth values, is named by column, row and line."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from sde_diffusion.data import open_data, source_of
from sde_diffusion.data.source import Source

pd = pytest.importorskip("pandas")

MANY = "1.5,2.5\n" * 5
CELLS = [
    (
        "a,b\n1,2\n3,4\n5,oops\n7,8\n",
        TypeError,
        "column 'b' of FILE holds 'oops' in row 2, line 4 of the file, where a",
    ),
    (f"a,b\n{MANY}2,x\n2,y\n", TypeError, "'b' of FILE holds 'x' in row 5, line 7 of the file and 1 more such cells,"),
    ("a,b\n1,2\n\n \n3,\n", ValueError, "column 'b' of FILE has no value in row 1, line 5 of the file: remove"),
    ('a,"b\nc"\n1,2\n3,inf\n', ValueError, "of FILE has an infinite value in row 1, line 4 of the file: remove"),
    ("a,b\n1,True\n2,\n", ValueError, "column 'b' of FILE has no value in row 1, line 3 of the file: remove"),
    ("a,b\n1,x\n2,y\n", TypeError, "column 'b' of FILE holds str, such as 'x', no numbers: number them, or make it"),
    (f"a,b\n1,{10**30}\n", TypeError, "column 'b' of FILE holds whole numbers beyond 64 bits: write them with a point"),
    (
        "a,b,a,b\n1,2,3,4\n",
        ValueError,
        "FILE has 2 columns named 'a', 'b': give each a name of its own, or leave one out",
    ),
]


@pytest.mark.parametrize(("text", "kind", "message"), CELLS)
def test_the_cell_that_is_bad_is_named_by_its_column_and_line(text, kind, message, tmp_path):
    file = tmp_path / "t.csv"
    file.write_text(text)
    pattern = re.escape(message.replace("FILE", str(file))).replace("holds\\ str", "holds (str|object)")
    with pytest.raises(kind, match=pattern):
        open_data(file)


def test_a_class_that_is_missing_is_named_by_its_line(tmp_path):
    (tmp_path / "t.csv").write_text("a,label\n1,x\n\n2,\n")
    with pytest.raises(ValueError, match="has no value in row 1, line 4 of the file: each row needs a class"):
        open_data(tmp_path / "t.csv", "label")


def test_names_that_come_twice_are_refused_whatever_the_table_is_in(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table([arrow.array([1.0]), arrow.array([2.0])], names=["a", "a"]), tmp_path / "t.parquet")
    for made in (
        lambda: open_data(tmp_path / "t.parquet"),
        lambda: source_of(pd.DataFrame([[1.0, 2.0]], columns=["a", "a"])),
    ):
        with pytest.raises(ValueError, match="has 2 columns named 'a'"):
            made()


def test_columns_may_be_named_by_numbers():
    found = source_of(pd.DataFrame(np.eye(2)))
    assert isinstance(found, Source)
    assert found.columns == ("0", "1")
    assert found.about == {"columns": ["0", "1"]}


def test_truth_values_among_whole_numbers_are_told_of(tmp_path):
    (tmp_path / "t.csv").write_text("age,smokes,fit\n1,True,False\n2,False,False\n")
    with pytest.warns(
        UserWarning, match=r"column 'smokes' \(and 1 more\) of .* holds True and False, which are the whole"
    ):
        found = open_data(tmp_path / "t.csv")
    assert found.rows(torch.arange(2)).x.tolist() == [[1, 1, 0], [2, 0, 0]]
