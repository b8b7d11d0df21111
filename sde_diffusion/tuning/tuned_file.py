"""Tuned samplers as one file of JSON: a table for each budget, and the report, the whole under a digest.

The file holds numbers and no names of classes: a standard solver that has won is kept as its table.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from sde_diffusion._files import write_files
from sde_diffusion._sealed import sealed
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.problem import Problem
from sde_diffusion.tuning import stored
from sde_diffusion.tuning.report import Candidate, Report, Verdict
from sde_diffusion.tuning.table import SolverTable

KIND = stored.Kind(
    format="sde_diffusion tuned samplers",
    version=1,
    what="tables have",
    writer="Tuned.save or `sde-diffusion tune`",
    again="copy it again from where it is whole, or tune again",
)
_MEASURED = ("objective", "batch", "reference_evaluations", "reference_error", "seconds", "given")


def write(path: Path, report: Report, tables: Mapping[int, SolverTable]) -> None:
    """Writes a report and the table of each of its budgets to a file, whole or not at all.

    Raises:
        ValueError: More than 256 MiB.
        OSError: The file cannot be written; one there before is left as it was.
    """
    text = sealed(as_json(report, tables))
    if len(text) > stored.MOST_BYTES:
        raise ValueError(
            f"the tables take {len(text):,} bytes of {stored.MOST_BYTES:,}: tune with components=False, or less at once"
        )
    write_files({path: text})


def as_json(report: Report, tables: Mapping[int, SolverTable]) -> dict[str, Any]:
    """A report and its tables as what JSON can hold."""
    budgets = [
        {
            "nfe": verdict.nfe,
            "evaluations": verdict.evaluations,
            "seconds": verdict.seconds,
            "candidates": [_candidate(c) for c in verdict.candidates],
            "fresh": [_candidate(c) for c in verdict.fresh],
            "table": tables[verdict.nfe].to_dict(),
        }
        for verdict in report.verdicts
    ]
    measured = {name: _number(getattr(report, name)) for name in _MEASURED}
    return {"format": KIND.format, "version": KIND.version, **measured, "budgets": budgets}


def read(path: Path, problem: Problem) -> tuple[Report, dict[int, SolverTable]]:
    """Reads the file that `write` wrote, and holds its tables to a model; it raises what `Tuned.load` does."""
    about = _whole(path)
    try:
        report = _report(about)
        tables = {int(one["nfe"]): SolverTable.from_dict(one["table"]) for one in about["budgets"]}
        _check_sound(report, tables)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        said = f"no entry {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path} holds no sound tables: {said}; {KIND.again}") from error
    model = cast("Denoiser", problem.model)
    for nfe, table in tables.items():
        if table.nfe * problem.price > nfe:
            raise ValueError(
                f"{path} is of another model: its table for {nfe} evaluations asks {table.nfe} times, and each call of "
                f"this model takes {problem.price}; tune this one"
            )
        if table.made_for is None:
            raise ValueError(f"{path} holds a table that does not say what it was made for; {KIND.again}")
        try:
            table.made_for.check_model(model, shaped=table.components is not None)
        except ValueError as error:
            raise ValueError(f"{path} is of another model: {error}") from error
    return report, tables


def _whole(path: Path) -> dict[str, Any]:
    """What the file says, if it is as it was written."""
    about = stored.read(path, KIND)
    if not isinstance(about, dict) or about.get("format") != KIND.format:
        raise ValueError(f"{path} does not hold {KIND.format}: give a file that {KIND.writer} wrote")
    version = about.get("version")
    if type(version) is not int or version != KIND.version:
        raise ValueError(
            f"{path} has format version {reprlib.repr(version)}, and this is version {KIND.version}: read it with the "
            "version of sde-diffusion that wrote it, or tune again"
        )
    return about


def _check_sound(report: Report, tables: Mapping[int, SolverTable]) -> None:
    """Refuses entries that do not fit one another."""
    if not tables:
        raise ValueError("there is no budget in it")
    if len(tables) != len(report.verdicts):
        raise ValueError("one budget is in it twice")
    for nfe, table in tables.items():
        if table.nfe > nfe:
            raise ValueError(f"the table for {nfe} evaluations asks {table.nfe} times")


def _report(about: Mapping[str, Any]) -> Report:
    if int(about["batch"]) < 1:
        raise ValueError("a batch has no samples")
    return Report(
        tuple(_verdict(one) for one in about["budgets"]),
        str(about["objective"]),
        int(about["batch"]),
        int(about["reference_evaluations"]),
        float(about["reference_error"]),
        float(about["seconds"]),
        str(about["given"]),
    )


def _verdict(about: Mapping[str, Any]) -> Verdict:
    candidates, fresh = (
        tuple(
            Candidate(str(c["name"]), float(c["error"]), float(c["uncertainty"]), c["fitted"] is True)
            for c in about[name]
        )
        for name in ("candidates", "fresh")
    )
    if not candidates:
        raise ValueError("a budget has no candidates")
    return Verdict(int(about["nfe"]), candidates, int(about["evaluations"]), float(about["seconds"]), fresh)


def _candidate(c: Candidate) -> dict[str, Any]:
    error, uncertainty = _number(c.error), _number(c.uncertainty)
    return {"name": c.name, "error": error, "uncertainty": uncertainty, "fitted": c.fitted}


def _number(value: Any) -> Any:
    """A number as JSON has it, infinity and NaN by name; anything else as it is."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
