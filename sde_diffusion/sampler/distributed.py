r"""Sampling and weighing at scale: over the processes of a run, shard by shard, to be gone on with after a kill.

Sample $i$ has the stream `seed + i`. The samples are cut into shards at multiples of `shard_size`, and each shard into
batches at multiples of `batch_size`, whoever draws them: of the shards that are not finished, process $r$ of $R$ takes
every $R$-th. So the array is the same to the last bit for any number of processes and of kills, and the one that
`sampler.sample(n, seed=seed, batch_size=batch_size)` gives. Another `batch_size` may round the matrix products of a
network otherwise.

Several processes are one program started several times, by `accelerate launch` or `torchrun`.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from sde_diffusion._checks import check_count, check_flag, check_state
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.chunks import counted_from
from sde_diffusion.denoiser.conditions import Conditions, check_options
from sde_diffusion.likelihood import bound
from sde_diffusion.likelihood.exact import OPTIONS, Method
from sde_diffusion.likelihood.result import Elbo, LogProb
from sde_diffusion.likelihood.route import Density, LikelihoodWarning
from sde_diffusion.noise.seeds import seed_list
from sde_diffusion.noise.sources import NoiseSource, Streams
from sde_diffusion.sampler._job import Job, Scaling, form_of
from sde_diffusion.sampler._processes import Processes
from sde_diffusion.sampler.base import Sampler
from sde_diffusion.sampler.sampler import SDESampler, kept
from sde_diffusion.sampler.shards import Shards, shards_of
from sde_diffusion.sampler.stored import Samples, begun, finish, promised, read_samples
from sde_diffusion.training.run.bar import bar_of
from sde_diffusion.training.store import DamagedWarning

__all__ = ["Samples", "elbo", "log_prob", "read_samples", "sample_to"]

T = TypeVar("T")
BATCH = 256
ONLY_HERE = {"x_T": "sampler.sample(x_T=...)", "grad": "sampler.sample(grad=True)"}
"""Options of `sample` that a job has not, and how they are written."""


def sample_to(
    sampler: Sampler,
    n: int,
    out: str | Path,
    *,
    seed: int = 0,
    batch_size: int = BATCH,
    shard_size: int | None = None,
    scaling: Scaling | None = None,
    noise: Callable[..., NoiseSource] = Streams,
    nonfinite: str = "raise",
    progress: bool = False,
    **cond: Any,
) -> Samples:
    """Draws `n` samples to the disk, over all processes of the run; the same call goes on after a kill.

    Args:
        sampler: An `SDESampler` or another `Sampler`, which draws them, in each process on its own device.
        n: Number of samples.
        out: A folder, new or empty or of this same job, for `shard-000000.npy` and on; or a file, `x.npy`.
        seed: `k` gives sample `i` the random stream `k + i`.
        batch_size: Samples in flight at once.
        shard_size: Samples in one shard, which is what a kill loses at most in each process: a multiple of
            `batch_size`; by default the smallest that makes at most 1,000 shards.
        scaling: What samples are led back to data by, such as `data.Standardise`; as they are without.
        noise: As in `SDESampler.sample`.
        nonfinite: As in `SDESampler.sample`: `"raise"`, or `"keep"`, which writes them as NaN.
        progress: Shows a progress bar, in the first process.
        **cond: As in `SDESampler.sample`, all of them in every process; a shard is drawn with its own rows.

    Returns:
        The samples, as `read_samples` finds them.

    Raises:
        ValueError: A place that holds something else, samples of another job (which differs in what), no room,
            or an argument that does not fit: all before any work.
        TypeError: A condition that is neither tensor, array, number, string, None, nor a list or mapping of such.
        BlockingIOError: Another job writes there.
        RuntimeError: Another process has stopped.

    Warns:
        DamagedWarning: Shards that are not as they were written, and are drawn again.
    """
    run = Processes.of_run()
    check_flag(progress, "progress")
    with run.together():
        check_options(cond, ONLY_HERE)
        kept(nonfinite)
        form = form_of(sampler, n, seed, batch_size, shard_size, scaling)
        given = sampler.conditions(cond, n)
        if batch_size < n:
            given.check_apart(f"in batches of {batch_size}")
        job = Job(sampler, form, int(seed), batch_size, scaling, noise, nonfinite, given)
        about, shards = job.about(cond), shards_of(out, form)
    _check_same(run, about)
    with _held(run, shards, about):
        found = _finished(run, shards)
        missing = [k for k in range(form.count) if k not in found]
        own: dict[int, str] = {}
        done, shown = n - sum(map(form.size, missing)), progress and run.rank == 0
        with bar_of(n, done, shown, "sampling", "sample") as bar:
            for start in range(0, len(missing), run.count):
                these = missing[start : start + run.count]
                with run.together():
                    if run.rank < len(these):
                        own[these[run.rank]] = shards.write(these[run.rank], job.draw(these[run.rank]))
                bar.update(sum(map(form.size, these)))
        for drawn in run.gather(own):
            found |= drawn
        run.first(partial(finish, shards, about, found))
    return read_samples(out)


def log_prob(
    sampler: SDESampler,
    x0: Tensor,
    *,
    batch_size: int = BATCH,
    seed: int | None = 0,
    density: Density = Density(),
    method: Method = Method(),
    progress: bool = False,
    **cond: Any,
) -> LogProb:
    """The log-likelihood of data, over all processes of the run: `sampler.log_prob`, in batches.

    Args:
        sampler: As for `likelihood.log_prob`.
        x0: Data, shape `(B, *)`, all of them in every process.
        batch_size: Rows in one solve.
        seed: `k` gives row `i` the probes of stream `k + i`.
        density: As in `likelihood.log_prob`.
        method: As in `likelihood.log_prob`.
        progress: Shows a progress bar, in the first process.
        **cond: As in `likelihood.log_prob`.

    Returns:
        All rows in order, in every process, on the CPU and without a graph.

    Raises:
        TypeError: No `SDESampler`.
        RuntimeError: Another process has stopped.
    """

    def weigh(x: Tensor, seeds: list[int], part: dict[str, Any]) -> LogProb:
        return sampler.log_prob(x, seed=seeds, density=density, method=method, cond=part).detach().cpu()

    check_options(cond, OPTIONS)
    given: object = sampler
    if not isinstance(given, SDESampler):
        raise TypeError(
            f"sampler must be an SDESampler, whose log_prob is exact, got {type(given).__name__}: the density of what "
            "a LatentSampler draws has a bound, latent.elbo"
        )
    return LogProb.join(_in_batches(weigh, sampler.model, x0, batch_size, seed, cond, check_flag(progress, "progress")))


def elbo(
    model: Denoiser,
    x0: Tensor,
    *,
    batch_size: int = BATCH,
    seed: int | None = 0,
    continuous: bool = False,
    **options: Any,
) -> Elbo:
    """The variational bound of data, over all processes of the run: `likelihood.elbo`, in batches.

    Args:
        model: As for `likelihood.elbo`.
        x0: Data, shape `(B, *)`, all of them in every process.
        batch_size: Rows of the data at once.
        seed: `k` gives row `i` the stream `k + i`.
        continuous: Takes `likelihood.continuous_elbo` instead.
        **options: Options of the bound, and conditions of the model.

    Returns:
        All rows in order, in every process.

    Raises:
        RuntimeError: Another process has stopped.
    """
    call: Any = bound.continuous_elbo if check_flag(continuous, "continuous") else bound.elbo
    named = inspect.signature(call).parameters.values()
    own = {p.name: options.pop(p.name) for p in named if p.kind is p.KEYWORD_ONLY and p.name in options}
    check_options(options, bound.OPTIONS)

    def weigh(x: Tensor, seeds: list[int], part: dict[str, Any]) -> Elbo:
        found: Elbo = call(model, x, seed=seeds, cond=part, **own)
        return found

    return Elbo.join(_in_batches(weigh, model, x0, batch_size, seed, options))


def _in_batches(
    weigh: Callable[[Tensor, list[int], dict[str, Any]], T],
    model: object,
    x0: Tensor,
    batch_size: int,
    seed: int | None,
    cond: Mapping[str, Any],
    progress: bool = False,
) -> list[T]:
    """What is found for each batch, in order, each in one of the processes."""
    run = Processes.of_run()
    with run.together():
        n = len(check_state(x0, "x0"))
        size = check_count(batch_size, "batch_size")
        given = Conditions.of(model, cond, n)
        if size < n:
            given.check_apart(f"in batches of {size}")
    seeds = run.first(lambda: seed_list(seed, n))
    batches = [slice(i, min(i + size, n)) for i in range(0, n, size)]
    found: list[T] = []
    with bar_of(n, 0, progress and run.rank == 0, "likelihood", "sample") as bar:
        for start in range(0, len(batches), run.count):
            these = batches[start : start + run.count]
            part: list[T] = []
            with run.together():
                if run.rank < len(these):
                    rows = these[run.rank]
                    with counted_from(rows.start, LikelihoodWarning, UserWarning):
                        part = [weigh(x0[rows], seeds[rows], given.marked(rows))]
            found += [one for own in run.gather(part) for one in own]
            bar.update(sum(rows.stop - rows.start for rows in these))
    return found


@contextmanager
def _held(run: Processes, shards: Shards, about: Mapping[str, Any]) -> Iterator[None]:
    """A place that this run alone writes to, from when it is found fit for the job."""
    with ExitStack() as held:
        with run.together():
            if run.rank == 0:
                held.enter_context(begun(shards, about))
        yield


def _finished(run: Processes, shards: Shards) -> dict[int, str]:
    """The shards that are finished, with their digests; each process looks at its part of those that should be."""
    wanted = run.first(partial(promised, shards))
    with run.together():
        mine = [k for k in range(run.rank, shards.form.count, run.count) if k in wanted]
        damaged = [k for k in mine if not shards.sound(k, wanted[k])]
    lost = sorted(k for part in run.gather(damaged) for k in part)
    if lost and run.rank == 0:
        others = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        warnings.warn(
            f"{shards.name(lost[0])}{others} in {shards.out} is not as it was written, and is drawn again",
            DamagedWarning,
            stacklevel=3,
        )
    return {k: wanted[k] for k in wanted if k not in lost}


def _check_same(run: Processes, about: dict[str, Any]) -> None:
    """Raises `ValueError` in all processes if they were not all asked for the same."""
    first, *others = run.gather(about)
    for rank, other in enumerate(others, 1):
        for name in first:
            if other[name] != first[name]:
                raise ValueError(
                    f"process {rank} was given another {name} than process 0, {other[name]} and not {first[name]}: "
                    "give all of them the same model, conditions and arguments"
                )
