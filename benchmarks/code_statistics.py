"""Figures of the code itself, by its syntax tree: `python benchmarks/code_statistics.py [FOLDER] [--json FILE]`.

* *functions*: all of them, methods and inner ones too, in lines from `def` to the last, without the docstring.
* *parameters*: all named ones but `self` and `cls`; `*args` and `**kwargs` are not counted.
* *ignores*: comments `type: ignore` and `noqa`; a reason is any text behind the codes on the same line.
* *nesting*: statements with a body of their own (if, for, while, with, try, match) inside one another in one function;
  an `elif` is no deeper than its `if`.
* *depth of imports*: modules on the longest way down, by the imports at the top of files; a circle counts as one.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import re
import statistics
import tokenize
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

MOST_PARAMETERS, DEEP = 8, 3
COMPOUND = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.Match)
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, Function]]:
    """Every function below a node, with the names around it."""
    for node in ast.iter_child_nodes(tree):
        named = isinstance(node, ast.ClassDef | FUNCTION[0] | FUNCTION[1])
        name = f"{prefix}.{node.name}" if named else prefix
        if isinstance(node, FUNCTION):
            yield name, node
        yield from functions(node, name)


def length(function: Function) -> int:
    """Lines from `def` to the last, without the docstring."""
    end = function.end_lineno or function.lineno
    first = function.body[0]
    told = ast.get_docstring(function) is not None
    return end - function.lineno + 1 - (((first.end_lineno or 0) - first.lineno + 1) if told else 0)


def parameters(function: Function) -> int:
    """Named parameters but the first of a method."""
    a = function.args
    names = [p.arg for p in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def nesting(body: list[ast.stmt], depth: int = 0) -> int:
    """How deep statements stand in one another; what a function or class inside holds is its own."""
    deepest = depth
    for node in body:
        if not isinstance(node, COMPOUND):
            continue
        for block in _blocks(node):
            chained = isinstance(node, ast.If) and block is node.orelse and _is_elif(node)
            deepest = max(deepest, nesting(block, depth if chained else depth + 1))
    return deepest


def _blocks(node: ast.stmt) -> Iterator[list[ast.stmt]]:
    for field in ("body", "orelse", "finalbody"):
        if block := getattr(node, field, None):
            yield block
    for part in (*getattr(node, "handlers", ()), *getattr(node, "cases", ())):
        yield part.body


def _is_elif(node: ast.If) -> bool:
    return len(node.orelse) == 1 and isinstance(node.orelse[0], ast.If) and node.orelse[0].col_offset == node.col_offset


IGNORES = {
    "type: ignore": re.compile(r"#\s*type:\s*ignore(?:\[[^\]]*\])?(?P<rest>.*)"),
    "noqa": re.compile(r"#\s*noqa(?::\s*[A-Z]+\d+(?:[,\s]+[A-Z]+\d+)*)?(?P<rest>.*)"),
}


def ignores(source: str) -> Counter[tuple[str, bool]]:
    """How many comments switch a check off, by kind and whether they say why."""
    found: Counter[tuple[str, bool]] = Counter()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        for kind, pattern in IGNORES.items():
            if token.type == tokenize.COMMENT and (match := pattern.search(token.string)):
                reason = re.sub(r"#\s*(noqa\S*|type:\s*ignore\S*)", "", match["rest"])
                found[kind, bool(re.search(r"\w{2}", reason))] += 1
    return found


def imports(name: str, tree: ast.Module, package: str, known: set[str]) -> set[str]:
    """Modules of the package that a module imports at its top, outside of `if TYPE_CHECKING`."""
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            ways = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {way if way in known else node.module for way in ways}
    return {m for m in found if m in known and m.startswith(package)} - {name}


def depth_of(graph: dict[str, set[str]]) -> int:
    """Modules on the longest way down, circles taken as one."""

    def reached(start: str) -> set[str]:
        seen, stack = set[str](), [start]
        while stack:
            for target in graph[stack.pop()] - seen:
                seen.add(target)
                stack.append(target)
        return seen

    below = {name: reached(name) for name in graph}

    @cache
    def down(name: str) -> int:
        circle = {name} | {m for m in below[name] if name in below[m]}
        return 1 + max((down(m) for m in set().union(*(graph[c] for c in circle)) - circle), default=0)

    return max(map(down, graph))


def measure(folder: Path) -> dict[str, Any]:
    """All figures of a package."""
    files = sorted(folder.rglob("*.py"))
    sources = {_name(folder, path): path.read_text(encoding="utf-8") for path in files}
    trees = {name: ast.parse(source) for name, source in sources.items()}
    every = [(f"{name}{inner}", f) for name, tree in trees.items() for inner, f in functions(tree)]
    lengths = sorted((length(f), name) for name, f in every)
    switched = sum((ignores(source) for source in sources.values()), Counter())
    graph = {name: imports(name, tree, folder.name, set(trees)) for name, tree in trees.items()}
    return {
        "lines": sum(source.count("\n") for source in sources.values()),
        "modules": dict(Counter(str(p.parent.relative_to(folder.parent)) for p in files if p.name != "__init__.py")),
        "functions": len(every),
        "median": statistics.median(n for n, _ in lengths),
        "90th percentile": lengths[int(0.9 * (len(lengths) - 1))][0],
        "longest": {name: n for n, name in lengths[:-6:-1]},
        "parameters": {name: parameters(f) for name, f in every if parameters(f) >= MOST_PARAMETERS},
        "ignores": {f"{kind}, {('without', 'with')[why]} a reason": n for (kind, why), n in sorted(switched.items())},
        "nested": {name: depth for name, f in every if (depth := nesting(f.body)) >= DEEP},
        "depth of imports": depth_of(graph),
    }


def _name(folder: Path, path: Path) -> str:
    parts = path.relative_to(folder.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def show(found: dict[str, Any]) -> None:
    print(f"{found['lines']} lines, {found['functions']} functions")
    print(f"lines of a function: median {found['median']:g}, 90th percentile {found['90th percentile']}; the longest:")
    for name, n in found["longest"].items():
        print(f"  {n:4} {name}")
    print(f"{len(found['parameters'])} functions with {MOST_PARAMETERS} parameters or more")
    for name, n in sorted(found["parameters"].items(), key=lambda item: -item[1]):
        print(f"  {n:4} {name}")
    for kind, n in found["ignores"].items():
        print(f"{n} {kind}")
    print(f"{len(found['nested'])} functions nested {DEEP} deep or deeper")
    for name, depth in found["nested"].items():
        print(f"  {depth:4} {name}")
    print("modules: " + ", ".join(f"{folder} {n}" for folder, n in sorted(found["modules"].items())))
    print(f"depth of imports: {found['depth of imports']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    here = Path(__file__).resolve().parents[1] / "sde_diffusion"
    parser.add_argument("folder", type=Path, nargs="?", default=here, help="folder of a package")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for the figures")
    parser.add_argument("--quick", action="store_true", help="no effect: it takes a second")
    args = parser.parse_args()
    found = measure(args.folder.resolve())
    show(found)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
