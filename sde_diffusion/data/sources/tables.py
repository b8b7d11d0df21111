"""Tables, `.csv` and `.parquet`: numeric columns as data, others as conditions, all by their names.

pandas reads them, and pyarrow what is `.parquet`: `pip install 'sde-diffusion[tables]'`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.data.sources.arrays import Rows

Cond = Sequence[str] | Mapping[str, str | Sequence[str]] | None
"""Conditions by the names of columns: a list of them, or by the name that the network knows them by."""


def read_table(path: Path) -> Any:
    """The table of a `.csv` or `.parquet` file, as a `DataFrame` of pandas.

    Raises:
        ImportError: pandas or pyarrow is not installed.
        ValueError: A file that is no such table, or one whose first row is numbers, where names are wanted.
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
    try:
        frame = read(path)
    except OSError:
        if path.suffix.lower() != ".parquet":
            raise
        raise ValueError(f"{path} cannot be read as a table: it is no .parquet file") from None
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a table: {str(error).strip().splitlines()[-1]}") from error
    names = [str(name) for name in frame.columns]
    if path.suffix.lower() != ".parquet":
        _check_fields(path, frame, names)
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
        cond: Columns that are conditions. In a list, one called `label` holds classes, and the others together make the
            vector `context`, in this order. A mapping says which is which: `{"label": "species", "context": ["age",
            "ph"]}`; a name other than `label` gets a vector of its columns. A value that is missing in such a vector is
            NaN, one that is not known. Classes may be integers `0, 1, ...`, or words, numbered in sorted order.
        columns: Columns that are data, in this order; by default all that are no conditions.
        name: What an error calls it.

    Raises:
        TypeError: A column that holds no numbers.
        ValueError: A column that is not there, or comes twice; a value that is missing or infinite, by row and column.
    """
    names = [str(column) for column in frame.columns]
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
    found: dict[str, Tensor] = {}
    about: dict[str, Any] = {"columns": data}
    for group, members in wanted.items():
        if group == "label":
            found[group], about["labels"] = _classes(frame[members[0]], members[0], name)
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
        groups: dict[str, str | Sequence[str]] = {"label": "label"} if "label" in given else {}
        if rest := [column for column in given if column != "label"]:
            groups["context"] = rest
    else:
        groups = dict(cond)
    found = {group: [m] if isinstance(m, str) else list(m) for group, m in groups.items()}
    for group, members in found.items():
        for column in members:
            _check_there(column, names, name)
        if not members or (group == "label" and len(members) != 1):
            raise ValueError(f"condition {group!r} of {name} has {len(members)} columns, wanted one")
    return found


def _check_there(column: str, names: list[str], name: str) -> None:
    if column not in names:
        shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
        raise ValueError(f"{name} has no column {column!r}: its columns are {shown}")


def _numbers(frame: Any, columns: list[str], name: str, *, missing: bool) -> Tensor:
    """Columns of numbers `(N, D)`, float64, or int64 if all of them are whole; NaN where a value may be missing."""
    arrays = [_column(frame[column], column, name) for column in columns]
    for column, array in zip(columns, arrays, strict=True):
        wrong = np.isinf(array) if missing else ~np.isfinite(array)
        if wrong.any():
            rows = np.flatnonzero(wrong)
            what = "an infinite value" if np.isinf(array[rows[0]]) else "no value"
            more = f" and in {len(rows) - 1} more" if len(rows) > 1 else ""
            raise ValueError(
                f"column {column!r} of {name} has {what} in row {rows[0]}{more}: remove or fill in those rows"
                + ("" if missing else ", or make it a condition, where values may be missing")
            )
    whole = all(array.dtype.kind in "iu" for array in arrays)
    return torch.from_numpy(np.stack(arrays, 1).astype(np.int64 if whole else np.float64))


def _column(series: Any, column: str, name: str) -> np.ndarray[Any, np.dtype[Any]]:
    kind = str(series.dtype)
    if series.dtype.kind not in "biuf":
        advice = "number them, or make it the condition 'label'"
        if series.dtype.kind in "mM":
            advice = "turn dates into a number, days since the first for instance"
        raise TypeError(f"column {column!r} of {name} holds {kind}, such as {series.iloc[0]!r}, no numbers: {advice}")
    if series.dtype.kind == "f" or series.isna().any():
        return np.asarray(series.to_numpy(dtype=np.float64, na_value=np.nan))
    return np.asarray(series.to_numpy(dtype=np.int64))


def _classes(series: Any, column: str, name: str) -> tuple[Tensor, list[str] | None]:
    """Class numbers, and the words that they stand for, if they were words."""
    if (missing := series.isna()).any():
        raise ValueError(
            f"column {column!r} of {name} has no value in row {int(missing.to_numpy().argmax())}: each row needs a "
            "class, remove those without"
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
