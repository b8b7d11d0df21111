"""`sde-diffusion train`: from your own data to a checkpoint, by flags or a configuration file; to be gone on with."""

from __future__ import annotations

import argparse
import shlex
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sde_diffusion._files import beside, keep, write_files
from sde_diffusion.cli._arguments import Say, add_command, path
from sde_diffusion.cli.limits import PASSES, check_batch, check_checkpoint, check_network
from sde_diffusion.cli.machine import device_named, rank
from sde_diffusion.cli.plan.config import NAME, add_options, check_same, own_file, plan_of, write_config
from sde_diffusion.cli.plan.design import made_with, net_class, net_maker, objective_of, own_classes, process_of
from sde_diffusion.cli.plan.inputs import Inputs, read_inputs
from sde_diffusion.cli.plan.options import Plan
from sde_diffusion.data.faults.look import ColumnWarning
from sde_diffusion.denoiser import predict
from sde_diffusion.denoiser.network import Network
from sde_diffusion.sampler.watch import Previews
from sde_diffusion.sde.base import GaussianSDE
from sde_diffusion.training.callbacks import Callback, Event, Tracker
from sde_diffusion.training.checkpoint import TABLES, Checkpoint, load_checkpoint, save_checkpoint
from sde_diffusion.training.loop import Saving, Training, train
from sde_diffusion.training.recipe import Recipe
from sde_diffusion.training.validation import Validation

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
    start = None if plan.start is None else _start(plan)
    sde = process_of(plan.sde, plan.sde_args) if start is None else start.model.sde
    if start is None and plan.net is not None:
        net_class(plan.net, (1,))  # whether there is one, before the data are read
    inputs = read_inputs(plan, data, start)
    model = _model(plan, inputs, sde, out) if start is None else start.model
    row = inputs.rows.rows(torch.zeros(1, dtype=torch.int64)).cond
    check_batch(model, plan.batch_size // plan.accumulate, passes=PASSES, cond=row)
    model.to(device_named(plan.device))
    recipe = Recipe(
        plan.batch_size, plan.lr, accumulate=plan.accumulate, precision=plan.precision, transform=inputs.transform
    )
    loss = objective_of(model, plan.weight, plan.times)
    saving = Saving(
        out,
        every=plan.save_every,
        keep=plan.keep,
        overwrite=plan.overwrite,
        scaling=inputs.scaling,
        conditions=inputs.conditions,
        extra=inputs.extra,
    )
    val = None if inputs.held_out is None else Validation(inputs.held_out, patience=plan.patience or None)
    for line in _report(plan, inputs, model, out):
        say(line)
    say(f"{loss!r}")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the run could not be saved")  # it is said below, and where it is instead
            if start is not None:  # which were said in the units of the data
                warnings.filterwarnings("ignore", "(column|channel) .* of (the data|condition .*) (has mean|is const)")
            warnings.simplefilter("ignore", ColumnWarning)  # those of the file are told, before it is scaled
            done = train(
                model,
                inputs.rows,
                steps=plan.steps,
                loss=loss,
                recipe=recipe,
                val=val,
                out=saving,
                resume=plan.resume,
                callbacks=_callbacks(plan, inputs, out),
                seed=plan.seed,
                progress=True,
            )
    except BaseException as stop:
        _after(stop, saving, plan, say)
        raise
    say(_result(done, plan.steps, inputs))
    own = "".join(f" --{key} {name}" for key, name in (("net", plan.net), ("sde", plan.sde)) if own_file(name))
    told = "".join(f" --cond {word}" for word in inputs.example())
    say(f"saved to {out}; next: sde-diffusion sample --checkpoint {shlex.quote(str(out))}{own}{told} --out samples.npz")


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
    if not plan.resume:
        check_checkpoint(plan.out, plan.overwrite)
    elif not (plan.out / "state.json").is_file():
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
    return load_checkpoint(plan.start or "", known=own_classes(*names))


def _model(plan: Plan, inputs: Inputs, sde: GaussianSDE, out: Path) -> Network:
    """The model that a plan and its data call for, with the initial weights of the seed."""
    facts = inputs.facts
    make = net_maker(net_class(plan.net, facts.shape), facts, plan.width, plan.net_args)
    check_network(make, out)
    mean = predict.NAMES[plan.kind]
    kind = predict.LearnedVariance(mean) if plan.learn_variance else mean
    return Network(made_with(make, plan.seed), sde, kind, shape=facts.shape)


def _callbacks(plan: Plan, inputs: Inputs, out: Path) -> Sequence[Callback]:
    """What is told of the run: the file of its configuration, a tracker, samples now and then."""

    def keep_plan(event: Event) -> None:
        if event.kind == "start":
            write_files({out / NAME: write_config(plan).encode()})

    found: list[Callback] = [keep_plan]
    if plan.log_with is not None and rank() == 0:
        words = {"data": str(plan.data), "steps": plan.steps, "batch-size": plan.batch_size, "lr": plan.lr or "unset"}
        found.append(Tracker(plan.log_with, folder=out / "runs", config=words))
    if plan.previews:
        numbers = torch.arange(plan.previews) % len(inputs.rows)
        every, undo = max(1, plan.steps // 10), inputs.scaling.undo
        cond = inputs.rows.rows(numbers).cond
        found.append(Previews(out / "previews", every=every, n=plan.previews, undo=undo, cond=cond))
    return found


def _report(plan: Plan, inputs: Inputs, model: Network, out: Path) -> list[str]:
    """What is said before the first step."""
    facts, held_out = inputs.facts, inputs.held_out
    told = [f"{facts.classes} classes"] if facts.classes else []
    told += [f"a context of {facts.context}"] if facts.context else []
    told += [f"an image of {facts.image} channels"] if facts.image else []
    kept_out = f", {len(held_out):,} kept out for validation" if held_out is not None else ""
    if held_out is None and plan.val:
        kept_out = ", too few to keep some out for validation"
    lines = [
        f"{len(inputs.rows):,} samples {facts.shape}{kept_out}, {', '.join(told) or 'no conditions'}, {inputs.scaling}"
    ]
    if len(facts.shape) == 2:
        c, n = facts.shape
        lines.append(f"samples are {c} channels of {n} points; grey images (N, H, W) would be x[:, None]")
    if inputs.transform is not None:
        lines.append("whole numbers: every batch has fresh points in their bins, of width one")
    if inputs.whole:
        some = ", ".join(map(repr, inputs.whole[:4])) + ", ..." * (len(inputs.whole) > 4)
        lines.append(
            f"whole numbers are taken as they are, without points in their bins, in column {some}. Where few values "
            "come often, give them as a condition, or train in Python with data.Dequantised.of"
        )
    net: Any = model.net
    size = sum(p.numel() for p in net.parameters())
    lines.append(
        f"{type(net).__name__} with {size:,} parameters, {type(model.kind).__name__} prediction, {model.sde!r}"
    )
    if (tables := out / TABLES).is_file():
        lines.append(f"{tables} is of the model that is replaced, and will be removed with it: tune the new one")
    return lines


def _result(done: Training, steps: int, inputs: Inputs) -> str:
    """What is said at the end."""
    count = len(done.losses)
    found = f"{done.seconds:.0f} s, loss {done.loss:.4f} over the last {min(count, 100)} steps"
    if done.best is not None:
        best = next(each for each in done.validations if each["step"] == done.best)
        own = best["val_nats"] - inputs.log_jacobian()
        found += (
            f"; best validation after step {done.best}, whose model is kept: {own:.4f} nats in the units of --data, "
            f"{best['val_nats']:.4f} as scaled"
        )
    if done.stopped and count < steps:
        found += f"; ended after {count} of {steps} steps, {done.stopped}"
    return found


def _after(stop: BaseException, saving: Saving, plan: Plan, say: Say) -> None:
    """Says how to go on after a run was cut short, or saves the model elsewhere where its folder takes none."""
    done: Training | None = getattr(stop, "training", None)
    if done is None or not done.losses or rank() > 0:
        return
    out, count = Path(saving.path), len(done.losses)
    if _is_saved(out, count, plan):
        again = f"sde-diffusion train {shlex.quote(str(out / NAME))} --resume"
        say(f"ended after {count} of {plan.steps} steps, all of them saved in {out}; to go on: {again}")
        return
    place = beside(out, "interrupted") if count < plan.steps else out

    def save(folder: Path) -> None:
        extra = {**saving.extra, "steps": count, "seed": plan.seed}
        save_checkpoint(folder, done.model, scaling=saving.scaling, conditions=saving.conditions, extra=extra)

    try:
        keep(save, place)
    except OSError as error:
        if isinstance(stop, OSError):
            raise error from stop
        say(str(error))
    else:
        say(f"ended after {count} steps; the model up to there is in {place}")


def _is_saved(out: Path, steps: int, plan: Plan) -> bool:
    """Whether a folder holds a run up to a step."""
    try:
        known = own_classes(*(name for name in (plan.net, plan.sde) if own_file(name)))
        return load_checkpoint(out, known=known).extra.get("steps") == steps
    except (OSError, ValueError, TypeError, ImportError):
        return False
