"""`sde-diffusion train`: from your own data to a checkpoint, by flags or a configuration file; to be gone on with."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sde_diffusion._files import write_files
from sde_diffusion.cli._arguments import Say, add_command, path
from sde_diffusion.cli.forms.control import control_words, controlled, going_on, model_upon
from sde_diffusion.cli.forms.form import form_of
from sde_diffusion.cli.forms.latent import begun, codec_of_plan, coder_of, goes_on, with_codes, without_codec
from sde_diffusion.cli.forms.stage import low_of_plan, objective_of_stage, staged
from sde_diffusion.cli.forms.together import check_together
from sde_diffusion.cli.limits import check_checkpoint, check_network
from sde_diffusion.cli.plan.config import NAME, add_options, check_same, own_file, plan_of, write_config
from sde_diffusion.cli.plan.design import (
    Facts,
    made_with,
    net_class,
    net_maker,
    objective_of,
    own_classes,
    process_of,
)
from sde_diffusion.cli.plan.inputs import read_inputs
from sde_diffusion.cli.plan.options import Plan
from sde_diffusion.cli.plan.running import Course, check_run, next_line, recipe_of, run_plan
from sde_diffusion.denoiser import predict
from sde_diffusion.denoiser.flow_map import FlowMap
from sde_diffusion.denoiser.network import Network
from sde_diffusion.sde.base import GaussianSDE
from sde_diffusion.training.callbacks import Event
from sde_diffusion.training.checkpoint import Checkpoint, load_checkpoint
from sde_diffusion.training.losses import Objective

OF_THE_START = ("sde", "sde_args", "kind", "learn_variance", "net_args", "width", "scale")
"""Options that a checkpoint to begin from has answered."""


def add_parser(group: Any) -> None:
    """Adds `train` to the commands."""
    command = add_command(
        group,
        "train",
        run,
        "Train a model on your own data.",
        shared=False,
        epilog="examples:\n  sde-diffusion train --data faces.npz --out model --steps 5000 --threads 8\n"
        "  sde-diffusion train --data simulations.csv --cond x1,x2 --out posterior  # the other columns, given these\n"
        "  sde-diffusion train model/config.toml --resume\n"
        "  torchrun --nproc-per-node 2 -m sde_diffusion.cli train config.toml",
    )
    command.add_argument(
        "config",
        nargs="?",
        type=path,
        metavar="CONFIG",
        help="a file of TOML with the options below, without their dashes: `batch-size = 256`; flags go before it",
    )
    add_options(command)


def run(args: argparse.Namespace, say: Say) -> None:
    """Trains a model as the arguments say."""
    plan = plan_of(vars(args), args.config)
    torch.set_num_threads(plan.threads)
    train_file(plan, say=say)


def train_file(plan: Plan, *, say: Say) -> None:
    """Trains a model on data, and keeps the run in a folder, from which it can go on.

    Each column of vectors, or channel of fields, is scaled by what the checkpoint keeps; so are conditions that are
    numbers. Vectors get a residual MLP, fields a U-Net of their dimensions; with labels, a context or an image beside
    it, the network is told of them. Whole numbers get a fresh point in the bin of each, of width one, in every batch.

    Args:
        plan: What is asked for.
        say: Called with every line of the report.

    Raises:
        TypeError, ValueError: Data, a constant column among them, or a combination of process and parametrisation,
            that cannot be trained on; a folder that takes no files, or holds a run; a run to go on with that was begun
            otherwise; what would not fit into memory. All before any work.
        FileNotFoundError: No such file, or no run to go on with.
        OSError: The run could not be written to its folder; the message says where the model is instead.
    """
    data, out = _checked(plan)
    asked, start = plan, None if plan.start is None else _start(plan)
    plan = going_on(plan, start)
    form = codec_of_plan(plan, out) if start is None else form_of(plan.start or Path(), start, "--from")
    sde = process_of(plan.sde, plan.sde_args) if start is None else start.model.sde
    if start is None and plan.net is not None:
        net_class(plan.net, (1,))  # whether there is one, before the data are read
    low = low_of_plan(plan, None if start is None else form)
    inputs = read_inputs(replace(plan, cond=control_words(plan)), data, start, of=form)
    inputs = controlled(plan, inputs if low is None else staged(inputs, low), form)
    coder = coder_of(plan, inputs, form)
    seen = inputs if coder is None else inputs.of_shape(coder.shape_of(inputs.facts.shape))
    model = _model(plan, seen.facts, sde, out) if start is None else model_upon(plan, start, inputs, form)
    again = f"sde-diffusion train {shlex.quote(str(out / NAME))} --resume"

    def keep_plan(event: Event) -> None:
        if event.kind == "start":
            write_files({out / NAME: write_config(asked).encode()})

    def loss(model: Network) -> Objective:
        plain = low is not None and plan.weight is None and plan.times is None and not plan.learn_variance
        inner = None if plain else objective_of(model, plan.weight, plan.times)
        return objective_of_stage(low, inner) if low is not None else inner or model.objective()

    base = asked.start if plan.base is None and (plan.control, plan.lora) != (None, None) else plan.base
    course = Course(loss, recipe_of(plan, inputs), repr, (keep_plan,), again, base=base)
    check_run(plan, seen, model)
    if coder is None:
        course = replace(course, told=(*course.told, without_codec(plan, out)))
    else:
        inputs, course = with_codes(plan, inputs, out, coder, course, trained=form is not None, say=say)
    run_plan(replace(plan, resume=goes_on(plan, out)), inputs, model, out, course, say=say)
    told = " --low FILE.npy" * (low is not None) + " --control FILE.npy" * (plan.control is not None)
    say(next_line(plan, inputs, out, told))


def _checked(plan: Plan) -> tuple[Path, Path]:
    """The data and the folder of a plan, after a look at the folder and at what may not be said together."""
    missing = [f"--{name}" for name in ("data", "out") if getattr(plan, name) is None]
    if plan.data is None or plan.out is None:
        raise ValueError(f"give {', '.join(missing)}: as flags, or in a configuration file")
    if plan.resume and plan.overwrite:
        raise ValueError("--resume goes on with the run in --out, --overwrite replaces it: give one of them")
    if plan.batch_size % plan.accumulate:
        raise ValueError(
            f"--batch-size {plan.batch_size} does not split into --accumulate {plan.accumulate} equal parts"
        )
    check_together(plan)
    if not plan.resume:
        check_checkpoint(plan.out, plan.overwrite)
    elif not goes_on(plan, plan.out) and not (plan.latent == "new" and begun(plan.out)):
        raise FileNotFoundError(f"--out {plan.out} holds no run to go on with: leave --resume out to begin one")
    elif (plan.out / NAME).is_file():
        check_same(plan, plan.out / NAME)
    return plan.data, plan.out


def _start(plan: Plan) -> Checkpoint:
    """The checkpoint to begin from; what it has answered already cannot be asked for otherwise."""
    fresh = Plan()
    for name in OF_THE_START:
        if getattr(plan, name) != getattr(fresh, name) and not (name == "sde" and own_file(plan.sde)):
            raise ValueError(
                f"--from {plan.start} brings its own model and scaling: leave --{name.replace('_', '-')} out, or train "
                "without --from"
            )
    names = [name for name in (plan.net, plan.sde) if own_file(name)]
    if plan.net is not None and not own_file(plan.net):
        raise ValueError(f"--from {plan.start} brings its own network: leave --net out")
    found = load_checkpoint(plan.start or "", known=own_classes(*names), base=plan.base)
    if isinstance(found.model, FlowMap):
        raise ValueError(
            f"--from {plan.start} holds a flow map, which would unlearn its jumps here: train from the model that it "
            "was made of, and distil that anew, sde-diffusion distill"
        )
    return found


def _model(plan: Plan, facts: Facts, sde: GaussianSDE, out: Path) -> Network:
    """The model that a plan and its data call for, with the initial weights of the seed."""
    make = net_maker(net_class(plan.net, facts.shape), facts, plan.width, plan.net_args)
    check_network(make, out)
    mean = predict.NAMES[plan.kind]
    kind = predict.LearnedVariance(mean) if plan.learn_variance else mean
    return Network(made_with(make, plan.seed), sde, kind, shape=facts.shape)
