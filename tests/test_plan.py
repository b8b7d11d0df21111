"""Claim: a training is told by flags or by a file of the same names, flags first; what does not fit is named."""

from __future__ import annotations

import argparse
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from sde_diffusion.cli import main as cli
from sde_diffusion.cli.plan import toml
from sde_diffusion.cli.plan.config import add_options, check_same, plan_of, read_config, write_config
from sde_diffusion.cli.plan.opened import parted
from sde_diffusion.cli.plan.options import GROUPS, OPTIONS, Plan, names_of

FULL = Plan(
    data=Path("/x.csv"),
    cond=("a,b", "label=kind", "image=/y.npy"),
    size=8,
    scale="quantile",
    sde="/my.py:Mine",
    sde_args={"top": 3.5, "name": 'of "words"', "on": True},
    kind="noise",
    learn_variance=True,
    net="dit",
    net_args={"patch": [1, 2], "inner": {"a": 1}},
    width=64,
    start=Path("/from"),
    shrink=2,
    latent=Path("/latent"),
    codec_steps=12,
    codec_channels=2,
    codec_factor=4,
    codec_width=16,
    low_res=2,
    augment=0.3,
    control="edges",
    lora=4,
    base=Path("/base"),
    steps=7,
    batch_size=9,
    lr=1e-5,
    weight="p2",
    times="likelihood",
    accumulate=3,
    precision="bf16",
    out=Path("/out"),
    val=Path("/val.csv"),
    patience=0,
    save_every=4,
    keep=2,
    log_with="tensorboard",
    previews=5,
    device="cuda:1",
    seed=11,
    threads=2,
)


def plan(*words: str, file: Path | None = None) -> Plan:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return plan_of(vars(parser.parse_args(words)), file)


def test_every_field_of_a_plan_is_an_option_and_every_option_a_field():
    assert sorted(OPTIONS) == sorted(each.name for each in fields(Plan))
    names = [name for key in OPTIONS for name in names_of(key)]
    assert len(names) == len(set(names))


def test_help_groups_the_options_and_shows_defaults(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    said = capsys.readouterr().out
    places = [said.index(f"\n{title}:\n") for title in GROUPS]
    assert places == sorted(places)
    for title, group in GROUPS.items():
        section = said[said.index(f"\n{title}:\n") :]
        assert all(section.index(f"  --{name}") for key in group for name in names_of(key)[:1])
    assert "(default: 3000)" in said
    assert "(default: None)" not in said


def test_a_plan_that_is_written_down_is_read_again_as_it_was(tmp_path):
    file = tmp_path / "config.toml"
    for each in (FULL, replace(Plan(), data=Path("/x"), val=0.25), Plan(sde_args={"a": "\x7f \\ \n ü"})):
        file.write_text(write_config(each), encoding="utf-8")
        assert plan_of({}, file) == each


def test_neither_resume_nor_overwrite_is_written_down():
    text = write_config(replace(FULL, resume=True))
    assert text == write_config(replace(FULL, overwrite=True)) == write_config(FULL)


def test_paths_are_written_down_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = write_config(Plan(data=Path("x.csv"), net="my.py:Net", cond=("context=c.npy", "a=b")))
    assert f'data = "{tmp_path / "x.csv"}"' in text
    assert f'net = "{tmp_path / "my.py"}:Net"' in text
    assert f'cond = ["context={tmp_path / "c.npy"}", "a=b"]' in text


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('data = "x.csv"\ncond = "a"\nsteps = 5\nhidden = 9\nlr = 1\nval = 0\n[net-args]\nlayers = 2\n')
    found = plan("--steps", "6", "--cond", "b", "--cond", "label", file=file)
    assert found == Plan(Path("x.csv"), ("b", "label"), steps=6, width=9, lr=1.0, val=0.0, net_args={"layers": 2})


BAD_FILES = [
    ("step = 5", "unknown key 'step', did you mean 'steps'?"),
    ("batch_size = 5", "unknown key 'batch_size', did you mean 'batch-size'?"),
    ("zzz = 5", "unknown key 'zzz'; sde-diffusion train --help lists them"),
    ("[training]\nsteps = 5", "unknown key 'training'"),
    ("steps = ", "is no TOML: "),
    ("steps = 0", "steps: must be at least 1, got 0"),
    ("steps = 1.5", "steps: wanted a whole number, got 1.5, a number with a point"),
    ("steps = [1]", "steps: wanted a whole number, got [1], a list"),
    ("lr = {a = 1}", "lr: wanted a number, got {'a': 1}, a table"),
    ("lr = 'x'", "lr: wanted a number, got 'x', a string"),
    ("lr = 2026-01-01", "lr: wanted a number, got datetime.date(2026, 1, 1), a date or time"),
    ("cond = ['a', 1]", "cond: wanted a string, or a list of them, got 1, a whole number"),
    ("val = true", "val: wanted a number or a string, got True, a truth value"),
    ("sde-args = 3", "sde-args: wanted a table, or a string 'NAME=VALUE, ...', got 3, a whole number"),
    ("kind = 'x'", "kind: wanted one of noise, data, score, velocity, v, edm, got 'x'"),
    ("resume = 1", "resume: wanted true or false, got 1"),
    ("width = 8\nhidden = 8", "'hidden' is given twice, under two of its names"),
    ("val = 1.0", "val: wanted a part of the data, 0 <= part < 1, auto, or a file, got 1.0"),
    ("device = 'gpu'", "device: wanted auto, cpu, cuda, cuda:1 or mps, got 'gpu'"),
    ("net-args = 'layers: 6'", "wanted arguments such as 'layers=6, multipliers=[1, 2]', words in quotes"),
    ("data = ''", "data: is empty"),
]


@pytest.mark.parametrize(("text", "message"), BAD_FILES, ids=[text for text, _ in BAD_FILES])
def test_a_file_that_does_not_fit_is_refused_by_the_name_of_the_key(text, message, tmp_path):
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_config(tmp_path / "c.toml")


SAMPLES = {"'8'": str, "true": bool, "8": int, "8.5": float, "[8]": list, "{a = 8}": dict, "[[8]]": list}


@pytest.mark.parametrize("key", OPTIONS)
def test_every_option_of_a_file_takes_its_own_types_alone(key, tmp_path):
    example = getattr(FULL, key)
    own: set[type] = {str} if isinstance(example, Path | tuple) else {type(example)}
    own |= {int, float} if key in ("lr", "val", "augment") else {str} if isinstance(example, dict) else set()
    name = names_of(key)[0]
    for text, kind in SAMPLES.items():
        (tmp_path / "c.toml").write_text(f"{name} = {text}")
        if kind not in own:
            with pytest.raises(ValueError, match=rf"c.toml: {name}: wanted .*, got "):
                read_config(tmp_path / "c.toml")


def test_a_file_that_is_not_there_is_told_from_data(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no configuration file .*x.csv; data are given as --data"):
        read_config(tmp_path / "x.csv")


def test_a_run_goes_on_with_the_plan_that_it_was_begun_with_alone(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text(write_config(FULL))
    for free in ({"device": "cpu"}, {"threads": 1}, {"save_every": 1}, {"out": Path("/else")}, {"previews": 0}):
        check_same(replace(FULL, **free), file)
    others: list[tuple[dict[str, Any], str]] = [
        ({"steps": 8}, "--steps is 8, but the run in .* was begun with 7: go on with the same"),
        ({"start": None}, '--from is unset, but the run in .* was begun with "/from"'),
        ({"cond": ("a",)}, r'--cond is \["a"\]'),
        ({"net_args": {}}, "--net-args is unset"),
    ]
    for change, message in others:
        with pytest.raises(ValueError, match=message):
            check_same(replace(FULL, **change), file)


@pytest.mark.parametrize(
    ("words", "inside", "beside"),
    [
        ((), None, {}),
        (("a,b", "label"), ["a", "b", "label"], {}),
        (("label=kind", "a, b"), {"label": "kind", "context": ["a", "b"]}, {}),
        (("context=a,b", "label"), {"context": ["a", "b"], "label": "label"}, {}),
        (("context=c.npy", "label"), ["label"], {"context": Path("c.npy")}),
    ],
)
def test_conditions_are_columns_or_files_by_name(words, inside, beside):
    assert parted(words) == (inside, beside)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("a,,b",), "--cond a,,b: a name is empty"),
        (("=a",), "--cond =a: wanted NAME"),
        (("context=",), "--cond context=: wanted NAME"),
        (("context=a", "context=b"), "each NAME once"),
        (("context=a", "b"), "--cond b beside context=a: name all of them there"),
    ],
)
def test_conditions_that_are_not_said_clearly_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        parted(words)


def test_numbers_words_lists_and_mappings_are_written_as_toml_has_them():
    for of in (True, 3, 1e-7, 'a "b" \t ü', [1, ["x"]], {"a b": {"c": [1.5]}}):
        assert toml.loads(f"x = {toml.value(of)}") == {"x": of}
