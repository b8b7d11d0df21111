"""Conditions by name: checked to have a row for each row of the data, and their rows taken.

A condition is a tensor, an array of numbers or of strings, a list, or a mapping of such at any depth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_tensor(value: Any, name: str) -> Tensor:
    """An array of numbers as a tensor, without a copy where torch can do without.

    Raises:
        TypeError: Objects, strings, dates, records; a sparse tensor.
        ValueError: Rows of unlike shape; a masked array with masked entries.
    """
    if isinstance(value, Tensor):
        if value.layout is not torch.strided:
            raise TypeError(f"{name}: a tensor of layout {value.layout}, whose rows cannot be taken: .to_dense() it")
        return value.detach()
    check_unmasked(value, name)
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} are rows of unlike shape: {error}") from error
    if array.dtype.kind not in "biufc":
        raise TypeError(f"{name} holds {array.dtype}, wanted numbers: {_advice(array)}")
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if array.dtype.itemsize > (16 if array.dtype.kind == "c" else 8):  # wider than any tensor
        array = array.astype(np.float64 if array.dtype.kind == "f" else np.complex128)
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:  # with which torch hardly computes
        if array.dtype.itemsize == 8 and array.size and array.max() > np.iinfo(np.int64).max:
            raise ValueError(f"{name} holds {array.max()}, beyond int64: take an offset from it, or save floats")
        array = array.astype(np.int32 if array.dtype.itemsize == 2 else np.int64)
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    return torch.from_numpy(array)


def check_unmasked(value: object, name: str) -> None:
    """Raises `ValueError` for a masked array that hides an entry, which stands there as any number."""
    if isinstance(value, np.ma.MaskedArray) and value.mask is not np.ma.nomask and bool(np.any(value.mask)):
        first = np.argwhere(np.ma.getmaskarray(value))[0].tolist()
        raise ValueError(
            f"{name}: {int(np.sum(value.mask))} of {value.size} entries are masked, that at {first} for one: leave "
            "those rows out, or fill them in, x.filled(value); a context takes NaN for what is not known"
        )


def _advice(array: np.ndarray[Any, Any]) -> str:
    if array.dtype.kind == "O":
        shapes = {np.shape(item) for item in array.flat[:100]}
        if len(shapes) > 1:
            return "its rows differ in shape, such as " + " and ".join(map(str, sorted(shapes, key=str)[:2]))
        return "give plain numbers of one shape, numpy.stack(list(x)).astype('float32')"
    return "take the fields that are numbers" if array.dtype.kind == "V" else "turn it into numbers first"


def with_rows(cond: Mapping[str, Any], n: int, what: str = "condition") -> dict[str, Any]:
    """Conditions whose arrays are tensors, each with `n` rows.

    Raises:
        TypeError: A condition that has no rows, a number or a string.
        ValueError: One with another number of rows.
    """
    return {name: _with_rows(value, n, f"{what} {name!r}", str(name)) for name, value in cond.items()}


def _with_rows(value: Any, n: int, what: str, path: str) -> Any:
    if isinstance(value, Mapping):
        kind = what.split(" ", maxsplit=1)[0]
        return {k: _with_rows(v, n, f"{kind} '{path}.{k}'", f"{path}.{k}") for k, v in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        value = _listed(value)
    elif (texts := texts_of(value)) is not None:
        value = texts
    elif not isinstance(value, Tensor) and hasattr(value, "__array__"):  # arrays, columns of pandas
        value = as_tensor(value, what)
    count = value.shape[0] if isinstance(value, Tensor) and value.ndim else len(value) if _is_list(value) else None
    if count is None:
        raise TypeError(
            f"{what} is {_said(value)} and has no rows: wanted a tensor, an array or a list with one for each of the "
            f"{n} rows of the data"
        )
    if count != n:
        raise ValueError(f"{what} has {count} rows, and the data have {n}: give one row for each")
    return value


def texts_of(value: Any) -> list[str] | None:
    """The strings of an array, or of a column of pandas, as a list; None of what holds something else."""
    if isinstance(value, Tensor | str) or not hasattr(value, "__array__"):
        return None
    array = np.asarray(value)
    if array.ndim != 1 or array.dtype.kind not in "UOT" or not all(isinstance(each, str) for each in array):
        return None
    return [str(each) for each in array]


def _listed(value: Sequence[Any]) -> Any:
    """A list of numbers as a tensor; another list as it is."""
    try:
        array = np.asarray(value)
    except ValueError:  # rows of unlike shape
        return list(value)
    return as_tensor(array, "it") if array.dtype.kind in "biuf" else list(value)


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _said(value: Any) -> str:
    return "a tensor of shape ()" if isinstance(value, Tensor) else f"{type(value).__name__} {value!r:.60}"


def taken(cond: Mapping[str, Any], numbers: Tensor) -> dict[str, Any]:
    """The rows of these numbers of every condition, on the CPU."""
    return {name: _taken(value, numbers) for name, value in cond.items()}


def _taken(value: Any, numbers: Tensor) -> Any:
    if isinstance(value, Mapping):
        return {key: _taken(part, numbers) for key, part in value.items()}
    if isinstance(value, Tensor):
        return of_tensor(value, numbers)
    return [value[i] for i in numbers.tolist()]


def of_tensor(x: Tensor, numbers: Tensor) -> Tensor:
    """The rows of these numbers of a tensor, on the CPU."""
    return x[numbers.to(x.device)].cpu()


def together(given: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Conditions of the rows themselves, and those that came beside them.

    Raises:
        ValueError: A condition that is in both.
    """
    if twice := sorted(given.keys() & more.keys()):
        raise ValueError(
            f"condition {twice[0]!r} is given twice, with the rows of the data and beside them: give it once"
        )
    return {**given, **more}
