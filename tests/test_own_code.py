"""Claim: a class of one's own is taken from the file that one names, or an error says what is wrong with it and where;
no checkpoint ever has a file run."""

from __future__ import annotations

import json
import sys
import textwrap

import pytest
import torch
from checkpoints import edit

from sde_diffusion import EDMSDE, Network, SDESampler, predict
from sde_diffusion.training import load_checkpoint, load_class, save_checkpoint, train

MINE = """
    from dataclasses import dataclass

    import beside
    import torch
    from sde_diffusion import GaussianSDE

    runs = []
    runs.append(1)

    class Net(torch.nn.Module):
        def __init__(self, dim, hidden=4):
            super().__init__()
            self.config = {"dim": dim, "hidden": hidden}
            self.layers = torch.nn.Sequential(torch.nn.Linear(dim, hidden), torch.nn.Linear(hidden, dim))

        def forward(self, x, t):
            return self.layers(x)

    @dataclass(frozen=True)
    class Process(GaussianSDE):
        speed: float = beside.SPEED
        t_min: float = 1e-3
        t_max: float = 4.0

        def alpha(self, t):
            return torch.exp(-self.speed * t)

        def sigma(self, t):
            return torch.sqrt(-torch.expm1(-2 * self.speed * t))

    net = Net(2)
"""


@pytest.fixture
def mine(tmp_path):
    """A file of one's own, and what it imports from beside it."""
    path = tmp_path / "my own" / "mine.py"
    path.parent.mkdir()
    path.write_text(textwrap.dedent(MINE))
    (path.parent / "beside.py").write_text("SPEED = 0.5\n")
    yield path
    for name, module in [*sys.modules.items()]:
        if str(path.parent) in str(getattr(module, "__file__", "")):
            del sys.modules[name]


def test_a_net_and_a_process_of_a_file_are_saved_and_loaded_by_that_file(mine, tmp_path):
    Net, Process = load_class(f"{mine}:Net"), load_class(f"{mine}:Process")
    assert sys.modules[Net.__module__].runs == [1]  # once for both
    first = Network(Net(2, hidden=3), Process(0.7), shape=(2,))
    save_checkpoint(tmp_path / "model", first)
    about = json.loads((tmp_path / "model" / "model.json").read_text())
    code = about["net"].pop("code")
    assert about["net"] == {"name": "Net", "file": "mine.py", "fields": {"dim": 2, "hidden": 3}}
    assert code == about["sde"]["code"]
    with pytest.raises(
        ValueError, match=r"names the SDE 'Process', which is not known here.* defined in mine.py: "
    ) as e:
        load_checkpoint(tmp_path / "model")
    assert str(e.value).endswith(
        'load_checkpoint(path, known=[Process]), where load_class("mine.py:Process") takes it from there; '
        "on the command line, --sde mine.py:Process"
    )
    with pytest.raises(ValueError, match=r"names the net 'Net'.*on the command line, --net mine.py:Net$"):
        load_checkpoint(tmp_path / "model", known=[Process])
    second = load_checkpoint(tmp_path / "model", known=[load_class(f"{mine}:{name}") for name in ("Net", "Process")])
    a, b = (SDESampler(m.sde, m, steps=3).sample(2, seed=0) for m in (first.eval(), second.model))
    assert torch.equal(a, b)


def test_a_file_that_was_changed_since_is_named_on_loading_and_on_going_on(mine, tmp_path, recwarn):
    def model():
        torch.manual_seed(0)
        return Network(load_class(f"{mine}:Net")(2), EDMSDE(), predict.edm, shape=(2,))

    x, out = torch.randn(64, 2), tmp_path / "run"
    train(model(), x, steps=2, seed=0, out=out)
    known = [load_class(f"{mine}:Net")]
    load_checkpoint(out, known=known)
    train(model(), x, steps=2, out=out, resume=True)
    assert not [w for w in recwarn if "has been changed" in str(w.message)]
    mine.write_text(mine.read_text().replace("self.layers(x)", "-self.layers(x)"))
    load_checkpoint(out, known=known)  # what was imported is as it was
    assert not [w for w in recwarn if "has been changed" in str(w.message)]
    for name in [name for name in sys.modules if name.startswith("mine_")]:
        del sys.modules[name]  # another process
    with pytest.warns(UserWarning, match=r"mine.py has been changed since .*model.json was saved: the weights fit"):
        load_checkpoint(out, known=[load_class(f"{mine}:Net")])
    with pytest.warns(UserWarning, match=r"mine.py has been changed since .*run was saved"):
        train(model(), x, steps=2, out=out, resume=True)


@pytest.mark.parametrize("file", ["../../evil.py", "a b.py", "/tmp/x.py", 3, ["x.py"], "x" * 100 + ".py", "x.sh"])
def test_a_file_that_a_description_names_is_neither_run_nor_repeated_where_it_is_no_name(file, mine, tmp_path):
    net = load_class(f"{mine}:Net")(2)
    save_checkpoint(tmp_path / "model", Network(net, load_class(f"{mine}:Process")(), shape=(2,)))
    edit(tmp_path / "model", net={"name": "Net", "file": file, "fields": {"dim": 2}})
    with pytest.raises(ValueError, match=r"for a class of your own, load_checkpoint\(path, known=\[Net\]\)$"):
        load_checkpoint(tmp_path / "model", known=[load_class(f"{mine}:Process")])


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("{}", ValueError, "is no name of a class in a file: write it as net.py:Net"),
        ("{}:", ValueError, "write it as net.py:Net"),
        ("{}:not a name", ValueError, "write it as net.py:Net"),
        ("os:system", ValueError, "'os:system' is no name of a class in a file"),
        ("none.py:Net", FileNotFoundError, "there is no file none.py, where the class Net was to be"),
        ("{}:Nett", ValueError, "mine.py has no Nett: it has Net, Process"),
        ("{}:net", TypeError, "net in .*mine.py is a Net, wanted a class: name it, without making one"),
    ],
)
def test_a_name_that_leads_to_no_class_is_refused(name, error, message, mine):
    with pytest.raises(error, match=message):
        load_class(name.format(mine))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\ny = (\n", r"mine.py, line 2: SyntaxError: '\(' was never closed"),
        ("def f():\n    return 1 / 0\n\n\nf()\n", "mine.py, line 2: ZeroDivisionError: division by zero"),
        ("import torch\nimport no_such_thing\n", "mine.py, line 2: ModuleNotFoundError: No module named 'no_such_thin"),
        ("raise SystemExit(3)\n", "mine.py, line 1: SystemExit: 3"),
    ],
)
def test_a_file_that_fails_is_named_with_the_line_and_may_be_tried_again(text, message, mine):
    before = mine.read_text()
    mine.write_text(text)
    with pytest.raises(ImportError, match=message):
        load_class(f"{mine}:Net")
    mine.write_text(before)
    assert load_class(f"{mine}:Net").__name__ == "Net"
    assert str(mine.parent) not in sys.path
