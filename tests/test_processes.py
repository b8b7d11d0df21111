"""Claim: two processes find what one finds, to the last bit, and neither waits for one that is gone."""

from __future__ import annotations

import os
import signal
import socket
import sys
from functools import partial

import pytest
import torch
from checkpoints import model as small
from processes import fork, run_processes, wait

from sde_diffusion import Network, SDESampler, predict
from sde_diffusion.likelihood import Elbo, Estimate, Method, Rademacher
from sde_diffusion.likelihood import elbo as bound
from sde_diffusion.sampler.distributed import elbo, log_prob, sample_to

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # the children start no threads
MODEL = small()
SAMPLER = SDESampler(MODEL.sde, MODEL, steps=2)
N, METHOD = 37, Method(steps=3, trace=Rademacher(2), solver_error=False)
X = SAMPLER.sample(N, seed=5, batch_size=4)


def draw(out, **options):
    return sample_to(SAMPLER, N, out, **({"seed": 5, "batch_size": 4, "shard_size": 8} | options)).tensor()


@pytest.mark.parametrize("name", ["x", "x.npy"])
def test_two_processes_draw_what_one_draws(tmp_path, name):
    found = run_processes(2, lambda rank: draw(tmp_path / name), tmp_path / "run")
    assert all(torch.equal(x, X) for x in found), found


def test_two_processes_weigh_as_one_does(tmp_path):
    x = X[:7]
    chain = torch.tensor([0.01, 0.1, 1.0, 10.0])

    def weigh(rank):
        found = log_prob(SAMPLER, x, batch_size=2, seed=3, method=METHOD)
        below = elbo(MODEL, x, batch_size=2, seed=3, times=chain)
        return found.value, found.latent, found.nfe, below.total

    alone = SAMPLER.log_prob(x, batch_size=2, seed=3, method=METHOD)  # first: what it imports is there then
    (value, latent, nfe, total), other = run_processes(2, weigh, tmp_path / "run")
    assert torch.equal(value, alone.value)
    assert torch.equal(latent, alone.latent)
    assert nfe == alone.nfe
    assert torch.equal(other[0], value)
    assert torch.equal(total, bound(MODEL, x, times=chain, batch_size=2, seed=3).total)
    assert torch.allclose(total, bound(MODEL, x, times=chain, seed=3).total, rtol=1e-5)


def test_an_error_in_one_process_is_told_by_the_other(tmp_path):
    def failing(rank):
        if rank == 1:
            SAMPLER.sample = lambda *args, **kwargs: (_ for _ in ()).throw(OSError("out of memory"))  # type: ignore[method-assign] # here alone
        return draw(tmp_path / "x")

    told, own = run_processes(2, failing, tmp_path / "run")
    assert "RuntimeError: process 1 of 2 has stopped, and so all do; what is finished stays" in told
    assert "It said: OSError: out of memory" in told
    assert own.rstrip().endswith("OSError: out of memory")
    assert torch.equal(draw(tmp_path / "x"), X)


def test_a_process_that_is_killed_stops_the_other_and_another_number_of_them_goes_on(tmp_path):
    def killed(rank):
        sample = SAMPLER.sample

        def dying(*args, **kwargs):
            if kwargs["seed"] > 5 + 16:
                os.kill(os.getpid(), signal.SIGKILL)
            return sample(*args, **kwargs)

        if rank == 1:
            SAMPLER.sample = dying  # type: ignore[method-assign] # in this process alone
        return draw(tmp_path / "x")

    told, code = run_processes(2, killed, tmp_path / "run")
    assert code == -signal.SIGKILL
    assert "RuntimeError: process 0 of 2 has lost another one, which was killed" in told
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "x").glob("shard-*.npy")}
    assert len(before) == 3
    assert torch.equal(draw(tmp_path / "x"), X)
    assert all(path.stat().st_mtime_ns == at for path, at in before.items())


def test_processes_that_were_given_different_things_are_refused(tmp_path):
    for error in run_processes(2, lambda rank: draw(tmp_path / "x", seed=5 + rank), tmp_path / "run"):
        assert "ValueError: process 1 was given another seed than process 0, 6 and not 5" in error
    for error in run_processes(2, lambda rank: draw(tmp_path / "x", batch_size=rank), tmp_path / "other"):
        assert "batch_size must be at least 1, got 0" in error


def test_an_estimate_is_the_same_in_batches_of_any_size():
    found = bound(MODEL, X, times=[0.01, 0.1, 1.0, 10.0], estimate=Estimate(levels=2), seed=0, batch_size=5)
    whole = bound(MODEL, X, times=[0.01, 0.1, 1.0, 10.0], estimate=Estimate(levels=2), seed=0)
    torch.testing.assert_close(found.total, whole.total, rtol=1e-4, atol=1e-4)
    assert found.nfe == whole.nfe
    assert found.transitions.shape == whole.transitions.shape


def test_a_bound_that_is_lost_is_told_by_its_row_in_all_of_the_data():
    def net(x, t, level):
        return 0.1 * x + level[:, None]

    model, level = Network(net, MODEL.sde, predict.edm, shape=(2,)), torch.zeros(7)
    level[5] = float("nan")
    with pytest.warns(UserWarning, match="counted from row 3 on: 1 of 3 bounds are NaN or inf, .* first for row 2"):
        found = bound(model, X[:7], times=iter([0.01, 0.1, 1.0]), seed=0, batch_size=3, level=level)
    assert found.total.isnan().nonzero().flatten().tolist() == [5]


@pytest.mark.slow
def test_processes_that_a_launcher_has_started_are_joined(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))

    def started(rank):
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        torch.save(draw(tmp_path / "x"), tmp_path / f"{rank}.pt")

    children = [fork(partial(started, rank), tmp_path / "error") for rank in range(2)]
    assert [wait(child) for child in children] == [0, 0], (tmp_path / "error").read_text()
    assert all(torch.equal(torch.load(tmp_path / f"{rank}.pt"), X) for rank in range(2))


def test_several_processes_without_accelerate_are_told_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ImportError, match=r"several processes are joined by accelerate, .* sde-diffusion\[train\]"):
        draw(tmp_path / "x")


def test_parts_of_different_bounds_are_not_joined():
    one, two = (bound(MODEL, X[:2], times=times, seed=0) for times in ([0.01, 1.0], [0.01, 0.1, 1.0]))
    with pytest.raises(ValueError, match=r"wanted parts of one bound, got \(transitions, dim, discrete\) = "):
        Elbo.join([one, two])
