"""Claim: the figures of the code that `benchmarks/code_statistics.py` prints are those that one counts by hand."""

from __future__ import annotations

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "code_statistics.py"

BASE = '''
"""The lowest."""
def many(a, b, c, d, /, e, f, *rest, g, h, **options):
    """Two lines

    of text."""
    if a:
        return 1
    elif b:
        return 2
    else:
        for x in c:
            with d:
                return 3
    return 4

class Thing:
    def seven(self, a, b, c, d, e, f, g): pass  # noqa: D102, PLR0913 - the point of it
    def other(self): return 1  # type: ignore[no-any-return]
    async def inner(self):
        def deep():
            while True:
                try:
                    pass
                except ValueError:
                    if self:
                        pass  # type: ignore  # as said
'''


def test_a_package_of_known_figures_is_measured(tmp_path):
    spec = importlib.util.spec_from_file_location("code_statistics", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    folder = tmp_path / "thing"
    (folder / "low").mkdir(parents=True)
    for name, text in {
        "__init__": "from thing.top import f\n",
        "top": "import thing.low.base\nfrom thing.low import base, side\n",
        "low/__init__": "",
        "low/base": BASE,
        "low/side": "def f():\n    from thing import top\n",
    }.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    found = script.measure(folder)
    assert found["lines"] == BASE.count("\n") + 5
    assert found["modules"] == {"thing": 1, "thing/low": 2}
    assert found["functions"] == 6
    assert found["longest"]["thing.low.base.many"] == 10
    assert found["parameters"] == {"thing.low.base.many": 8}
    assert found["nested"] == {"thing.low.base.many": 3, "thing.low.base.Thing.inner.deep": 3}
    assert found["ignores"] == {
        "noqa, with a reason": 1,
        "type: ignore, without a reason": 1,
        "type: ignore, with a reason": 1,
    }
    assert found["depth of imports"] == 3
