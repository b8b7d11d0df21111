"""Claim: the package is built as `docs/draw_architecture.py` lists it; imports point down, with no circle anywhere.

Every import is read from the source with `ast`: at the top of a file, inside a function, and under `TYPE_CHECKING`.
There is no list of exceptions. A folder or a file that the table does not name fails: a new one is placed on purpose.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).resolve().parents[1]
PACKAGE, ROOT = "sde_diffusion", HERE / "sde_diffusion"
OPTIONAL = ("sklearn", "skimage", "matplotlib", "torchdiffeq", "torchsde", "safetensors", "scipy")
MOST_MODULES = 15


def _script(path: Path) -> Any:
    spec: Any = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


house = _script(HERE / "docs" / "draw_architecture.py")
MODULES = house.modules(ROOT)
FOLDERS = {name for row in house.ROWS for name in row}


def edges(name, source=None):
    text = MODULES[name].read_text(encoding="utf-8") if source is None else source
    return list(house.imports(name, text, set(MODULES)))


def fault(edge):
    """What is wrong with an edge, or None."""
    importer, imported, line = edge
    above, below = house.folder_of(importer), house.folder_of(imported)
    where = f"{importer or '__init__'}:{line}"
    if above == below or above in ("", "__main__"):
        return None
    if below not in FOLDERS:
        return f"{where}: imports {imported or 'the package itself'}; name the module that defines what you need"
    if house.row_of(below) < house.row_of(above):
        return f"{where}: {importer} may not import {imported}, which stands above it"
    return None


def circle(graph):
    """The nodes of a graph that no order can put one after the other; empty if there is an order."""
    rest = {name: set(below) - {name} for name, below in graph.items()}
    while rest:
        ready = {name for name, below in rest.items() if not below & set(rest)}
        if not ready:
            return sorted(rest)
        rest = {name: below for name, below in rest.items() if name not in ready}
    return []


def test_the_top_of_the_package_holds_what_the_table_says_and_nothing_else():
    entries = {p.stem for p in ROOT.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert entries - {"__init__"} == FOLDERS - house.TO_COME, "a room that opens leaves TO_COME of draw_architecture.py"


def test_no_folder_holds_more_modules_than_one_can_survey():
    counts = Counter(path.parent for path in MODULES.values() if path.name != "__init__.py" and path.parent != ROOT)
    assert not {str(folder): n for folder, n in counts.items() if n > MOST_MODULES}


@pytest.mark.parametrize("name", sorted(MODULES), ids=lambda name: name or "__init__")
def test_a_module_imports_only_from_its_row_and_below(name):
    assert not (faults := [text for edge in edges(name) if (text := fault(edge))]), "\n".join(faults)


def test_no_modules_import_each_other_in_a_circle():
    # a folder's own __init__ hands on what stands in it: that a module passes through it is no edge
    graph = {name: {b for _, b, _ in edges(name)} for name in MODULES if MODULES[name].name != "__init__.py"}
    assert not (found := circle(graph)), f"in a circle: {found}"


def test_no_folders_import_each_other_in_a_circle():
    assert not (found := circle(house.folder_graph(MODULES))), f"in a circle: {found}"


def test_no_module_imports_its_own_folder():
    # whose __init__ imports the module: a circle that works only in one order
    inside = [
        f"{a}:{line}"
        for name in MODULES
        for a, b, line in edges(name)
        if MODULES[b].name == "__init__.py" and b and a.startswith(b + ".")
    ]
    assert not inside


@pytest.mark.parametrize("name", sorted(n for n in FOLDERS - house.TO_COME))
def test_a_folder_opens_with_its_question_and_an_answer(name):
    text = ast.get_docstring(ast.parse(MODULES[name].read_text(encoding="utf-8"))) or ""
    question = next(row[name] for row in house.ROWS if name in row)
    if MODULES[name].name == "__init__.py" or name == "problem":
        assert text.startswith(question)
        assert text[len(question) :].strip().split("\n")[0].endswith((".", ":")), (
            "a sentence of answer on the same line"
        )


def test_the_page_of_the_architecture_lists_each_folder_with_its_question():
    page = (HERE / "docs" / "architecture.md").read_text(encoding="utf-8")
    folders = {n for n in FOLDERS - house.TO_COME if MODULES[n].name == "__init__.py"}
    for row in house.ROWS:
        for name, question in row.items():
            assert f"`{name}`" in page.replace(".py`", "`").replace("/`", "`"), f"{name} is not on the page"
            if name in folders:
                assert f"| `{name}/` | {question} |" in page


def test_a_folder_that_hands_on_a_function_holds_no_module_of_its_name():
    for name, path in MODULES.items():
        if path.name == "__init__.py" and name:
            folder = importlib.import_module(f"{PACKAGE}.{name}")
            inside = {m.rpartition(".")[2] for m in MODULES if m.rpartition(".")[0] == name}
            for module in inside & set(vars(folder)):
                assert isinstance(vars(folder)[module], ModuleType), f"{name} hands on {module}, and holds {module}.py"


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("solvers.ode.euler", "from sde_diffusion.sampler import SDESampler"),
        ("solvers.ode.euler", "import sde_diffusion.likelihood.exact"),
        ("solvers.ode.euler", "def f():\n    from sde_diffusion.problem import Problem"),
        ("training.losses", "from sde_diffusion.solvers.base import Solver"),
        ("training.loop", "if TYPE_CHECKING:\n    from sde_diffusion.solvers import Solver"),
        ("likelihood.exact", "from sde_diffusion.sampler.sampler import SDESampler"),
        ("sampler.sampler", "from sde_diffusion.cli.main import main"),
        ("noise.sources", "from sde_diffusion import VPSDE"),
        ("noise.sources", "from sde_diffusion.sde.level import Level"),
        ("denoiser.base", "from sde_diffusion.training import losses"),
    ],
)
def test_a_forbidden_import_is_caught(importer, source):
    assert any(fault(edge) for edge in edges(importer, source))


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("sampler.sampler", "from sde_diffusion.likelihood import log_prob"),
        ("solvers.ode.euler", "from sde_diffusion.solvers.base import Solver\nimport torch"),
        ("solvers.ode.euler", "from sde_diffusion_extras import x"),
        ("cli.main", "from sde_diffusion.demo.demonstration import run"),
    ],
)
def test_an_allowed_import_passes(importer, source):
    assert not [text for edge in edges(importer, source) if (text := fault(edge))]


def test_a_circle_is_caught():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": set()}) == ["a", "b", "c"]


def test_the_picture_is_what_the_imports_draw():
    assert house.PICTURE.read_text(encoding="utf-8") == house.draw(), "run: python docs/draw_architecture.py"


def test_importing_the_package_needs_no_optional_package():
    # a fresh process: this one has imported them all
    code = (
        f"import sys, {PACKAGE}; print(sorted({{name.partition('.')[0] for name in sys.modules}} & set({OPTIONAL!r})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]", f"importing {PACKAGE} loads {done.stdout}"


def test_all_that_the_table_names_in_public_is_reachable_after_a_plain_import():
    public = [name for name in FOLDERS - house.TO_COME if not name.startswith("_")]
    names = [*public, "losses", "analytic", "dequantize", "grids", "predict", "clocks", "SDESampler", "VPSDE"]
    code = f"import {PACKAGE} as sd; print([n for n in {names!r} if not hasattr(sd, n)])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.strip() == "[]", f"add to _LATER of {PACKAGE}/__init__.py: {done.stdout}{done.stderr}"
