"""Claim: imports point one way, as section 3 of the design draws them, and a bare install can import the package.

Every import is read from the source with `ast`: at the top of a file, inside a function, and under `TYPE_CHECKING`.
A module missing from the table fails, so a new one is placed on purpose. Relative imports are refused.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "sde_diffusion"
ROOT = Path(__file__).resolve().parents[1] / PACKAGE

# module -> what it may import from this package. `*` stands for every file of a folder without a line of its own.
LEAVES = {"_checks", "_times", "_linear", "_brownian", "_modules", "noise", "grids"}
LEARNING = {"times", "weights", "matching"}
MODEL = {
    "_checks",
    "_failure",
    "_linear",
    "_calls",
    "_process",
    "clocks",
    "sde",
    "predict",
    "prediction",
    "denoiser",
    "_network",
    "clip",
    "conditions",
}
SOLVERS = {"solvers", "solvers.base", "solvers.*"}
MAY_IMPORT: dict[str, set[str]] = {
    "_checks": set(),
    "_times": {"_checks"},
    "_linear": set(),
    "_brownian": set(),
    "_calls": {"_checks"},
    "_modules": set(),
    "_quadrature": set(),
    "conditions": {"noise"},
    "_memory": {"_modules"},
    "_streams": set(),
    "_arguments": set(),
    "_npy": {"_memory"},
    "noise": {"_checks", "_brownian"},
    "grids": {"_checks"},
    # what stands beside the theory: networks, data, measures
    "embedding": {"_checks"},
    "nets": {"_checks", "embedding"},
    "arrays": {"_checks", "_npy"},
    "data": {"_checks", "arrays", "noise"},
    "metrics": {"_checks"},
    "classifier": {"_checks", "data"},
    # processes
    "_process": {"_checks", "_times"},
    "_failure": {"_checks"},
    "sde": {"_checks", "_times", "_linear", "_process"},
    "schedules": {"_checks", "sde"},
    "discrete": {"_checks", "sde"},
    "processes": {"schedules", "discrete", "sde"},
    "prior": {"_checks", "_linear", "sde"},
    # models of the score
    "clocks": {"_checks", "sde"},
    "times": {"_checks", "sde"},
    "weights": {"_checks", "_linear", "sde"},
    "prediction": {"_checks", "_linear", "sde"},
    "predict": {"_checks", "clocks", "prediction", "sde", "times", "weights"},
    "matching": {"_checks", "_linear", "conditions", "sde", "predict", "times", "weights"},
    "denoiser": {"_checks", "_linear", "clocks", "conditions", "sde", "predict", "prediction"} | LEARNING,
    "_network": {
        "_checks",
        "_failure",
        "_linear",
        "_calls",
        "_modules",
        "clocks",
        "sde",
        "predict",
        "prediction",
        "denoiser",
    }
    | LEARNING,
    "clip": {"_checks", "prediction", "denoiser", "sde"},
    "guidance": MODEL,
    "analytic": MODEL | {"noise"},
    # what a solver sees, and solvers
    "tables": MODEL,
    "equation": MODEL | {"tables"},
    "solvers.base": {"_checks", "sde", "noise", "equation"},
    "solvers.*": {"_checks", "_linear", "sde", "noise", "prediction", "equation", "solvers.base", "solvers.*"},
    "solvers": {"solvers.base", "solvers.*"},
    # the loop, and what is built on it
    "loop": LEAVES | MODEL | {"solvers.base", "equation"},
    "moments": LEAVES | MODEL | {"solvers.base", "equation", "loop"},
    "problem": LEAVES | MODEL | {"equation", "prior", "tables"},
    # the likelihood, which the sampler stands on
    "divergence": {"_checks", "_linear", "noise"},
    "bits": {"_checks"},
    "budget": {"bits"},
    "log_density": {"_linear", "sde", "equation", "divergence", "solvers.*"},
    "route": LEAVES | MODEL | SOLVERS | {"equation", "problem"},
    "flow_density": LEAVES | MODEL | SOLVERS | {"equation", "loop", "route", "divergence", "log_density"},
    "likelihood": LEAVES | MODEL | SOLVERS | {"problem", "route", "divergence", "flow_density", "bits", "budget"},
    "joint": LEAVES | MODEL | SOLVERS | {"problem", "route", "flow_density", "budget", "likelihood"},
    # the sampler
    "_layout": LEAVES | MODEL | {"problem", "solvers.base"},
    "forecast": MODEL | {"solvers.base", "moments", "problem"},
    "sampler": LEAVES
    | MODEL
    | SOLVERS
    | {"_layout", "equation", "loop", "forecast", "prior", "problem", "budget", "likelihood", "joint"},
    "distributed": LEAVES | MODEL | {"sampler"},
    # bounds on the likelihood
    "bins": {"_checks"},
    "dequantize": {"_checks", "_linear", "noise", "bins", "bits"},
    "_bound": LEAVES | MODEL | {"bins", "prior"},
    "elbo": LEAVES | MODEL | {"bins", "bits", "prior", "_bound"},
    # training never sees a solver
    "losses": LEAVES | MODEL | LEARNING,
    "ema": {"_checks"},
    "_training_input": LEAVES | MODEL | {"ema"},
    "training": LEAVES | MODEL | LEARNING | {"losses", "ema", "_training_input"},
    "_files": set(),
    "standardisation": set(),
    "registry": LEAVES | MODEL | {"processes", "nets"},
    "checkpoint": LEAVES | MODEL | {"_files", "registry", "standardisation"},
    # the conformance suite measures everything but training
    "testing.*": LEAVES
    | MODEL
    | SOLVERS
    | {
        "_files",
        "schedules",
        "discrete",
        "processes",
        "analytic",
        "equation",
        "loop",
        "moments",
        "forecast",
        "sampler",
        "testing.*",
    },
    "testing": {"testing.*"},
}
# These stand above everything and may import all but each other.
TOP = {
    "",
    "check_command",
    "cli",
    "demo_command",
    "sample_command",
    "train_command",
    "demo",
    "limits",
    "trials",
    "plots",
    "likelihood_check",
    "likelihood_command",
    "__main__",
}

# Upward imports, inside a function or for annotations only, each with its reason. Never at the top of a file.
DEFERRED: dict[tuple[str, str], str] = {}
# For annotations only: a leaf may name the type of its argument without importing it.
NAMED: set[tuple[str, str]] = {("grids", "sde"), ("noise", "sde")}

OPTIONAL = ("sklearn", "matplotlib", "torchdiffeq", "torchsde", "safetensors", "scipy")

Edge = tuple[str, str, int, str]  # importer, imported, line, how: "top", "function" or "type"


def modules() -> dict[str, Path]:
    """Every module's name inside the package ("" for the package itself) and its file."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, source: str, known: set[str]) -> Iterator[Edge]:
    """The edges that leave module `name`."""

    def targets(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
        if isinstance(node, ast.Import):
            full = [alias.name for alias in node.names]
        else:
            assert node.level == 0, f"{name}:{node.lineno}: relative import; write `from {PACKAGE}...`"
            base = node.module or ""
            # `from package import x` is an edge to module x where there is one, else to the package
            full = [f"{base}.{a.name}" if f"{base}.{a.name}"[len(PACKAGE) + 1 :] in known else base for a in node.names]
        for target in full:
            if target == PACKAGE or target.startswith(PACKAGE + "."):
                yield target[len(PACKAGE) + 1 :]

    def walk(node: ast.AST, how: str) -> Iterator[Edge]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import | ast.ImportFrom):
                for target in targets(child):
                    yield name, target, child.lineno, how
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                yield from walk(child, "function" if how == "top" else how)
            elif isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
                for statement in child.body:
                    yield from walk(ast.Module([statement], []), "type")
                for statement in child.orelse:
                    yield from walk(ast.Module([statement], []), how)
            else:
                yield from walk(child, how)

    yield from walk(ast.parse(source), "top")


def row(name: str) -> str:
    """The line of the table that speaks for `name`."""
    if name in MAY_IMPORT or name in TOP:
        return name
    folder = name.rpartition(".")[0]
    return f"{folder}.*" if f"{folder}.*" in MAY_IMPORT else name


def fault(edge: Edge) -> str | None:
    """What is wrong with an edge, or None."""
    importer, imported, line, how = edge
    where = f"{importer or '__init__'}.py:{line}"
    if row(imported) == "cli" and importer != "__main__":
        return f"{where}: nothing imports the command line"
    if importer in TOP:
        return None
    if imported in TOP:
        return f"{where}: imports {imported or 'the package itself'}; name the module that defines what you need"
    if row(imported) in MAY_IMPORT[row(importer)]:
        return None
    if how != "top" and (importer, imported) in DEFERRED:
        return None
    if how == "type" and (importer, imported) in NAMED:
        return None
    may = ", ".join(sorted(MAY_IMPORT[row(importer)])) or "nothing of the package"
    return f"{where}: {importer} may not import {imported}; it may import {may}"


MODULES = modules()


def test_every_module_has_a_layer():
    missing = sorted(name for name in MODULES if row(name) not in MAY_IMPORT and name not in TOP)
    assert not missing, f"give these modules a line in MAY_IMPORT: {missing}"


def test_the_table_itself_has_no_cycle():
    done: set[str] = set()
    rest = {name: set(may) - {name} for name, may in MAY_IMPORT.items()}  # files of one folder may see each other
    while rest:
        ready = {name for name, may in rest.items() if may <= done}
        assert ready, f"these layers import each other in a circle: {sorted(rest)}"
        done |= ready
        rest = {name: may for name, may in rest.items() if name not in ready}


@pytest.mark.parametrize("name", sorted(MODULES), ids=lambda name: name or "__init__")
def test_a_module_imports_only_from_below(name):
    edges = imports(name, MODULES[name].read_text(encoding="utf-8"), set(MODULES))
    assert not (faults := [text for edge in edges if (text := fault(edge))]), "\n".join(faults)


def test_solver_files_do_not_import_each_other_in_a_circle():
    family = {name for name in MODULES if name.startswith("solvers.")}
    rest = {name: set[str]() for name in family}
    for name in family:
        for _, target, _, how in imports(name, MODULES[name].read_text(encoding="utf-8"), set(MODULES)):
            if target in family - {name} and how != "type":
                rest[name].add(target)
    while rest:
        ready = {name for name, may in rest.items() if not may & set(rest)}
        assert ready, f"in a circle: {sorted(rest)}"
        rest = {name: may for name, may in rest.items() if name not in ready}


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("solvers.euler", "from sde_diffusion.sampler import SDESampler"),
        ("solvers.euler", "from sde_diffusion import guidance"),
        ("solvers.euler", "import sde_diffusion.schedules"),
        ("solvers.euler", "def f():\n    from sde_diffusion.likelihood import log_prob"),
        ("losses", "from sde_diffusion.solvers.base import Solver"),
        ("training", "if TYPE_CHECKING:\n    from sde_diffusion.solvers import Solver"),
        ("likelihood", "from sde_diffusion.sampler import SDESampler"),
        ("sampler", "from sde_diffusion.cli import main"),
        ("", "from sde_diffusion import cli"),
        ("noise", "from sde_diffusion import VPSDE"),
        ("grids", "from sde_diffusion.sde import SDE"),
    ],
)
def test_a_forbidden_import_is_caught(importer, source):
    known = set(MODULES) | set(MAY_IMPORT) | TOP
    assert any(fault(edge) for edge in imports(importer, source, known))


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("sampler", "from sde_diffusion.likelihood import log_prob"),
        ("grids", "if TYPE_CHECKING:\n    from sde_diffusion.sde import SDE"),
        (
            "solvers.euler",
            "from sde_diffusion.solvers.base import Solver\nfrom sde_diffusion.equation import ODE\nimport torch",
        ),
        ("solvers.euler", "from sde_diffusion_extras import x"),
    ],
)
def test_an_allowed_import_passes(importer, source):
    known = set(MODULES) | set(MAY_IMPORT) | TOP
    assert not [text for edge in imports(importer, source, known) if (text := fault(edge))]


def test_importing_the_package_needs_no_optional_package():
    # a fresh process: this one has imported them all
    code = (
        f"import sys, {PACKAGE}; print(sorted({{name.partition('.')[0] for name in sys.modules}} & set({OPTIONAL!r})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]", f"importing {PACKAGE} loads {done.stdout}"
