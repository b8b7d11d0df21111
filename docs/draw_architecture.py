"""Draws `docs/images/architecture.svg` from the imports of the package: its folders, and the way of a call.

    python docs/draw_architecture.py            # writes the picture
    python docs/draw_architecture.py --table    # prints the rows, their questions and what each folder imports

`ROWS` is the law of the house: a folder imports from its own row and from those below, never from above.
`tests/test_layers.py` holds the package to it, and the committed picture to what this script draws.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path

PACKAGE = "sde_diffusion"
ROOT = Path(__file__).resolve().parents[1] / PACKAGE
PICTURE = Path(__file__).parent / "images" / "architecture.svg"

# From the top of the house to the ground: the folders, or single files, of a row, and the question that each answers.
ROWS: list[dict[str, str]] = [
    {"cli": "What does the command line do?", "demo": "What does the demonstration show?"},
    {"testing": "Does my part keep its claims?"},
    {
        "interop": "How do foreign models come in, and our solvers go out?",
        "tuning": "How does a solve fit itself to a model?",
        "latent": "How is all this done in a code space?",
        "cascade": "How do I draw coarse to fine?",
    },
    {"particles": "How do I draw from a law that no model answers exactly, and how likely is it?"},
    {"sampler": "How do I draw and encode?"},
    {"likelihood": "What does a model say of data?"},
    {"problem": "Which equation is to be solved?"},
    {"guidance": "How do I change what a model answers?", "distillation": "How do I teach a model fewer steps?"},
    {"solvers": "How is one step taken?"},
    {"training": "How does a network become a model?"},
    {"denoiser": "What does a network know?"},
    {"sde": "How do data become noise?"},
    {
        "noise": "Where does randomness come from?",
        "nets": "Which networks are here to start with?",
        "data": "How do data come in?",
        "metrics": "How far are two sets of samples apart?",
        "plots": "How are samples drawn?",
        "_checks": "What is refused at the door?",
        "_tensors": "How are rows computed with?",
        "_files": "How is a file written whole, or not at all?",
        "_sealed": "How does a file notice that it was changed?",
    },
]
TO_COME = {"interop"}

# What a call passes through on its way from the sampler to the network: the folder, and what is called there.
WAY = [
    ("sampler", "SDESampler.sample(n, seed=0)", "grid, seeds, batches, conditions"),
    ("problem", "Problem.equation, .start", "the prior's draw, a fresh equation"),
    ("solvers", "integrate", "one step per interval of the grid"),
    ("solvers", "solver.step(eq, x, t, s, state, noise)", "from level t to level s"),
    ("solvers", "eq.velocity | score | denoise", "counts the evaluation"),
    ("denoiser", "Denoiser.predict(x, level)", "wrappers, then the parametrisation"),
    ("denoiser", "your network(x, time)", "and back up with its answer"),
]

Edge = tuple[str, str, int]  # importer, imported, line


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Every module's name inside the package ("" for the package itself) and its file."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, source: str, known: set[str]) -> Iterator[Edge]:
    """The imports of module `name` from the package, wherever they stand: inside functions and for types alone, too.

    Raises:
        ValueError: A relative import.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            full = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"{name}:{node.lineno}: relative import; write `from {PACKAGE}...`")
            base = node.module or ""
            # `from package import x` leads to module x where there is one, else to the package
            full = [f"{base}.{a.name}" if f"{base}.{a.name}"[len(PACKAGE) + 1 :] in known else base for a in node.names]
        else:
            continue
        for target in full:
            if target == PACKAGE or target.startswith(PACKAGE + "."):
                yield name, target[len(PACKAGE) + 1 :], node.lineno


def folder_of(module: str) -> str:
    """The folder, or the single file, at the top of the package in which a module lives."""
    return module.partition(".")[0]


def row_of(folder: str) -> int:
    """The row of a folder, counted from the top; -1 for the package itself, which stands above them all."""
    return next((i for i, row in enumerate(ROWS) if folder in row), -1)


def folder_graph(found: Mapping[str, Path]) -> dict[str, set[str]]:
    """Which folders each folder imports."""
    graph: dict[str, set[str]] = {folder_of(name): set() for name in found if folder_of(name) not in ("", "__main__")}
    for name, path in found.items():
        for importer, imported, _ in imports(name, path.read_text(encoding="utf-8"), set(found)):
            a, b = folder_of(importer), folder_of(imported)
            if a in graph and b in graph and a != b:
                graph[a].add(b)
    return graph


def without_shortcuts(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The graph without the edges that a longer way makes superfluous."""

    def reach(a: str) -> set[str]:
        seen: set[str] = set()
        rest = list(graph[a])
        while rest:
            b = rest.pop()
            if b not in seen:
                seen.add(b)
                rest += graph[b]
        return seen

    return {a: {b for b in direct if not any(b in reach(c) for c in direct - {b})} for a, direct in graph.items()}


# ------------------------------------------------------------------------------------------------------- the picture

WIDTH, HOUSE, ROW, BOX_HEIGHT, LEFT, TOP = 1220, 740, 92, 70, 24, 64
INK, PAPER, BOX, LINE, CALL = "#1f2933", "#ffffff", "#eef3f8", "#9aa8b6", "#b4490b"


def _text(x: float, y: float, text: str, size: int = 13, weight: str = "normal", fill: str = INK) -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" font-weight="{weight}" fill="{fill}">{escape(text)}</text>'


def _box(x: float, y: float, w: float, h: float, fill: str, stroke: str) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="6" fill="{fill}" stroke="{stroke}"/>'


def _arrow(points: list[tuple[float, float]], colour: str, marker: str) -> str:
    """An arrow along straight lines."""
    path = " L ".join(f"{x:g} {y:g}" for x, y in points)
    return f'<path d="M {path}" fill="none" stroke="{colour}" stroke-width="1.4" marker-end="url(#{marker})"/>'


def _places(rows: list[list[str]]) -> dict[str, tuple[float, float, float]]:
    """Left, top and width of the box of each folder."""
    places = {}
    for i, row in enumerate(rows):
        width = (HOUSE - 2 * LEFT - 12 * (len(row) - 1)) / len(row)
        for j, folder in enumerate(row):
            places[folder] = (LEFT + j * (width + 12), TOP + i * ROW, width)
    return places


def _imports(graph: dict[str, set[str]], places: Mapping[str, tuple[float, float, float]]) -> list[str]:
    """The arrows between the rooms: straight down to the next row, else in a lane of its own beside the boxes."""
    out, lane = [], HOUSE - LEFT + 10.0
    for folder, below in without_shortcuts(graph).items():
        x, y, w = places[folder]
        for other in sorted(below, key=lambda o: (places[o][1], places[o][0])):
            x2, y2, w2 = places[other]
            if y2 == y:
                points = [(x + w, y + 20), (x2, y2 + 20)]
            elif y2 - y <= ROW:
                middle = min(max(x + w / 2, x2 + 20), x2 + w2 - 20)
                points = [(middle, y + BOX_HEIGHT), (middle, y2)]
            else:
                points = [(x + w, y + 40), (lane, y + 40), (lane, y2 + 20), (x2 + w2, y2 + 20)]
                lane += 9
            out.append(_arrow(points, LINE, "import"))
    return out


def draw(root: Path = ROOT) -> str:
    """The picture, as the text of an SVG file."""
    found = modules(root)
    graph = folder_graph(found)
    present = [[f for f in row if f in graph] for row in ROWS]
    *upper, ground = [row for row in present if row]
    folders = [f for f in ground if len([m for m in found if folder_of(m) == f]) > 1]
    places = _places([*upper, folders, [f for f in ground if f not in folders]])
    height = TOP + (len(upper) + 2) * ROW + 10
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{height}" fill="{PAPER}"/>',
    ]
    for marker, colour in (("import", LINE), ("call", CALL)):
        out.append(
            f'<marker id="{marker}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto-start-reverse"><path d="M0 0 L8 4 L0 8 z" fill="{colour}"/></marker>'
        )
    out.append(_text(LEFT, 30, "The house: a row imports from those below it, never from above", 16, "bold"))
    note = (
        "arrows: what imports what, but for shortcuts, and for the two rows of the ground, on which every room stands"
    )
    out.append(_text(LEFT, 48, note, 11, fill="#52606d"))
    rooms = {f: {b for b in graph[f] if b not in ground} for row in upper for f in row}
    out += _imports(rooms, places)
    for folder, (x, y, w) in places.items():
        out += _folder(folder, x, y, w, found)
    out += _way(places)
    return "\n".join([*out, "</svg>", ""])


def _folder(folder: str, x: float, y: float, w: float, found: Mapping[str, Path]) -> list[str]:
    """The box of one folder: its name, its question, what stands in it."""
    inside = {m.split(".")[1] + ("/" if m.count(".") > 1 else "") for m in found if m.startswith(folder + ".")}
    inside = {m for m in inside if m + "/" not in inside and not m.startswith("__")}
    single = not inside
    out = [_box(x, y, w, BOX_HEIGHT, BOX, LINE)]
    out.append(_text(x + 8, y + 17, folder + (".py" if single else "/"), 13, "bold"))
    question = next(row[folder] for row in ROWS if folder in row)
    listed = " ".join(sorted(inside, key=lambda m: m.strip("_").lower()))
    if w > 400:
        out.append(_text(x + 110, y + 17, question, 12))
        lines = _wrapped(listed, int(w / 6))
    else:
        lines = [*_wrapped(question, int(w / 6)), *(_wrapped(listed, int(w / 6)) if len(listed) < 80 else [])]
    out += [_text(x + 8, y + 35 + 14 * i, line, 11 if w > 400 else 10, fill="#52606d") for i, line in enumerate(lines)]
    return out


def _wrapped(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) + 1 > width and lines[-1]:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def _way(places: Mapping[str, tuple[float, float, float]]) -> list[str]:
    """The way of a call, in the column on the right: down to the network, and back."""
    x, w = HOUSE + 60.0, WIDTH - HOUSE - 110.0
    top, bottom = places["sampler"][1], places["denoiser"][1] + ROW
    step = (bottom - top) / len(WAY)
    out = [_text(x, 30, "The way of a call, and back", 16, "bold")]
    for i, (folder, call, what) in enumerate(WAY):
        y = top + i * step
        out.append(_box(x, y, w, step - 18, "#fff4ec", CALL))
        out.append(_text(x + 8, y + 17, call, 12, "bold"))
        out.append(_text(x + 8, y + 33, f"{folder}{'.py' if folder == 'problem' else '/'}: {what}", 11, fill="#52606d"))
        if i:
            out.append(_arrow([(x + w / 2, y - 18), (x + w / 2, y)], CALL, "call"))
    last, right = bottom - step + 20, x + w
    out.append(_arrow([(right, last), (right + 24, last), (right + 24, top + 20), (right, top + 20)], CALL, "call"))
    return out


def table(root: Path = ROOT) -> str:
    """The rows as text: each folder, its question, and the folders it imports."""
    graph = folder_graph(modules(root))
    lines = []
    for row in ROWS:
        for folder, question in row.items():
            may = ", ".join(sorted(graph[folder])) if folder in graph else "to come"
            lines.append(f"{folder:13} {question:58} {may}")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="print the rows instead of drawing them")
    if parser.parse_args().table:
        print(table())
    else:
        PICTURE.write_text(draw(), encoding="utf-8")
        print(f"wrote {PICTURE}")
