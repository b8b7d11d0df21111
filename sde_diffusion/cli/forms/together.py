"""Options of a training that do not go together, each refused in a sentence before any work."""

from __future__ import annotations

from sde_diffusion.cli.forms.latent import OWN
from sde_diffusion.cli.plan.options import Plan, names_of


def check_together(plan: Plan) -> None:
    """Raises `ValueError` for options that do not go together."""
    _check_stage(plan)
    _check_latent(plan)
    _check_upon(plan)


def _check_stage(plan: Plan) -> None:
    if plan.low_res is None:
        if plan.augment is not None and plan.start is None:
            raise ValueError("--augment is the noise on a low resolution: give --low-res FACTOR, or leave it out")
        return
    if plan.latent is not None:
        raise ValueError(
            "--latent and --low-res do not go together: a stage of a cascade is told a low resolution of data, and a "
            "code is none; its base may be --latent"
        )
    if plan.scale == "quantile":
        raise ValueError(
            "--low-res: the low resolution of columns scaled by their quantiles is not the one of the data that a base "
            "draws: leave --scale quantile out"
        )
    if plan.previews:
        raise ValueError("--previews of a stage want low resolutions: leave it out, and sample with --low")
    if plan.weight == "uncertainty" or plan.learn_variance:
        name = "--learn-variance" if plan.learn_variance else "--weight uncertainty"
        raise ValueError(f"{name} does not go with --low-res, which is trained by plain denoising: leave it out")


def _check_latent(plan: Plan) -> None:
    given = [name for name in OWN if getattr(plan, name) is not None]
    if given and plan.latent != "new":
        name = names_of(given[0])[0]
        brings = f", and --latent {plan.latent} brings its own" if plan.latent is not None else ": give --latent"
        raise ValueError(f"--{name} is of a codec that is trained{brings}, or leave it out")
    if plan.latent is not None and plan.start is not None:
        raise ValueError(
            f"--from {plan.start} brings its own codec, if it is a model of codes, and else has learnt data: leave "
            "--latent out, or --from"
        )


def _check_upon(plan: Plan) -> None:
    given = [name for name in ("control", "lora") if getattr(plan, name) is not None]
    if given and plan.start is None:
        raise ValueError(f"--{given[0]} stands upon a model that is trained already: give its folder, --from BASE")
    if len(given) > 1:
        raise ValueError("--control and --lora are two ways to go on from a model: train one, then the other's own run")
    if plan.control is not None and plan.previews:
        raise ValueError("--previews of a control want fields: leave it out, and sample with --control")
