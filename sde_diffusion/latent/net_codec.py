"""A codec made of a net that encodes and decodes, with what brings its codes to unit scale; `train` takes it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

import torch
from torch import Tensor, nn

from sde_diffusion._checks import check_positive, check_shape
from sde_diffusion._sealed import sealed
from sde_diffusion.data.scalings import Scaling, Standardise
from sde_diffusion.denoiser.modules import Evaluation
from sde_diffusion.latent.objective import Reconstruction
from sde_diffusion.training import store
from sde_diffusion.training._input import dtype_of, floating
from sde_diffusion.training.checkpoint import check_length, check_scaling, tensors_of
from sde_diffusion.training.checkpoints.registry import describe_net, describe_scaling
from sde_diffusion.training.checkpoints.tensor_file import digest_of_tensors
from sde_diffusion.training.trainable import Trainable

RATE = 10.0
"""How many times faster than the weights the log of the decoder's noise is learnt."""
HALVES = (torch.float16, torch.bfloat16)
FORMAT, VERSION = "sde_diffusion codec", 1

__all__ = ["NetCodec"]


class Encodes(Protocol):
    """What a net for a `NetCodec` does."""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the codes of `x`."""

    def decode(self, z: Tensor) -> Tensor:
        """Data from codes."""


class NetCodec(Trainable):
    r"""A codec around a net with `encode(x) -> (mean, std)` and `decode(z)`, such as `nets.Autoencoder`.

    Fresh, its codes are the net's own. `latent.train_codec` teaches the net, and measures scale, shift and noise on
    the data it is given.

    Args:
        net: The net.
        shape: Event shape of the data; None if the net works on several.
        scale: Brings codes to unit scale, a number or one for each channel.
        shift: What is taken from them before, likewise.
        noise: Standard deviation of the Gaussian decoder, in the units of the data, which are learnt from there. None
            where it is not known: such a codec is not trained.

    Attributes:
        measured: Whether `scale`, `shift` and `noise` are those of the net as it is; not while it is trained.

    Raises:
        TypeError: `net` is no module that encodes and decodes; numbers that are none.
        ValueError: A `scale` of zero or one that is not finite, a `noise` that is not positive.
    """

    stored: ClassVar[str] = "codec"
    scale: Tensor
    shift: Tensor
    _codes: dict[tuple[int, ...], tuple[int, ...]]

    def __init__(
        self,
        net: nn.Module,
        *,
        shape: tuple[int, ...] | None = None,
        scale: Any = 1.0,
        shift: Any = 0.0,
        noise: float | None = 0.1,
    ) -> None:
        super().__init__()
        found: object = net
        lacking = [name for name in ("encode", "decode") if not callable(getattr(net, name, None))]
        if not isinstance(found, nn.Module) or lacking:
            raise TypeError(
                f"NetCodec stands around a module with encode(x) -> (mean, std) and decode(z), got "
                f"{type(net).__name__}{f', which lacks {lacking[0]}' if lacking else ''}: latent.adapters takes others"
            )
        self.net, self._codes = net, {}
        self.shape = None if shape is None else check_shape(shape)
        self.register_buffer("scale", None, persistent=False)
        self.register_buffer("shift", None, persistent=False)
        self.log_noise: nn.Parameter | None = None
        self.set_units(scale, shift, noise)

    def set_units(self, scale: Any, shift: Any, noise: float | None) -> None:
        """Takes other numbers for `scale`, `shift` and `noise`, see the class."""
        where = next(self.net.parameters(), torch.empty(0, device="cpu")).device
        dtype = dtype_of(self.net)
        self.measured = True
        self.scale, self.shift = _numbers(scale, "scale").to(where), _numbers(shift, "shift").to(where)
        if noise is None:
            self.log_noise = None
            return
        start = torch.tensor(math.log(check_positive(noise, "noise")) / RATE, dtype=dtype, device=where)
        if self.log_noise is None:
            self.log_noise = nn.Parameter(start)
        else:
            self.log_noise.data.copy_(start)

    @property
    def noise(self) -> float | None:
        """Standard deviation of the Gaussian decoder, in the units of the data; None where it is not known."""
        return None if self.log_noise is None else math.exp(RATE * float(self.log_noise.detach()))

    def learnt_noise(self) -> Tensor:
        """The log of it, with a graph.

        Raises:
            ValueError: The codec has none.
        """
        if self.log_noise is None:
            raise ValueError("a codec with noise=None is not trained: give it one to begin with, noise=0.1")
        return RATE * self.log_noise

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the net answers: mean and standard deviation of the codes of `x`, `(B, *)`, in its own units.

        It is asked in its own dtype, which may be half precision, and answers in that of `x`.

        Raises:
            TypeError: It answers anything else.
        """
        answer: object = cast(Encodes, self.net).encode(self._own(x))
        if not isinstance(answer, tuple) or len(answer) != 2:  # a tensor of two rows would unpack as well
            raise TypeError(
                f"{type(self.net).__name__}.encode answered {type(answer).__name__}, wanted two tensors, mean and "
                "standard deviation: latent.from_autoencoder(net) takes what answers otherwise"
            )
        return _in_dtype(answer[0], x), _in_dtype(answer[1], x)

    def decode(self, z: Tensor) -> Tensor:
        """What the net answers: data from codes `(B, *code)` in its own units; as to dtypes, see `encode`."""
        return _in_dtype(cast(Encodes, self.net).decode(self._own(z)), z)

    def _own(self, x: Tensor) -> Tensor:
        """In the dtype of the net; integers, which no net of codes is for, stay what they are."""
        found = next((p.dtype for p in self.net.parameters() if floating(p)), x.dtype)
        return x.to(found) if x.is_floating_point() else x

    def shape_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a code of data of event shape `shape`: one sample of zeros is encoded to see it."""
        shape = check_shape(shape)
        if shape in self._codes:
            return self._codes[shape]
        like = next((p for p in self.net.parameters() if p.is_floating_point()), self.scale)
        cuda = [like.device] if like.device.type == "cuda" else []
        with torch.no_grad(), Evaluation(self), torch.random.fork_rng(devices=cuda):  # whoever asks, and how often
            mean, _ = self.encode(torch.zeros(1, *shape, dtype=like.dtype, device=like.device))
        self._codes[shape] = tuple(mean.shape[1:])
        return self._codes[shape]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> NetCodec:
        """As of any module, but that half precision is for the net: the units stay in the numbers they are in."""
        units = {name: getattr(self, name) for name in ("scale", "shift")}
        log_noise = None if self.log_noise is None else self.log_noise.detach().clone()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch gives it no types
        for name, before in units.items():
            now = getattr(self, name)
            setattr(self, name, before.to(now.device) if now.dtype in HALVES else now)
        if self.log_noise is not None and log_noise is not None and self.log_noise.dtype in HALVES:
            self.log_noise.data = log_noise.to(self.log_noise.device)
        return self

    # --- what `train` asks

    def begin(self) -> None:
        """From here on the units are no longer those of the net, until `latent.measure`."""
        self.measured = False

    def anew(self, where: str) -> str:
        """How another run begins from the weights of that in a folder."""
        return f"train_codec(load_codec({where!r}, unfinished=True).codec, ..., out=another folder)"

    def objective(self) -> Reconstruction:
        """Reconstruction in nats and a small weight on the information in the codes, see `latent.Reconstruction`."""
        return Reconstruction()

    def words(self) -> str:
        """The shape that a run is held to when it goes on."""
        return f"a codec of {self.shape}"

    def described(self) -> dict[str, Any]:
        """What it is, for JSON: its net, its units.

        Raises:
            TypeError: The net has no `config`.
        """
        if unkept := getattr(self.net, "unkept", None):
            raise TypeError(str(unkept))
        return {
            "net": describe_net(self.net),
            "shape": None if self.shape is None else list(self.shape),
            **{name: getattr(self, name).double().tolist() for name in ("scale", "shift")},
            "noise": self.noise,
            "measured": self.measured,
        }

    def digest(self) -> str | None:
        """Of its net, its weights and its units, by which a model of its codes knows it; None where it has none.

        That is a codec whose net cannot be described, or is in half precision; double counts as the floats next to it.
        """
        try:
            described = self.described()
        except TypeError:
            return None
        tensors = self.net.state_dict()
        if any(t.dtype in HALVES for t in tensors.values()):
            return None
        wide = {name: t.detach().float() if t.is_floating_point() else t for name, t in tensors.items()}
        said = {name: described[name] for name in ("net", "shape", "scale", "shift")}
        return hashlib.sha256(sealed({**said, "weights": digest_of_tensors(wide)})).hexdigest()

    def save_to(
        self, path: str | Path, *, scaling: Scaling | None, extra: Mapping[str, Any] | None = None, keep: int = 0
    ) -> None:
        """Writes it to a folder as `codec.json` and its tensors, see `latent.save_codec`."""
        scaling = check_scaling(Standardise(cast("Tensor", 0.0), cast("Tensor", 1.0)) if scaling is None else scaling)
        if self.shape is not None:
            scaling = scaling.fitting(self.shape)
        about = {"format": FORMAT, "version": VERSION, **self.described()}
        about |= {"scaling": describe_scaling(scaling), "extra": dict(extra or {})}
        tensors = tensors_of(self.net)
        check_length(about)
        store.write(path, self.stored, about, tensors, keep=keep)

    def __repr__(self) -> str:
        noise = "None" if self.noise is None else f"{self.noise:.4g}"
        return f"NetCodec({type(self.net).__name__}, shape={self.shape}, noise={noise})"


def _in_dtype(answer: Any, x: Tensor) -> Any:
    """What a net answered, floats in the dtype of `x`; of anything else, those who look at answers have words."""
    return answer.to(x.dtype) if isinstance(answer, Tensor) and answer.is_floating_point() else answer


def _numbers(value: Any, name: str) -> Tensor:
    """A number, or one for each channel, as float32 on the CPU."""
    try:
        found = torch.as_tensor(value, device="cpu").detach().to(torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a number, or one for each channel, got {type(value).__name__}") from error
    if found.ndim > 1 or not found.numel():
        raise ValueError(f"{name} has shape {tuple(found.shape)}: wanted one number, or one for each channel, (C,)")
    if not bool(found.isfinite().all()) or (name == "scale" and bool((found == 0).any())):
        raise ValueError(f"{name} must be finite{' and not 0' * (name == 'scale')}, got {found.tolist()}")
    return found.clone()
