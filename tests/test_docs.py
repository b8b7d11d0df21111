"""Claim: the code in README.md and docs/ runs, and the documentation covers what the package holds.

The ```python blocks of one page run in order in one namespace, in an empty folder, on one thread, with warnings as
errors (by pytest's `filterwarnings`). A block is left out only by an HTML comment with a reason on the line above it:

    <!-- not run: needs a GPU -->
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
import torch

import sde_diffusion

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.filterwarnings("error::sde_diffusion.SamplingWarning")  # what we show must fit
PAGES = sorted(path for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")] if path.exists())
MOST_NOT_RUN = 3  # over all pages together; raise it only with a reason as good as theirs

FENCE = re.compile(r"^(?P<indent>[ \t]*)(?P<fence>`{3,}|~{3,})[ \t]*(?P<info>[^`\n]*)$")
NOT_RUN = re.compile(r"^\s*<!--\s*not run:\s*(?P<reason>\S.*?)\s*-->\s*$")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its code, the line the code starts on, and why it is not run (None: it is)."""

    language: str
    code: str
    line: int
    not_run: str | None


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a Markdown page, those inside lists, admonitions and tabs included."""
    found: list[Block] = []
    lines = text.split("\n")
    i = 0
    while i < len(lines):
        start = FENCE.match(lines[i])
        if not start:
            i += 1
            continue
        indent, fence = start["indent"], start["fence"]
        end = i + 1
        while end < len(lines) and not re.fullmatch(rf"[ \t]*{fence[0]}{{{len(fence)},}}[ \t]*", lines[end]):
            end += 1
        assert end < len(lines), f"the block at line {i + 1} is not closed"
        language = re.match(r"\{?\.?([\w+-]*)", start["info"])
        marked = NOT_RUN.match(lines[i - 1]) if i else None
        code = "\n".join(line.removeprefix(indent) for line in lines[i + 1 : end])
        found.append(Block(language[1] if language else "", code, i + 2, marked["reason"] if marked else None))
        i = end + 1
    return found


def label(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


SLOW = {"likelihood", "training", "inverse-problems"}
BLOCKS = {path: blocks(path.read_text(encoding="utf-8")) for path in PAGES}


def page(path: Path) -> Any:
    """A page as a parameter, slow where its code trains or weighs for seconds."""
    return pytest.param(path, id=label(path), marks=[pytest.mark.slow] * (path.stem in SLOW))


@pytest.mark.parametrize("path", [page(path) for path in PAGES if any(b.language == "python" for b in BLOCKS[path])])
def test_the_code_of_a_page_runs_and_prints_what_the_page_says(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    threads, state, default = torch.get_num_threads(), torch.random.get_rng_state(), torch.get_default_dtype()
    namespace: dict[str, object] = {"__name__": "__main__"}
    try:
        torch.set_num_threads(1)
        for block, after in zip_longest(BLOCKS[path], BLOCKS[path][1:]):
            if block.language == "python" and block.not_run is None:
                # empty lines in front keep the page's line numbers in the traceback
                exec(compile("\n" * (block.line - 1) + block.code, str(path), "exec"), namespace)
                printed = capsys.readouterr().out
                if after is not None and after.language == "text" and path.name != "README.md":  # test_readme.py
                    assert printed.strip() == after.code.strip()
    finally:
        torch.set_num_threads(threads)
        torch.random.set_rng_state(state)
        torch.set_default_dtype(default)


def test_blocks_of_python_are_named_python_so_that_they_run():
    other = ("py", "python3", "Python", "pycon", "ipython", "")
    escaped = [
        f"{label(path)}:{block.line}: {block.language or 'no language'}"
        for path in PAGES
        for block in BLOCKS[path]
        if block.language in other and re.search(r"^\s*(>>> |import \w|from \w+ import )", block.code, re.MULTILINE)
    ]
    assert not escaped, "\n".join(escaped)


def test_few_blocks_are_not_run_and_each_says_why():
    left_out = [f"{label(path)}:{b.line}: {b.not_run}" for path in PAGES for b in BLOCKS[path] if b.not_run is not None]
    assert len(left_out) <= MOST_NOT_RUN, "\n".join(left_out)
    for path in PAGES:
        comments = path.read_text(encoding="utf-8").count("<!-- not run")
        used = sum(b.not_run is not None for b in BLOCKS[path])
        assert comments == used, f"{label(path)}: a `not run` comment without a reason, or not right above a block"


def test_blocks_are_found_in_lists_and_behind_options_and_marks():
    page = "\n".join(
        [
            "```python",
            "a = 1",
            "```",
            '- item\n\n    ```python title="x.py"\n    if a:\n        b = 2\n    ```',
            "<!-- not run: needs a GPU -->",
            "~~~~ {.python}",
            "```",
            "~~~~",
            "```bash",
            "ls",
            "```",
        ]
    )
    assert blocks(page) == [
        Block("python", "a = 1", 2, None),
        Block("python", "if a:\n    b = 2", 7, None),
        Block("python", "```", 12, "needs a GPU"),
        Block("bash", "ls", 15, None),
    ]


def test_every_page_is_in_the_navigation():
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"^ +- .*: (\S+\.md)$", config, re.MULTILINE))
    assert named == {path.relative_to(ROOT / "docs").as_posix() for path in PAGES if path.name != "README.md"}


def test_every_image_of_a_page_exists():
    missing = [
        f"{label(path)}: {image}"
        for path in PAGES
        for image in re.findall(r"!\[[^\]]*\]\(([^)\s]+)|<img[^>]* src=\"([^\"]+)\"", path.read_text(encoding="utf-8"))
        for image in image
        if image and "://" not in image and not (path.parent / image).exists()
    ]
    assert not missing, "\n".join(missing)


def public_modules() -> list[str]:
    names = [m.name for m in pkgutil.walk_packages(sde_diffusion.__path__, "sde_diffusion.")]
    return [name for name in names if not any(part.startswith("_") for part in name.split("."))]


def test_every_public_module_is_on_an_api_page():
    shown = {
        name for path in PAGES for name in re.findall(r"^::: (\S+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    missing = [
        name for name in public_modules() if name not in shown and not name.startswith("sde_diffusion.solvers.")
    ]  # a solver's file is shown where `sde_diffusion.solvers` exports it
    assert not missing, missing


@pytest.mark.parametrize("name", public_modules())
def test_every_public_name_has_a_docstring(name):
    module = importlib.import_module(name)
    assert inspect.getdoc(module), name
    bare = []
    for key, value in vars(module).items():
        if key.startswith("_") or getattr(value, "__module__", None) != name:
            continue
        if inspect.isfunction(value) and not inspect.getdoc(value):
            bare.append(key)
        if inspect.isclass(value):
            bare += [key] * (not value.__doc__)
            for attribute, member in vars(value).items():
                if any(attribute in vars(base).get("__annotations__", {}) for base in value.__mro__[1:]):
                    continue  # a field of the base, which documents it
                inner = member.__func__ if isinstance(member, classmethod | staticmethod) else member
                if not attribute.startswith("_") and (inspect.isfunction(inner) or isinstance(inner, property)):
                    # inspect.getdoc on the class finds the docstring of the base that is overridden
                    bare += [f"{key}.{attribute}"] * (not inspect.getdoc(getattr(value, attribute)))
    assert not bare, f"{name}: {bare}"
