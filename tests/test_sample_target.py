"""Claim: `sample` guides, fills in and weighs in the units of the data, and what does not fit is one line.

The exact model is of correlated Gaussian data, which it knows scaled: the law of the rest given a part, and how likely
that part is, are closed forms in the units of the data.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import model

from sde_diffusion import Network, PerSample, SDESampler, predict
from sde_diffusion.cli import main as cli
from sde_diffusion.cli.sample import sample_file
from sde_diffusion.cli.target.draw import Draw
from sde_diffusion.cli.target.known import Known, read_known
from sde_diffusion.cli.target.options import SYSTEMS, Target, model_of
from sde_diffusion.data import Quantile, Standardise
from sde_diffusion.guidance import Guided, Mask, Posterior
from sde_diffusion.sampler.distributed import read_samples
from sde_diffusion.sde import schedules
from sde_diffusion.solvers import SDEDPMSolverPP
from sde_diffusion.training import load_checkpoint, save_checkpoint
from sde_diffusion.training.checkpoint import Checkpoint

MEAN, STD, RHO = torch.tensor([3.0, -200.0]), torch.tensor([2.0, 50.0]), 0.8
COV = torch.tensor([[1.0, RHO], [RHO, 1.0]])
SDE = schedules.EDMSDE(0.002, 80.0)
SEEN = -120.0  # of the second column: 1.6 standard deviations above its mean


def mean_of(x, t):
    """The mean of data from N(0, COV) given a state; `t` is sigma."""
    eye = torch.eye(2, dtype=x.dtype)
    return torch.linalg.solve(COV.to(x) + t[:, None, None] ** 2 * eye, x[:, :, None])[:, :, 0] @ COV.to(x)


def exact(scaling=None) -> Checkpoint:
    net = Network(mean_of, SDE, predict.data, clock=lambda at: at.sigma, shape=(2,))
    return Checkpoint(net, Standardise(MEAN, STD) if scaling is None else scaling, {}, 0, (0.002, 80.0), {})


def call(*words: object) -> int:
    return cli.main([str(word) for word in words])


def error_of(capsys: Any, *words: object) -> str:
    """The one line of a command that must fail."""
    capsys.readouterr()
    assert call(*words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0].removeprefix("sde-diffusion: error: ")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Checkpoints: of points of three classes, of the same that was never trained without one, and of points alone."""
    out, more = tmp_path_factory.mktemp("models"), {"data_range": [-400.0, 20.0]}
    scaling = Standardise(MEAN, STD)
    kinds: dict[str, dict[str, Any]] = {
        "labelled": {"classes": 3},
        "never": {"classes": 3, "label_drop": 0.0},
        "plain": {},
    }
    for name, options in kinds.items():
        save_checkpoint(out / name, model(**options), scaling=scaling, extra=more)
    return out


def saved(folder: Path, name: str, known: Any, mask: Any = None) -> Path:
    path = folder / name
    np.save(path, known) if mask is None else np.savez(path, known=known, mask=mask)
    return path


# ------------------------------------------------------------------------------------------------------- what is known


@pytest.mark.parametrize("form", ["npy", "npz"])
def test_what_is_left_open_follows_the_law_given_what_is_known_in_the_units_of_the_data(form, tmp_path):
    if form == "npy":
        file = saved(tmp_path, "known.npy", [math.nan, SEEN])
    else:
        file = saved(tmp_path, "known.npz", [math.nan, SEEN], [False, True])
    n, noise, lines = 1000, 25.0, list[str]()
    target = Target(inpaint=file, noise=noise)
    sample_file(tmp_path, tmp_path / "x.npy", draw=Draw(n, target=target), say=lines.append, loaded=[exact()])
    x = np.load(tmp_path / "x.npy").astype("float64")
    cov = (STD[:, None] * COV * STD).double().numpy()
    gain = cov[:, 1] / (cov[1, 1] + noise**2)
    mean, var = MEAN.numpy() + gain * (SEEN + 200), np.diag(cov) - gain * cov[1]
    assert np.all(np.abs(x.mean(0) - mean) < 4 * np.sqrt(var / n) + 5e-2 * np.sqrt(var))
    assert np.all(np.abs(x.var(0) / var - 1) < 4 * np.sqrt(2 / n) + 5e-2)
    assert "given 1 of 2 entries, with noise of 25, in the units of the data: Posterior(model, Mask(1 of 2)" in lines[0]


def test_particles_tell_how_likely_that_is_in_the_units_of_the_data(tmp_path):
    file, lines = saved(tmp_path, "known.npy", [5.0, SEEN]), list[str]()
    target = Target(inpaint=file, noise=1.5, particles=64)
    sample_file(tmp_path, tmp_path / "x.npz", draw=Draw(50, target=target), say=lines.append, loaded=[exact()])
    cov = (STD[:, None] * COV * STD + 1.5**2 * torch.eye(2)).double()
    law = torch.distributions.MultivariateNormal(MEAN.double(), cov)
    wanted = float(law.log_prob(torch.tensor([5.0, SEEN], dtype=torch.float64)))
    with np.load(tmp_path / "x.npz") as found:
        assert found["x"].shape == (50, 2)
        off, slack = float(found["log_evidence"]) - wanted, 6 * float(found["standard_error"]) + 0.02  # of 4 systems
        print(off, slack)
        assert abs(off) < slack < 0.5
        assert 2 < found["effective"] <= SYSTEMS * 64
    assert "log p(known) = " in lines[1]
    assert "nats, in the units of the data, 95 %: " in lines[1]


def test_by_default_the_noise_is_a_part_of_the_spread_and_is_told(tmp_path, capsys, folder):
    file = saved(tmp_path, "known.npy", [[4.0, math.nan], [1.0, math.nan]])
    words = ("--inpaint", file, "--steps", 4, "--out", tmp_path / "x.npz")
    assert call("sample", "--checkpoint", folder / "labelled", *words) == 0
    told = capsys.readouterr().out
    assert "noise of 0.05 standard deviations of the data, 0.1 in its units, as --noise is unset" in told
    loaded = load_checkpoint(folder / "labelled")
    posterior = Posterior(loaded.model, Mask(torch.tensor([True, False])), 0.05)
    y = torch.tensor([[0.5], [-1.0]], dtype=torch.float64)
    z = SDESampler(posterior.sde, posterior, solver=SDEDPMSolverPP(2), steps=4).sample(2, seed=0, batch_size=256, y=y)
    with np.load(tmp_path / "x.npz") as found:
        assert list(found) == ["x"]  # no class is asked for, unless one is given
        assert np.array_equal(found["x"], loaded.scaling.undo(z).numpy())


def test_what_is_known_is_brought_to_the_scale_of_quantiles_with_its_slopes(tmp_path):
    x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0)).exp()
    scaling = Quantile.of(x)
    known = read_known(saved(tmp_path, "rows.npy", x[:3].numpy()), None, exact(scaling))
    assert torch.equal(known.y, scaling.apply(x[:3], torch.float64))
    assert torch.allclose(known.log_slope, scaling.log_jacobian(x[:3]))
    assert known.noise == 0.05
    half = read_known(saved(tmp_path, "half.npy", [math.nan, 2.0]), None, exact(scaling))
    h = 1e-6
    ends = scaling.apply(torch.tensor([[1.0, 2.0 - h], [1.0, 2.0 + h]], dtype=torch.float64), torch.float64)[:, 1]
    assert float(half.log_slope) == pytest.approx(math.log(float(ends[1] - ends[0]) / (2 * h)), abs=1e-4)
    with pytest.raises(ValueError, match="--noise: the columns were scaled by their quantiles"):
        read_known(tmp_path / "half.npy", 0.1, exact(scaling))


def test_values_of_another_unit_are_warned_of(tmp_path, folder):
    file = saved(tmp_path, "known.npy", [900.0, math.nan])
    with pytest.warns(UserWarning, match="what is known lies from 900 to 900, and the training saw -400 to 20"):
        read_known(file, None, load_checkpoint(folder / "plain"))


def test_many_known_entries_are_led_to_by_one_product_with_the_jacobian_and_weighed_by_another_rule():
    mask, lines = torch.arange(32) < 17, list[str]()
    loaded = replace(exact(), model=Network(lambda x, t: x, SDE, predict.edm, shape=(32,)))
    known = Known(mask, torch.zeros(17), 0.1, torch.zeros(1), "noise")
    for particles, rule in ((None, "DPS(zeta=1.0)"), (9, "PseudoInverse(r2=None)")):
        target = Target(inpaint=Path("x.npy"), particles=particles)
        assert repr(model_of(target, known, loaded, {}, lines.append)) in lines[-1]
        assert f"rule={rule}" in lines[-1]
    large = replace(loaded, model=Network(lambda x, t: x, SDE, predict.edm, shape=(300,)))
    target = Target(inpaint=Path("x.npy"), rule="moments")
    known = replace(known, mask=torch.ones(300, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"--inpaint, --rule moments: Moments\(\) takes a product with the Jacobian"):
        model_of(target, known, large, {}, lines.append)


# ----------------------------------------------------------------------------------------------------------- guidance


def test_only_conditions_that_are_left_out_are_said_to_guide(folder):
    loaded = load_checkpoint(folder / "labelled")
    lines: list[str] = []
    model_of(Target(guidance=2.0), None, loaded, {"control": None, "label": None}, lines.append)
    assert lines[0].startswith("guided by label: Guided(")


def test_guided_samples_are_those_of_the_guided_model_bit_for_bit(tmp_path, capsys, folder):
    words = ("sample", "--checkpoint", folder / "labelled", "--n", 6, "--steps", 5)
    options = ("--guidance", 2, "--guidance-low", 0.1, "--guidance-high", 5)
    assert call(*words, *options, "--out", tmp_path / "x.npz") == 0
    told = capsys.readouterr().out
    assert "guided by label: Guided(model, w=2.0, low=0.1, high=5.0)" in told
    loaded = load_checkpoint(folder / "labelled")
    guided, label = Guided(loaded.model, 2.0, low=0.1, high=5.0), torch.arange(6) % 3
    z = SDESampler(guided.sde, guided, steps=5).sample(6, seed=0, label=PerSample(label))
    with np.load(tmp_path / "x.npz") as found:
        assert np.array_equal(found["x"], loaded.scaling.undo(z).numpy())
        assert found["label"].tolist() == label.tolist()
    for name, more in {"a.npy": ("--guidance", 1), "b.npy": ()}.items():
        assert call(*words, *more, "--out", tmp_path / name) == 0
    assert np.array_equal(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"))


def test_a_folder_knows_the_guidance_and_what_is_known_and_is_not_gone_on_with_by_another(tmp_path, capsys, folder):
    file, other = (saved(tmp_path, f"{v}.npy", [v, math.nan]) for v in (1.0, 2.0))
    words = ("sample", "--checkpoint", folder / "labelled", "--n", 4, "--steps", 2, "--label", 1)
    first = (*words, "--guidance", 2, "--rule", "dps", "--inpaint", file, "--out", tmp_path / "x")
    assert call(*first) == 0
    assert call(*first) == 0  # which is finished
    about = read_samples(tmp_path / "x").about
    assert about["sampler"].endswith(
        " with Posterior(model, Mask(1 of 2), noise=0.05, rule=DPS(zeta=1.0)), Guided(w=2.0)"
    )
    scale = error_of(capsys, *words, "--guidance", 3, "--rule", "dps", "--inpaint", file, "--out", tmp_path / "x")
    assert "holds samples with sampler = " in scale
    seen = error_of(capsys, *words, "--guidance", 2, "--rule", "dps", "--inpaint", other, "--out", tmp_path / "x")
    assert "holds samples with conditions = " in seen


def test_particles_make_guidance_the_law_that_it_stands_for(tmp_path, capsys, folder):
    words = ("sample", "--checkpoint", folder / "labelled", "--label", 1, "--guidance", 2, "--particles", 16)
    assert call(*words, "--steps", 6, "--n", 5, "--out", tmp_path / "x.npz") == 0
    told = capsys.readouterr().out
    assert "log of the integral of p(x | condition)^W p(x)^(1 - W) = " in told
    with np.load(tmp_path / "x.npz") as found:
        assert found["x"].shape == (5, 2)
        assert np.isfinite([found[name] for name in ("log_evidence", "standard_error", "solver_error")]).all()
        assert found["label"].tolist() == [1] * 5


# ------------------------------------------------------------------------------------------------------------- errors

NAN, HALF = math.nan, [math.nan, 1.0]
GUIDED = ("--guidance", "2")


@pytest.mark.parametrize(
    ("which", "words", "message"),
    [
        ("labelled", ("--guidance", "-1"), "--guidance is a scale and must be finite and at least 0, with 1 for none"),
        ("labelled", ("--guidance", "nan"), "--guidance is a scale and must be finite"),
        (
            "never",
            GUIDED,
            "--guidance 2: the model has no unconditional branch, its network was built with label_drop=0: train one "
            "with --net-args 'label_drop=0.1'",
        ),
        ("plain", GUIDED, "--guidance 2: the model takes no condition that it could be guided by"),
        ("labelled", (*GUIDED, "--label", "none"), "--guidance 2 has no condition to guide by: give --label K"),
        ("labelled", ("--guidance-low", "1"), "--guidance-low is of no account without --guidance"),
        (
            "labelled",
            (*GUIDED, "--guidance-low", "2", "--guidance-high", "1"),
            "low and high are noise levels sigma/alpha, wanted 0 <= low < high, got 2.0 and 1.0",
        ),
        ("plain", ("--noise", "1"), "--noise is of no account without --inpaint"),
        ("plain", ("--rule", "dps"), "--rule is of no account without --inpaint"),
        ("plain", ("--particles", "9"), "neither is given: the samples of the model itself need none"),
        ("labelled", (*GUIDED, "--particles", "9"), "--particles draw from one law, and label differs"),
        (
            "labelled",
            (*GUIDED, "--particles", "9", "--guidance-low", "1"),
            "guidance on a part of the noise levels has none: leave --guidance-low and --guidance-high out",
        ),
        (
            "labelled",
            (*GUIDED, "--particles", "9", "--solver", "heun"),
            "--solver is of no account with --particles, which have steps of their own: give --steps",
        ),
    ],
)
def test_what_cannot_be_guided_or_weighed_is_one_line(which, words, message, folder, tmp_path, capsys):
    out = tmp_path / "x.npy"
    assert message in error_of(capsys, "sample", "--checkpoint", folder / which, *words, "--out", out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("known", "mask", "words", "message"),
    [
        (HALF, None, ("--noise", "0"), "--noise must be positive and finite, got 0: what is known is met up to it"),
        ([NAN, NAN], None, (), "nothing in it is known, so that it says nothing: leave --inpaint out"),
        ([1.0, 2.0], [False, False], (), "nothing in it is known"),
        ([1.0, 2.0, 3.0], None, (), "samples have shape (2,), got (3,): wanted that, for all of them, or (n, *(2,))"),
        ([1.0, 2.0], [True], (), "mask has shape (1,), wanted that of a sample, (2,)"),
        ([1.0, 2.0], [0.5, 1.0], (), "mask must hold True and False, or 1 and 0, got torch.float64 of other values"),
        ([NAN, 2.0], [True, True], (), "nan is no value that is known, at entry (0,) of row 0: mask is False"),
        ([math.inf, NAN], None, (), "inf is no value that is known, at entry (0,) of row 0"),
        ([[1.0, NAN], [NAN, 1.0]], None, (), "other entries are known of row 1 than of row 0: give a file for each"),
        ([HALF] * 3, None, ("--n", "4"), "--inpaint has 3 rows, for 4 samples: wanted one row, for all of them"),
        ([HALF] * 2, None, ("--particles", "9"), "--particles draw from one law, and --inpaint has 2 rows"),
        (
            HALF,
            None,
            ("--particles", "9", "--guidance", "2"),
            "--particles set right one of --guidance and --inpaint, and both are given",
        ),
        (["a", "b"], None, (), "it holds <U1, wanted numbers"),
    ],
)
def test_what_is_not_known_as_it_should_be_is_one_line(known, mask, words, message, folder, tmp_path, capsys):
    file, out = saved(tmp_path, "known.npy" if mask is None else "known.npz", known, mask), tmp_path / "x.npy"
    begin = ("sample", "--checkpoint", folder / "labelled", "--inpaint", file)
    assert message in error_of(capsys, *begin, *words, "--out", out)
    assert not out.exists()


def test_files_that_say_nothing_models_without_an_unconditional_branch_and_folders_of_particles_are_one_line(
    folder, tmp_path, capsys
):
    file, out = saved(tmp_path, "known.npy", HALF), ("--out", tmp_path / "x.npy")
    np.savez(tmp_path / "x.npz", x=np.ones(2))
    begin = ("sample", "--checkpoint", folder / "never", "--inpaint")
    assert "there is no file" in error_of(capsys, *begin, tmp_path / "no.npy", *out)
    assert "and this has no known, only x" in error_of(capsys, *begin, tmp_path / "x.npz", *out)
    assert "never trained without a class (label_drop=0)" in error_of(capsys, *begin, file, *out)
    told = error_of(capsys, *begin, file, "--label", 1, "--particles", 9, "--out", tmp_path / "folder")
    assert "--particles draw to one file, .npy, .npz or .png, in one process" in told
    assert not (tmp_path / "folder").exists()
