"""What cannot be asked of a model of codes, of a stage of a cascade or of a control, and what can in its place."""

from __future__ import annotations

from collections.abc import Container, Sequence

from sde_diffusion.cli.forms.form import Form
from sde_diffusion.cli.target.draw import Draw

STAGE = "holds a stage of a cascade, which is told a low resolution of its data"


def check_tuned(form: Form, place: str) -> None:
    """Raises `ValueError` for a model that is told what a tuning has not."""
    if form.control:
        raise ValueError(
            f"{place} holds a control, which is told a field: tune its base, whose tables serve it without one; in "
            "Python, tune(sde, model, nfe, conditions={'control': fields}) tunes it for fields"
        )
    if form.low is not None:
        raise ValueError(
            f"{place} {STAGE}: tune its base; in Python, tune(sde, model, nfe, conditions=low.told(low.shrink(x), "
            "level)) tunes it for low resolutions of data x"
        )


def check_weighed(form: Form, place: str, told: Container[str] = ()) -> None:
    """Raises `ValueError` for a model whose likelihood of data is not found here, or not by what it is told."""
    if form.control and not all(name in told for name in form.control):
        raise ValueError(
            f"{place} holds a control, and has a density given a field, log p(x | control): give one for each row, "
            f"--cond {form.control[0]}=FILE.npy, or find that of its base"
        )
    if form.low is not None:
        raise ValueError(
            f"{place} {STAGE}, and has a density given one alone, log p(x | low): in Python, up = Upsampler("
            "SDESampler(sde, model), low_resolution), up.log_prob(x, low=low)"
        )


def check_taught(form: Form, place: str) -> None:
    """Raises `ValueError` for a model that a map is not made of here."""
    if form.control:
        raise ValueError(
            f"{place} holds a control, which is told a field: draw it in few steps, sample --nfe 8, and distil its "
            "base; in Python, distil it on rows with control="
        )
    if form.low is not None:
        raise ValueError(
            f"{place} {STAGE}, with fresh noise in every batch: draw it in few steps, sample --nfe 8, and distil its "
            "base; in Python, x0, told = low.pairs(x) makes rows to distil on"
        )


def check_drawn(forms: Sequence[Form], draw: Draw) -> None:
    """Refuses what samples of such a model cannot be drawn with.

    Raises:
        ValueError: What that is.
    """
    target, first = draw.target, forms[0]
    stages = len(forms) > 1 or first.low is not None
    for form in forms:
        form.check_level(draw.level)
    for name in (word.partition("=")[0] for word in draw.cond):
        if name in first.told:
            raise ValueError(f"--cond {name} is what the stage makes of its low resolution: leave it out")
    if draw.weight is not None and not first.control:
        raise ValueError("--control-weight is the strength of a control, and the model has none: leave it out")
    if draw.level is not None and not stages:
        raise ValueError("--level is the noise on what a stage of a cascade is told, and this is none: leave it out")
    apart = "--inpaint" if target.inpaint is not None else "--particles" if target.particles is not None else None
    if apart and stages:
        raise ValueError(
            f"{apart} is for one model of data, and a stage of a cascade is told a low resolution: leave it out"
        )
    if apart and first.codec is not None:
        raise ValueError(
            f"{apart} is for a model of data, and this is one of codes, of which no part is a part of the data: leave "
            "it out, or measure through the decoder in Python, Posterior(model, ...) of codes"
        )
    if target.guidance != 1 and first.low is not None:
        raise ValueError(
            "--guidance leaves out what a model is told, and of a stage that is its low resolution too: guide its "
            "base, --checkpoint BASE --then STAGE"
        )
