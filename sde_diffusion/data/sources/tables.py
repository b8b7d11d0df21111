"""Tables, `.csv` and `.parquet`: numeric columns as data, others as conditions, all by their names.

pandas reads them, and pyarrow what is `.parquet`: `pip install 'sde-diffusion[tables]'`.
"""

from __future__ import annotations

import csv
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.data.sources.arrays import Rows

Cond = Sequence[str] | Mapping[str, str | Sequence[str]] | None
"""Conditions by the names of columns: a list of them, or by the name that the network knows them by."""

SINGLE = ("label", "caption")
"""Conditions of one column each: classes, and text."""


def read_table(path: Path) -> Any:
    """The table of a `.csv` or `.parquet` file, as a `DataFrame` of pandas.

    Raises:
        ImportError: pandas or pyarrow is not installed.
        ValueError: A file that is no such table, one in which a name comes twice, or one whose first row is numbers,
            where names are wanted.
    """
    try:
        import pandas as pd

        if path.suffix.lower() == ".parquet":
            import pyarrow as pa  # noqa: F401  # which pandas would ask for in other words
    except ImportError as error:
        raise ImportError(
            f"{path.name} is a table, which needs pandas and pyarrow: pip install 'sde-diffusion[tables]'"
        ) from error
    read = pd.read_parquet if path.suffix.lower() == ".parquet" else pd.read_csv
    first: list[str] = []
    try:
        first = _first_row(path)
        frame = pd.DataFrame(columns=first) if len({*first}) < len(first) else read(path)
    except OSError:
        if path.suffix.lower() != ".parquet":
            raise
        raise ValueError(f"{path} cannot be read as a table: it is no .parquet file") from None
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a table: {str(error).strip().splitlines()[-1]}") from error
    _check_once(first, str(path))
    names = [str(name) for name in frame.columns]
    if path.suffix.lower() != ".parquet":
        _check_fields(path, frame, names)
        frame.attrs["csv"] = str(path)
    if names and all(map(is_number, names)):
        raise ValueError(
            f"the first row of {path} is numbers, {', '.join(names[:4])}, and is taken for the names of the columns: "
            "write them as its first row"
        )
    if frame.shape[0] == 0 or not names:
        raise ValueError(f"{path} is empty: it has {len(names)} columns and {frame.shape[0]} rows")
    frame.columns = names
    return frame


def table(frame: Any, cond: Cond = None, columns: Sequence[str] | None = None, name: str = "the table") -> Rows:
    """The rows of a table.

    Args:
        frame: A `DataFrame` of pandas.
        cond: Columns that are conditions. In a list, one called `label` holds classes, one called `caption` text, and
            the others together make the vector `context`, in this order. A mapping says which is which: `{"label":
            "species", "context": ["age", "ph"]}`; a name other than `label` and `caption` gets a vector of its columns.
            A value that is missing in such a vector is NaN, one that is not known. Classes may be integers
            `0, 1, ...`, or words, numbered in sorted order.
        columns: Columns that are data, in this order; by default all that are no conditions.
        name: What an error calls it.

    Raises:
        TypeError: A column that holds no numbers, or a cell that is none, by row and column.
        ValueError: A column that is not there, or comes twice; a value that is missing or infinite, by row and column.

    Warns:
        UserWarning: Columns of True and False among whole numbers, which become 1 and 0.
    """
    names = [str(column) for column in frame.columns]
    _check_once(names, name)
    frame = frame.set_axis(names, axis=1)
    wanted = _wanted(cond, names, name)
    used = [column for group in wanted.values() for column in group]
    data = [column for column in names if column not in used] if columns is None else list(columns)
    for column in data:
        _check_there(column, names, name)
    if twice := sorted({c for c in data + used if (data + used).count(c) > 1}):
        raise ValueError(f"column {twice[0]!r} of {name} is used twice: name it once")
    if not data:
        raise ValueError(f"no column of {name} is left for the data: all {len(names)} are conditions")
    if index := [column for column in data if column.startswith("Unnamed: ")]:
        raise ValueError(
            f"column {index[0]!r} of {name} has no name; where it numbers the rows, pandas wrote its index: write the "
            "file with to_csv(path, index=False), or name the columns that are data"
        )
    x = _numbers(frame, data, name, missing=False)
    truths = [column for column in data if frame[column].dtype.kind == "b"]
    if truths and not x.is_floating_point():
        more = f" (and {len(truths) - 1} more)" if len(truths) > 1 else ""
        warnings.warn(
            f"column {truths[0]!r}{more} of {name} holds True and False, which are the whole numbers 1 and 0 here, and "
            "have no density but in bins of width one, data.Dequantised: give it as a condition, such as label=",
            UserWarning,
            stacklevel=2,
        )
    found: dict[str, Tensor | list[str]] = {}
    about: dict[str, Any] = {"columns": data}
    for group, members in wanted.items():
        if group == "label":
            found[group], about["labels"] = _classes(frame, members[0], name)
        elif group == "caption":
            found[group] = _captions(frame, members[0], name)
        else:
            found[group] = _numbers(frame, members, name, missing=True)
            about[group] = members
    rows = Rows(x, found, tuple(data))
    rows.about = {key: value for key, value in about.items() if value is not None}
    return rows


def _wanted(cond: Cond, names: list[str], name: str) -> dict[str, list[str]]:
    """The columns of each condition."""
    if isinstance(cond, str):
        cond = [cond]
    if cond is None or isinstance(cond, Sequence):
        given = list(cond or ())
        groups: dict[str, str | Sequence[str]] = {column: column for column in SINGLE if column in given}
        if rest := [column for column in given if column not in SINGLE]:
            groups["context"] = rest
    else:
        groups = dict(cond)
    found = {group: [m] if isinstance(m, str) else list(m) for group, m in groups.items()}
    for group, members in found.items():
        for column in members:
            _check_there(column, names, name)
        if not members or (group in SINGLE and len(members) != 1):
            raise ValueError(f"condition {group!r} of {name} has {len(members)} columns, wanted one")
    return found


def _check_there(column: str, names: list[str], name: str) -> None:
    if column not in names:
        shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
        raise ValueError(f"{name} has no column {column!r}: its columns are {shown}")


def _numbers(frame: Any, columns: list[str], name: str, *, missing: bool) -> Tensor:
    """Columns of numbers `(N, D)`, float64, or int64 if all of them are whole; NaN where a value may be missing."""
    arrays = [_column(frame, column, name) for column in columns]
    for column, array in zip(columns, arrays, strict=True):
        wrong = np.isinf(array) if missing else ~np.isfinite(array)
        if wrong.any():
            rows = np.flatnonzero(wrong)
            what = "an infinite value" if np.isinf(array[rows[0]]) else "no value"
            more = f" and in {len(rows) - 1} more" if len(rows) > 1 else ""
            place = _place(frame, int(rows[0]))
            raise ValueError(
                f"column {column!r} of {name} has {what} in {place}{more}: remove or fill in those rows"
                + ("" if missing else ", or make it a condition, where values may be missing")
            )
    whole = all(array.dtype.kind in "iu" for array in arrays)
    return torch.from_numpy(np.stack(arrays, 1).astype(np.int64 if whole else np.float64))


def _column(frame: Any, column: str, name: str) -> np.ndarray[Any, np.dtype[Any]]:
    series = frame[column]
    if series.dtype == object and series.map(lambda cell: isinstance(cell, bool) or cell != cell).all():
        series = series.astype(np.float64)  # True, False, and nothing
    if series.dtype.kind not in "biuf":
        raise TypeError(f"column {column!r} of {name} {_no_numbers(frame, series)}")
    if series.dtype.kind == "f" or series.isna().any():
        return np.asarray(series.to_numpy(dtype=np.float64, na_value=np.nan))
    return np.asarray(series.to_numpy(dtype=np.int64))


def _no_numbers(frame: Any, series: Any) -> str:
    """What a column holds that is no number: the first such cell where others are numbers."""
    import pandas as pd

    if series.dtype.kind in "mM":
        return (
            f"holds {series.dtype}, such as {series.iloc[0]!r}, no numbers: turn dates into a number, days since the "
            "first for instance"
        )
    there = series.notna().to_numpy()
    bad = np.flatnonzero(there & pd.to_numeric(series, errors="coerce").isna().to_numpy())
    if not len(bad):
        return "holds whole numbers beyond 64 bits: write them with a point, or take an offset from them"
    cell = series.iloc[int(bad[0])]
    if len(bad) == there.sum():
        return f"holds {series.dtype}, such as {cell!r}, no numbers: number them, or make it the condition 'label'"
    more = f" and {len(bad) - 1} more such cells" if len(bad) > 1 else ""
    return (
        f"holds {cell!r} in {_place(frame, int(bad[0]))}{more}, where a number is wanted: correct or remove those rows"
    )


def _place(frame: Any, row: int) -> str:
    """A row by its number from 0, and by the line of the file that it came from."""
    path = frame.attrs.get("csv")
    lines = [line for line, _ in _records(Path(path))] if path and Path(path).is_file() else []
    return f"row {row}" + (f", line {lines[row + 1]} of the file" if row + 1 < len(lines) else "")


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows of a `.csv`, empty ones left out as pandas does, each with the line that it begins in, from 1."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        reader, line = csv.reader(file), 1
        for fields in reader:
            if fields and not (len(fields) == 1 and fields[0].isspace()):
                yield line, fields
            line = reader.line_num + 1


def _first_row(path: Path) -> list[str]:
    """The names of the columns as the file has them; those that are empty left out."""
    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet as pq

        found = list(pq.read_schema(path).names)
    else:
        found = next((fields for _, fields in _records(path)), [])
    return [name for name in found if name]


def _check_once(names: Sequence[str], what: str) -> None:
    """Refuses names of columns that come twice."""
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"{what} has {names.count(twice[0])} columns named {', '.join(map(repr, twice[:4]))}: give each a name of "
            "its own, or leave one out"
        )


def _classes(frame: Any, column: str, name: str) -> tuple[Tensor, list[str] | None]:
    """Class numbers, and the words that they stand for, if they were words."""
    series = frame[column]
    if (missing := series.isna()).any():
        raise ValueError(
            f"column {column!r} of {name} has no value in {_place(frame, int(missing.to_numpy().argmax()))}: each row "
            "needs a class, remove those without"
        )
    values = series.to_numpy()
    if series.dtype.kind in "biu":
        return torch.from_numpy(values.astype(np.int64)), None
    if series.dtype.kind in "fmM":
        raise TypeError(
            f"column {column!r} of {name} holds {series.dtype}, and classes are integers 0, 1, ... or words: a "
            "continuous condition goes under another name, {'context': [...]}"
        )
    words, numbers = np.unique(values.astype(str), return_inverse=True)
    return torch.from_numpy(numbers.astype(np.int64)), words.tolist()


def _captions(frame: Any, column: str, name: str) -> list[str]:
    """Text, as it stands in a column; a cell without any is an empty one."""
    cells = ["" if missing else cell for cell, missing in zip(frame[column], frame[column].isna(), strict=True)]
    other = next((i for i, cell in enumerate(cells) if not isinstance(cell, str)), None)
    if other is not None:
        raise TypeError(
            f"column {column!r} of {name} holds {cells[other]!r} in {_place(frame, other)}, and a caption is text"
        )
    return cells


def _check_fields(path: Path, frame: Any, names: list[str]) -> None:
    """Refuses text whose rows have other fields than its first row names: pandas would take those for an index."""
    if len(names) == 1 and (mark := next((mark for mark in ";\t|" if mark in names[0]), None)):
        raise ValueError(
            f"{path} has one column, {names[0][:60]!r}: its fields are parted by {mark!r}, wanted a comma, and points "
            "in its numbers; pandas.read_csv(path, sep=..., decimal=...).to_csv(path, index=False) writes it so"
        )
    if type(frame.index).__name__ != "RangeIndex":
        raise ValueError(
            f"the rows of {path} have more fields than its first row names, {', '.join(names[:4])}: name every column, "
            "that of row numbers too, or leave it out"
        )


def is_number(text: str) -> bool:
    """Whether a text is written as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True
