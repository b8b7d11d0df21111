"""How does a network become a model?  By denoising score matching: an objective, a loop, an average, a checkpoint."""

from sde_diffusion.training import losses
from sde_diffusion.training.callbacks import JSONL, Callback, Event, StopTraining, Tracker
from sde_diffusion.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from sde_diffusion.training.checkpoints.own_code import load_class
from sde_diffusion.training.ema import EMA, ConstantDecay, PowerDecay
from sde_diffusion.training.loop import Saving, Training, TrainingInterrupted, train
from sde_diffusion.training.recipe import Recipe
from sde_diffusion.training.snapshots import Snapshots, posthoc
from sde_diffusion.training.stopping import EarlyStopping, Measured
from sde_diffusion.training.store import DamagedWarning
from sde_diffusion.training.trainable import Trainable
from sde_diffusion.training.validation import Validation

__all__ = [
    "EMA",
    "JSONL",
    "Callback",
    "Checkpoint",
    "ConstantDecay",
    "DamagedWarning",
    "EarlyStopping",
    "Event",
    "Measured",
    "PowerDecay",
    "Recipe",
    "Saving",
    "Snapshots",
    "StopTraining",
    "Tracker",
    "Trainable",
    "Training",
    "TrainingInterrupted",
    "Validation",
    "load_checkpoint",
    "load_class",
    "losses",
    "posthoc",
    "save_checkpoint",
    "train",
]
