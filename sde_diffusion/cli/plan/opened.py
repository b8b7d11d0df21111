"""Files of data and of conditions, opened as `--data`, `--cond` and `--shrink` name them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from torch import Tensor, arange

from sde_diffusion.cascade.low_resolution import LowResolution
from sde_diffusion.data._npy import members
from sde_diffusion.data.files import open_data
from sde_diffusion.data.source import source_of
from sde_diffusion.data.sources.base import Batch, Source
from sde_diffusion.data.sources.rows import as_tensor

ARRAYS = (".npy", ".npz")


def open_source(path: Path, cond: Sequence[str] = (), size: int | None = None, shrink: int | None = None) -> Source:
    """Opens data with their conditions, as `--data` and `--cond` name them.

    Args:
        path: A file, or a folder of images.
        cond: Names of columns or arrays, `a,b`; those of one condition, `context=a,b`; a file, `context=FILE.npy`.
        size: Height and width of images in a folder, to which they are brought.
        shrink: How many times shorter fields are made, by means over blocks.

    Raises:
        FileNotFoundError, ImportError, TypeError, ValueError: As `data.open_data`.
    """
    inside, beside = parted(cond)
    found = open_data(path, inside, size=size)
    more = {name: array_of(file, name) for name, file in beside.items()}
    both = source_of(found, more) if more else found
    if not isinstance(both, Source):  # which a file never is
        raise TypeError(f"--data {path} is a stream")
    return both if shrink is None else Shrunk(both, shrink)


class Shrunk(Source):
    """The rows of a source of fields as means over blocks of them, in floats; whole numbers stand for their bins.

    Args:
        source: The source.
        factor: Points of a block along each axis.

    Raises:
        ValueError: Lengths that the factor does not divide, or vectors.
    """

    def __init__(self, source: Source, factor: int) -> None:
        self.source, self.low = source, LowResolution(factor, most=0.0)
        try:
            self.shape = self.low.low_shape(source.shape)
        except ValueError as error:
            raise ValueError(f"--shrink {factor}: {error}") from error
        self.columns, self.about, self.batch_size = source.columns, source.about, source.batch_size

    def __len__(self) -> int:
        return len(self.source)

    def rows(self, numbers: Tensor) -> Batch:
        return self._shrunk(self.source.rows(numbers))

    def batches(self, numbers: Iterable[Tensor]) -> Iterator[Batch]:
        yield from map(self._shrunk, self.source.batches(numbers))

    def labels(self) -> Tensor | None:
        return self.source.labels()

    def _shrunk(self, batch: Batch) -> Batch:
        x = batch.x if batch.x.is_floating_point() else batch.x.float()
        return Batch(self.low.shrink(x), batch.cond)


def parted(cond: Sequence[str]) -> tuple[list[str] | dict[str, str | list[str]] | None, dict[str, Path]]:
    """Conditions that are inside of the file of data, and those in a file beside it.

    Raises:
        ValueError: One that is given twice, or has no name.
    """
    plain: list[str] = []
    named: dict[str, str | list[str]] = {}
    beside: dict[str, Path] = {}
    for word in cond:
        name, equals, value = word.partition("=")
        if not equals:
            plain += [part.strip() for part in word.split(",")]
            continue
        if not name or not value or name in named or name in beside:
            raise ValueError(f"--cond {word}: wanted NAME[,NAME], NAME=COLUMN[,COLUMN] or NAME=FILE, each NAME once")
        if Path(value).suffix.lower() in ARRAYS:
            beside[name] = Path(value)
        else:
            columns = [part.strip() for part in value.split(",")]
            named[name] = columns[0] if len(columns) == 1 else columns
    if "" in plain:
        raise ValueError(f"--cond {','.join(plain)}: a name is empty")
    if not named:
        return plain or None, beside
    if "label" in plain:
        named["label"] = "label"
    if rest := [name for name in plain if name != "label"]:
        if "context" in named:
            raise ValueError(f"--cond {','.join(rest)} beside context={named['context']}: name all of them there")
        named["context"] = rest
    return named, beside


def array_of(path: Path, name: str, option: str | None = None) -> Tensor:
    """The array of a file, or all numbers of a table, as a tensor `(rows, *)`.

    Args:
        path: `.npy`, `.npz` or a table.
        name: What it is called in an `.npz` of several.
        option: The option that named the file, in an error; None for that of the condition `name`.

    Raises:
        FileNotFoundError: No such file.
        TypeError: No numbers.
        ValueError: A damaged file, or one without the array.
    """
    of = f", for the condition {name}" if option is None else f", for {option}"
    if path.suffix.lower() not in ARRAYS:
        source = open_data(path)
        return source.rows(arange(len(source), device="cpu")).x
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}{of}")
    try:
        arrays = members(path)
        key = name if name in arrays else next(iter(arrays)) if len(arrays) == 1 else None
        if key is None:
            raise ValueError(f"it holds {sorted(arrays)[:8]} and no {name!r}")
        found = as_tensor(arrays[key](), "it")
    except (TypeError, ValueError) as error:
        raise type(error)(f"{path}{of}: {error}") from error
    if not found.ndim or not len(found):
        raise ValueError(f"{path}{of}: its shape is {tuple(found.shape)}, wanted (rows, *)")
    return found
