r"""The sampler: a process, a model, a solver and a grid, ready to draw, encode and weigh."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from tqdm import tqdm

from sde_diffusion._checks import check_count, check_finite, check_flag, check_samples, check_state
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.chunks import Chunk, chunks
from sde_diffusion.denoiser.conditions import Conditions, check_options
from sde_diffusion.denoiser.modules import Evaluation, home
from sde_diffusion.likelihood.exact import Method, log_prob
from sde_diffusion.likelihood.result import LogProb
from sde_diffusion.likelihood.route import Density
from sde_diffusion.likelihood.sampling import JointSampling
from sde_diffusion.noise.seeds import Seed, Use, apart, as_seeds
from sde_diffusion.noise.sources import SILENT, NoiseSource, Streams
from sde_diffusion.problem import Problem
from sde_diffusion.sampler._defaults import default_grid, default_solver, trained_times
from sde_diffusion.sampler._layout import angle_grid, grid_name, lay_out, times_of
from sde_diffusion.sampler.base import Sampler, guarded
from sde_diffusion.sampler.editing import noised, times_below
from sde_diffusion.sampler.forecast import Forecast
from sde_diffusion.sde.base import SDE, GaussianSDE
from sde_diffusion.sde.grids import Grid
from sde_diffusion.sde.prior import Standard
from sde_diffusion.solvers.base import Solver, facts_of
from sde_diffusion.solvers.equation import ODE
from sde_diffusion.solvers.loop import Course, Snapshot, check_capable, integrate, warn_lost

LOG_PROB = {name: f"sample_with_log_prob(n, method=Method({name}=...))" for name in ("trace", "solver_error")}
"""How the options of samples with their log-density are written."""
SAMPLE = {"return_log_prob": "sample_with_log_prob(n)", **LOG_PROB}


class SDESampler(Sampler):
    r"""Draws samples of a model by a solver on a grid of times.

    Args:
        sde: The process; or a `Problem`, which holds the process, the score, the shape and a prior of choice.
        score: A `Denoiser` made for `sde`, or a bare function `score(x, t)` with `t` of shape `(B,)`. Its modules are
            in evaluation mode in every solve, and in their own again after it.
        solver: By default chosen for the budget, the process and the model, and shown by `repr`: `Adams` in
            `"balanced"` of order 2 to 4, or `UniPC` for networks that answer the noise or are asked often;
            `SDEDPMSolverPP(2)` for a rule of a posterior, by its `noise_from`;
            `EulerMaruyama()` on a general SDE. The rule is in the docs, "Choosing a solver".
        steps: Solver steps, at most 10^6; by default the `facts.default_steps` of the solver: 30 for most, 1000 for
            Euler-Maruyama and Langevin dynamics, 1 for a solver that makes its own.
        nfe: Instead of `steps`: a budget of network evaluations per sample, the last step included.
        grid: A function `(sde, steps) -> times` from `grids`, or the times themselves; by default what suits the
            solver: `grids.balanced` for one that `reaches_zero`, `grids.log_snr` for one that steps in the log-SNR,
            `grids.karras` for one that steps in `t` where that needs it, `grids.angle`, and on a general SDE
            `grids.uniform`. A solver with a grid of its own, such as `TableSolver`, takes no other.
        shape: Event shape, without the batch; needed where the model does not know it.
        denoise: Ends with the data, by `solver.finish`: the posterior mean at the last time, unless the solver knows
            better, one evaluation more; on a Gaussian SDE only.

    Raises:
        TypeError: The solver needs more than the SDE and the score give, or a network did not say what it answers.
        ValueError: A denoiser made for another SDE, or a grid, a budget or a shape that does not fit.

    Example:
        >>> x = SDESampler(sde, model).sample(64, seed=0)
    """

    def __init__(
        self,
        sde: SDE | Problem,
        score: Denoiser | Callable[..., Tensor] | None = None,
        *,
        solver: Solver | None = None,
        steps: int | None = None,
        nfe: int | None = None,
        grid: Grid | Sequence[float] | Tensor | None = None,
        shape: Sequence[int] | None = None,
        denoise: bool = True,
    ) -> None:
        if isinstance(sde, Problem):
            if score is not None or shape is not None:
                raise TypeError(
                    "a Problem has its model and its event shape: leave out score and shape=, or give them to "
                    "Problem(sde, score, shape=...)"
                )
            self.problem = sde
        else:
            self.problem = Problem(sde, cast("Any", score), shape)  # which refuses None
        jump = check_flag(denoise, "denoise") and isinstance(self.sde, GaussianSDE)
        named, suits = solver is not None, None
        if solver is None:
            solver, own = default_solver(self.problem, grid, steps=steps, nfe=nfe, jump=jump)
            suits = own if grid is None else None
        if not isinstance(solver, Solver):
            raise TypeError(f"solver must be a Solver such as Heun(), got {solver!r}")
        self.solver: Solver = solver
        self._stochastic = facts_of(solver).stochastic  # facts are made anew where they depend on arguments
        self.denoise = jump
        check_capable(self.problem.equation(), self.solver)
        self.grid_is_default = grid is None
        if grid is None:
            trained = trained_times(self.problem, solver, steps=steps, nfe=nfe, jump=jump)
            grid, steps, nfe = (None, steps, nfe) if trained is None else (trained, None, None)
        self.grid: Grid | Sequence[float] | Tensor = (
            grid if grid is not None else suits or default_grid(self.problem, self.solver, jump=jump, named=named)
        )
        self.times = lay_out(self.problem, solver, self.grid, steps=steps, nfe=nfe, jump=jump)
        self.steps = len(self.times) - 1
        other = partial(times_of, self.grid, self.sde) if callable(self.grid) else None
        self._course: Course | None = None
        self._forecast = Forecast(self.problem, solver, self.times, jump=jump, lay_out=other)

    @property
    def sde(self) -> SDE:
        """The process of the problem."""
        return self.problem.sde

    @property
    def model(self) -> Denoiser | Callable[..., Tensor]:
        """The model of the problem."""
        return self.problem.model

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The event shape of the problem, None if it is not known."""
        return self.problem.shape

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the model computes in."""
        return home(self.model)[0]

    @property
    def models(self) -> tuple[object, ...]:
        """The model of the problem alone."""
        return (self.model,)

    @property
    def details(self) -> list[Any]:
        """The solver, the prior and the times."""
        return [self.solver, self.problem.prior, self.times]

    def conditions(self, cond: Mapping[str, Any], n: int) -> Conditions:
        """The conditions of `n` samples, sorted by what the model says of them."""
        return Conditions.of(self.model, cond, n)

    @property
    def span(self) -> tuple[float, float]:
        """The first and the last time, from noise to data: `t_min` where the grid is open and the solver goes on."""
        return self.times[0], self._whole[-1]

    @property
    def _whole(self) -> list[float]:
        """The times, down to `t_min` where the grid is left open for a solver that goes on to the data by itself."""
        is_open = self.denoise and self.solver.reaches_zero and self.times[-1] > self.sde.t_min
        return [*self.times, self.sde.t_min] if is_open else self.times

    def __repr__(self) -> str:
        own = facts_of(self.solver).grid is not None
        grid = "" if own else f", grid={grid_name(self.grid)}"
        tail = "" if self.denoise or not isinstance(self.sde, GaussianSDE) else ", denoise=False"
        steps = f", steps={self.steps}" if callable(self.grid) and not own else ""
        about = f"{self.sde!r}, model"
        if self.problem.prior != Standard():
            about = f"Problem({about}, prior={self.problem.prior!r})"
        return f"SDESampler({about}, solver={self.solver!r}{steps}{grid}{tail})"

    def sample(
        self,
        n: int = 1,
        *,
        seed: Seed = None,
        x_T: Tensor | None = None,
        batch_size: int | None = None,
        progress: bool = False,
        noise: Callable[..., NoiseSource] = Streams,
        grad: bool = False,
        nonfinite: str = "raise",
        **cond: Any,
    ) -> Tensor:
        """Draws `n` samples, shape `(n, *)`.

        Args:
            n: Number of samples.
            seed: `k` gives sample `i` the random stream `k + i`, whatever the batch, so `sample(8, seed=0)[3]` is
                `sample(1, seed=3)[0]`; a sequence gives those streams; a `torch.Generator` gives one shared stream
                (fastest, but dependent on the batch); None draws fresh entropy.
            x_T: Start from this state at the first grid time, shape `(n, *)`, instead of a draw from the prior.
            batch_size: Samples in flight at once; changes memory and nothing else.
            progress: Shows a progress bar.
            noise: `noise.Streams` or `noise.BrownianPath`: one path per sample whatever the number of steps.
            grad: Keeps the graph, for gradients through the solve.
            nonfinite: What to do with a sample whose state becomes NaN or inf: `"raise"`, or `"keep"` the others, which
                are bit for bit what they are alone, with NaN in its place.
            **cond: Handed to the model; in batches, what is per sample goes along with the samples, see `conditions`.
                Those that are called as an argument here is go in by name, `cond={"noise": level}`.

        Raises:
            ValueError: A missing shape, or `x_T`, seeds or conditions that do not fit.
            SolverError: A state that is not finite, with its rows.

        Warns:
            UnfinishedWarning: An adaptive solver left samples on the way; `iterate` tells which.
            SamplingWarning: A prior that leaves out data still there at the first time, or steps that are too few for
                the solver, which is tried on Gaussian data first; told once.
            NonFiniteWarning: Samples that are NaN, as `nonfinite="keep"` allows.
        """
        check_flag(progress, "progress")
        check_flag(grad, "grad")
        check_options(cond, SAMPLE)
        keep = kept(nonfinite)
        with torch.set_grad_enabled(grad):  # conditions are cut into batches with it, and samples joined
            n, size, batches = self._batches(n, seed, x_T, batch_size, cond)
            self._forecast.tell(from_prior=x_T is None)
            out: list[Tensor] = []
            with tqdm(total=-(-n // size) * max(1, self.steps), desc="sampling") if progress else nullcontext() as bar:
                for part in batches:
                    with Evaluation(self.model):
                        out.append(self._end(self._solve(part, noise, keep), bar))
            return out[0] if len(out) == 1 else torch.cat(out)

    def sample_with_log_prob(
        self,
        n: int = 1,
        *,
        seed: Seed = None,
        x_T: Tensor | None = None,
        batch_size: int | None = None,
        progress: bool = False,
        noise: Callable[..., NoiseSource] = Streams,
        grad: bool = False,
        method: Method = Method(),
        **cond: Any,
    ) -> tuple[Tensor, LogProb]:
        """Draws `n` samples with their log-density, from one solve by an ODE solver such as `DormandPrince()`.

        On a Gaussian SDE the solve is taken in the angle, as by `log_prob`, whatever the solver steps in. The samples
        are the states at the last time over alpha, without the final jump: the pair fits, and
        `log_prob(x, density=Density(whole=False))` finds the same number within `solver_error`. Samples that are not
        finite are NaN, and the others stand.

        Args:
            n: Number of samples.
            seed: As in `sample`; the probes of the divergence are drawn by it too.
            x_T: As in `sample`.
            batch_size: As in `sample`.
            progress: Shows a progress bar.
            noise: As in `sample`.
            grad: Keeps the graph.
            method: `trace` says how the divergence is found. With `solver_error`, the solve goes back from the samples
                for the error of their density, at ten times the tolerance (two thirds of the cost more) or half the
                steps (half the cost more). The solver and the steps are those of the sampler.
            **cond: As in `sample`.

        Returns:
            The samples, shape `(n, *)`, and the log-density of each.

        Raises:
            TypeError: A solver that cannot integrate a bare ODE.
            ValueError: As `sample`, or a method with a solver of its own.

        Warns:
            LikelihoodWarning: Samples that did not arrive.
        """
        check_flag(progress, "progress")
        check_flag(grad, "grad")
        check_options(cond, LOG_PROB)
        n, _, batches = self._batches(n, seed, x_T, batch_size, cond)
        self._forecast.tell(from_prior=x_T is None, steps=False)  # which are taken in the angle
        times = self._whole
        if self.grid_is_default and self.steps and isinstance(self.sde, GaussianSDE):
            between = times_of(angle_grid(self.problem.data_std), self.sde, self.steps)[1:-1]
            times = [times[0], *between, times[-1]]
        joint = JointSampling(self.problem, self.solver, times, method, grad=grad)
        xs, found = [], []
        with tqdm(total=n, desc="sampling", disable=not progress) as bar:
            for part in batches:
                x, log_p = joint.draw(part, noise)
                xs.append(x)
                found.append(log_p)
                bar.update(part.n)
        return torch.cat(xs), LogProb.join(found)

    def iterate(
        self,
        n: int = 1,
        *,
        seed: Seed = None,
        x_T: Tensor | None = None,
        noise: Callable[..., NoiseSource] = Streams,
        grad: bool = False,
        nonfinite: str = "raise",
        **cond: Any,
    ) -> Iterator[Snapshot]:
        """The solve behind `sample`, step by step: for trajectories, previews and stopping early. Arguments as there.

        The first snapshot is the initial state and the last, with `denoise`, the posterior mean at the last time. A
        state that is not finite may be handed out, and is reported within four steps; with `nonfinite="keep"` its rows
        are NaN from there on.

        Raises:
            ValueError: As `sample`; and a snapshot's state that was written to, from which the solve would go on.
        """
        check_flag(grad, "grad")
        keep = kept(nonfinite)
        with torch.set_grad_enabled(grad):
            part = next(self._batches(n, seed, x_T, None, cond)[2])
        self._forecast.tell(from_prior=x_T is None)
        return guarded(self._solve(part, noise, keep), grad, Evaluation(self.model))

    def edit(
        self,
        x0: Tensor,
        level: float,
        *,
        seed: Seed = None,
        batch_size: int | None = None,
        progress: bool = False,
        noise: Callable[..., NoiseSource] = Streams,
        grad: bool = False,
        nonfinite: str = "raise",
        **cond: Any,
    ) -> Tensor:
        r"""Data made more like those of the model: noise is added up to a level, and solved away again (SDEdit).

        $$ x_t = \alpha x_0 + \sigma\varepsilon, \quad \sigma/\alpha = level $$

        then the part of the grid below that level, by the solver of the sampler. What is finer than the level is drawn
        anew; what is coarser stays.

        Args:
            x0: Data to start from, shape `(n, *)`, such as a sketch.
            level: Noise level $\sigma/\alpha$, in units of the data, within the grid.
            seed: As in `sample`, the noise that is added included; all is other noise than `sample` draws by this seed.
            batch_size: As in `sample`.
            progress: Shows a progress bar.
            noise: As in `sample`.
            grad: Keeps the graph.
            nonfinite: As in `sample`.
            **cond: Handed to the model, as in `sample`.

        Returns:
            Samples, shape `(n, *)`.

        Raises:
            TypeError: A general SDE, a solver with a grid of its own, or data that are no floats.
            ValueError: Data of another shape or not finite, or a level outside of the grid.

        References:
            Meng et al., SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations, 2022.
        """
        check_state(x0, "x0", shape=self.shape)
        whole = self._whole if facts_of(self.solver).least_steps == 0 else self.times
        times = times_below(self.sde, self.solver, self.times, level, whole[-1])
        seeds = apart(as_seeds(seed, len(x0)), Use.EDITING)
        short = SDESampler(self.problem, solver=self.solver, grid=times, denoise=self.denoise)
        return short.sample(
            len(x0),
            seed=seeds,
            x_T=noised(self.problem, x0, times, seeds, noise),
            batch_size=batch_size,
            progress=progress,
            noise=noise,
            grad=grad,
            nonfinite=nonfinite,
            **cond,
        )

    def encode(self, x0: Tensor, *, progress: bool = False, grad: bool = False, **cond: Any) -> Tensor:
        r"""The latent $x_T$ from which the deterministic sampler returns to `x0`, up to the error of the solver.

        Starts from $\alpha x_0$ at the last grid time, or at `t_min` if the grid is open, and runs the grid backwards.
        Not defined for a stochastic solver.

        Args:
            x0: Data, shape `(B, *)`.
            progress: Shows a progress bar.
            grad: Keeps the graph.
            **cond: Handed to the model, as in `sample`.

        Returns:
            The state at the first grid time, shape `(B, *)`; `sample(x_T=...)` decodes it.

        Raises:
            ValueError: A stochastic solver, or data of another shape, empty or not finite.
            TypeError: Integer or half-precision data.
        """
        check_finite(check_state(x0, "x0", shape=self.shape), "x0")
        check_flag(progress, "progress")
        check_flag(grad, "grad")
        if self._stochastic:
            raise ValueError(
                f"{self.solver!r} is stochastic, so it has no inverse: encode with solver=Heun(), RK4() or "
                "DPMSolverPP()"
            )
        eq = self.problem.equation(Conditions.of(self.model, cond, len(x0)).whole)
        times = self._whole[::-1]
        x = x0 if not isinstance(self.sde, GaussianSDE) else x0 * self.sde.levels(times[:1])[0].alpha
        with (
            tqdm(total=len(times) - 1, disable=not progress, desc="encoding") as bar,
            torch.set_grad_enabled(grad),
            Evaluation(self.model),
        ):
            for now in integrate(eq, self.solver, x, times):
                bar.update(now.index > 0)
        return now.x

    def log_prob(
        self,
        x0: Tensor,
        *,
        density: Density = Density(),
        method: Method = Method(),
        seed: int | Sequence[int] | None = None,
        grad: bool = False,
        batch_size: int | None = None,
        **cond: Any,
    ) -> LogProb:
        """Exact log-likelihood of data, in nats, with its errors; `likelihood.log_prob` has the options."""
        return log_prob(self, x0, density=density, method=method, seed=seed, grad=grad, batch_size=batch_size, **cond)

    def _batches(
        self, n: int, seed: Seed, x_T: Tensor | None, batch_size: int | None, cond: dict[str, Any]
    ) -> tuple[int, int, Iterator[Chunk]]:
        """The number of samples, how many are drawn at once, and the batches of them."""
        n = check_samples(n) if x_T is None else self._check_x_T(x_T, n).shape[0]
        size = n if batch_size is None else check_count(batch_size, "batch_size")
        given = self.conditions(cond, n)
        if size < n:
            given.check_apart(f"in batches of {size}")
        return n, size, chunks(n, size, seed, x_T, given)

    def _solve(self, part: Chunk, noise: Callable[..., NoiseSource], keep: bool) -> Iterator[Snapshot]:
        eq, x_T = self.problem.equation(part.cond), part.start
        eq.counter.first, eq.counter.keep = part.first, keep
        source: NoiseSource = SILENT
        if x_T is None or self._stochastic:
            source = self.problem.source(part.n, part.seed, noise, self.span, x_T)
            z = source.prior()  # drawn even if not used, so that the noise of the steps does not depend on x_T
            x_T = self.problem.start(z, self.times[0]) if x_T is None else x_T
        for now in integrate(eq, self.solver, x_T, self._laid(eq), source, finish=self.denoise):  # noqa: UP028 - see there
            yield now  # `yield from` has a value, which a compiled solve would lose
        warn_lost(eq)

    def _laid(self, eq: ODE) -> Course:
        """The course of the solves on the grid: laid by the first of them."""
        if self._course is None or self._course.times != self.times:
            self._course = Course.of(eq, self.solver, self.times)
        return self._course

    def _end(self, solve: Iterator[Snapshot], bar: tqdm[Any] | None) -> Tensor:
        """The last state of a solve; the bar goes on with each step of the solver."""
        for now in solve:
            if bar is not None:
                bar.update(0 < now.index <= max(1, self.steps))
        return now.x

    def _check_x_T(self, x_T: Tensor, n: int) -> Tensor:
        check_state(x_T, "x_T", shape=self.shape)
        if n not in (1, x_T.shape[0]):
            raise ValueError(f"n = {n}, but x_T holds {len(x_T)} states: leave n out")
        return check_finite(x_T, "x_T")


def kept(nonfinite: str) -> bool:
    """Whether rows that are not finite are kept apart."""
    if str(nonfinite) not in ("raise", "keep"):
        raise ValueError(f"nonfinite must be 'raise' or 'keep', got {nonfinite!r}")
    return nonfinite == "keep"
