"""The options of `sample` that put something else in the place of the model, and the model that they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sde_diffusion import nets
from sde_diffusion.cli._arguments import Say, count, path
from sde_diffusion.cli.plan.option import number
from sde_diffusion.cli.target.known import NOISE, Known
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.flow_map import FlowMap
from sde_diffusion.guidance.classifier_free import SIZES, Guided, null_of
from sde_diffusion.guidance.extrapolation import check_scale
from sde_diffusion.guidance.posterior.images import Mask
from sde_diffusion.guidance.posterior.posterior import Posterior
from sde_diffusion.guidance.posterior.rules import DPS, JacobianFree, Moments, PseudoInverse, Rule
from sde_diffusion.training.checkpoint import Checkpoint

RULES: Mapping[str, Rule] = {
    "moments": Moments(),
    "pseudo-inverse": PseudoInverse(),
    "dps": DPS(),
    "jacobian-free": JacobianFree(),
}
"""What `--rule` may name."""
FEW = 16
"""Known entries up to which `moments` is the default: on exact mixtures two to ten times as close as the others."""
LED_BY = "dpmpp2-sde"
"""The solver of samples of which a part is known: its noise forgets where a rule has led a trained network astray. Of
digits of which the left half was given, 90 % were then what they were, against 76 % by the probability flow."""
LED_STEPS = 60
"""Its steps: on Gaussian data a variance is then within 3 % of the exact one, and in 30 within 11 %."""
MOST_PARTICLES = 10**6
SYSTEMS = 4
"""How many systems of particles are drawn: what several of them differ by is the error of the evidence."""


@dataclass(frozen=True)
class Target:
    """What is drawn from in place of the model itself; the model itself by default.

    Args:
        guidance: Scale of classifier-free guidance; 1 for none.
        low: Smallest noise level to guide at.
        high: Largest noise level to guide at.
        inpaint: A file of what is known of the samples.
        noise: Its standard deviation, in the units of the data.
        rule: A name in `RULES`.
        particles: How many particles stand for the exact law; None for samples of the model.
    """

    guidance: float = 1.0
    low: float | None = None
    high: float | None = None
    inpaint: Path | None = None
    noise: float | None = None
    rule: str | None = None
    particles: int | None = None

    @property
    def plain(self) -> bool:
        """Whether it is the model itself."""
        return self.guidance == 1 and self.inpaint is None

    def check(self, *, solver: str | None = None, budget: bool = False, folder: Path | None = None) -> None:
        """Refuses options that do not go together.

        Args:
            solver: The one named.
            budget: Whether there is a budget of evaluations.
            folder: A place for shards, if samples are drawn to one.

        Raises:
            ValueError: Those that do not.
        """
        check_scale(self.guidance, "--guidance")
        apart: list[tuple[str, Any, str, Any]] = [
            ("--guidance-low", self.low is not None, "--guidance", self.guidance != 1),
            ("--guidance-high", self.high is not None, "--guidance", self.guidance != 1),
            ("--noise", self.noise is not None, "--inpaint", self.inpaint),
            ("--rule", self.rule is not None, "--inpaint", self.inpaint),
        ]
        for name, given, other, there in apart:
            if given and not there:
                raise ValueError(f"{name} is of no account without {other}: give that, or leave {name} out")
        if self.particles is not None:
            self._check_exact(solver, budget, folder)

    def _check_exact(self, solver: str | None, budget: bool, folder: Path | None) -> None:
        """Refuses what particles cannot do."""
        if self.plain:
            raise ValueError(
                "--particles set right what --guidance or --inpaint approximate, and neither is given: the samples of "
                "the model itself need none"
            )
        if self.guidance != 1 and self.inpaint:
            raise ValueError(
                "--particles set right one of --guidance and --inpaint, and both are given: leave one of the three out"
            )
        if self.low is not None or self.high is not None:
            raise ValueError(
                "--particles draw from a law, and guidance on a part of the noise levels has none: leave "
                "--guidance-low and --guidance-high out"
            )
        if folder is not None:
            raise ValueError(f"--out {folder}: --particles draw to one file, .npy, .npz or .png, in one process")
        if solver is not None or budget:
            name = "--nfe" if solver is None else "--solver"
            raise ValueError(f"{name} is of no account with --particles, which have steps of their own: give --steps")


def add_target_options(command: Any) -> None:
    """Adds the options of a `Target` to a command, in groups of their own."""
    guided = command.add_argument_group("guidance of a model with a condition")
    guided.add_argument(
        "--guidance",
        type=number,
        default=1.0,
        metavar="W",
        help="scale of classifier-free guidance: 1 for none, 2 for twice the way from no condition to the one given",
    )
    guided.add_argument(
        "--guidance-low", type=number, metavar="S", help="smallest noise level sigma/alpha to guide at; unset, all"
    )
    guided.add_argument("--guidance-high", type=number, metavar="S", help="largest noise level to guide at; unset, all")
    known = command.add_argument_group("samples of which a part is known")
    known.add_argument(
        "--inpaint",
        type=path,
        metavar="FILE",
        help="what is known, in the units of the data: a .npy with NaN where it is not; or an .npz with `known` and "
        "`mask`, True where it is. One sample for all, or a row for each. --label is then `none` where unset",
    )
    known.add_argument(
        "--noise",
        type=number,
        metavar="X",
        help=f"standard deviation of what is known; unset, {NOISE:g} standard deviations of the data",
    )
    known.add_argument(
        "--rule",
        choices=tuple(RULES),
        help=f"how the samples are led to what is known; unset, moments up to {FEW} known entries, each of which costs "
        "a product with the Jacobian of the network, and dps beyond, or pseudo-inverse for --particles",
    )
    exact = command.add_argument_group("exactly")
    exact.add_argument(
        "--particles",
        type=count(MOST_PARTICLES, least=2),
        metavar="N",
        help=f"draw from the exact law that --inpaint or --guidance approximate, by {SYSTEMS} systems of N weighted "
        "particles in memory, and tell its evidence; for one condition, in --steps, unset 100",
    )


def target_of(args: Any) -> Target:
    """What the arguments of a command ask for."""
    return Target(
        args.guidance,
        args.guidance_low,
        args.guidance_high,
        args.inpaint,
        args.noise,
        args.rule,
        args.particles,
    )


def model_of(target: Target, known: Known | None, loaded: Checkpoint, told: Mapping[str, Any], say: Say) -> Denoiser:
    """The model that is drawn from, and what it is, said.

    Args:
        target: What is asked for.
        known: What is known of the samples.
        loaded: The checkpoint.
        told: The conditions of the model, by name.
        say: Called with a line of the report.

    Raises:
        ValueError: A model that cannot be guided, no condition to guide by, or a rule that cannot take so much.
    """
    model: Denoiser = loaded.model
    if target.guidance != 1:
        _check_guided(target.guidance, loaded, told)
        model = Guided(model, target.guidance, low=target.low, high=target.high)
        by = [name for name in told if name in (model.null or {})]
        say(f"guided by {', '.join(by)}: Guided(model, {model.extra_repr()})")
    if known is None:
        return model
    what, all_of = int(known.mask.sum()), known.mask.numel()
    beyond = "dps" if target.particles is None else "pseudo-inverse"
    name = target.rule or ("moments" if what <= FEW else beyond)
    try:
        model = Posterior(model, Mask(known.mask), known.noise, RULES[name])
    except ValueError as error:
        raise ValueError(f"--inpaint, --rule {name}: {error}") from error
    say(f"given {what} of {all_of} entries, with {known.about}: {model!r}")
    return model


def default_label(label: str | None, target: Target, loaded: Checkpoint) -> str:
    """What `--label` is where it is not given: all classes in turn, or none where a part of the samples is known.

    Raises:
        ValueError: A part is known, and the model cannot do without a class.
    """
    if label is not None:
        return label
    if target.inpaint is None or target.guidance != 1 or not loaded.classes:
        return "all"
    if not loaded.model.built_with().get("label_drop", True):
        raise ValueError(
            "--inpaint: the model was never trained without a class (label_drop=0), so that samples of all classes "
            "cannot be drawn by what is known alone: give --label K"
        )
    return "none"


def _check_guided(w: float, loaded: Checkpoint, told: Mapping[str, Any]) -> None:
    """Refuses a model that cannot be guided, or no condition to guide by, in the words of the command line."""
    if isinstance(loaded.model, FlowMap) and loaded.model.guidance:
        raise ValueError(
            f"--guidance {w:g}: the map in --checkpoint was made of a guided model, {loaded.model.guidance}, and draws "
            "guided samples by itself: leave it out"
        )
    try:
        null = null_of(loaded.model)
    except ValueError as error:
        built = loaded.model.built_with()
        has = [name for name, size in SIZES.items() if built.get(size)]
        if type(loaded.model.net) not in nets.CLASSES:
            why = str(error)
        elif has:
            why = (
                f"the model has no unconditional branch, its network was built with {has[0]}_drop=0: train one with "
                f"--net-args '{has[0]}_drop=0.1'"
            )
        else:
            why = "the model takes no condition that it could be guided by: train one with --cond"
        raise ValueError(f"--guidance {w:g}: {why}") from error
    if not any(name in told for name in null):
        one = "--label K" if "label" in null else f"--cond {next(iter(null))}=..."
        raise ValueError(f"--guidance {w:g} has no condition to guide by: give {one}")
