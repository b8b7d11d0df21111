"""Codecs of autoencoders that come from elsewhere: modules, functions, and `AutoencoderKL` of diffusers.

Nothing is imported for them. What an encoder answers may be a tensor, of a plain autoencoder; a pair of mean and
standard deviation; or an object with these as `mean` and `std`, in `latent_dist` where there is one. What a decoder
answers is a tensor, or has it as `sample`, or first in a tuple.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sde_diffusion._checks import check_callable
from sde_diffusion.denoiser.modules import modules_behind
from sde_diffusion.latent.net_codec import NetCodec

__all__ = ["Adapted", "from_autoencoder", "from_diffusers", "from_functions"]


class Adapted(nn.Module):
    """Two functions as a net that encodes and decodes; the modules behind them are its parts.

    Args:
        encoder: Data to a code, see `latent.adapters`.
        decoder: A code to data.
    """

    unkept: ClassVar[str] = (
        "a codec of functions, or of a module from elsewhere, is not kept by name: give the module a `config` property "
        "(its constructor's arguments), and let it answer a mean and a standard deviation, NetCodec(module); or keep "
        "its state_dict() and the codec's scale, shift and noise by hand, and make the codec again of them"
    )
    """Why it is not saved, and what to do."""

    def __init__(self, encoder: Callable[[Tensor], Any], decoder: Callable[[Tensor], Any]) -> None:
        super().__init__()
        check_callable(encoder, "encode", "a function from data to codes")
        check_callable(decoder, "decode", "a function from codes to data")
        self._functions = encoder, decoder
        found = {id(module): module for function in self._functions for module in modules_behind(function)}
        self.parts = nn.ModuleList(found.values())

    def check_copies(self) -> None:
        """Raises `ValueError` unless a copy of it computes with its own weights, as the average of a run has to.

        A function that reaches a module by name would go on with that module itself, whatever the copy learns.
        """
        own = {id(module) for part in self.parts for module in part.modules()}
        copied = copy.deepcopy(self)
        reached = {id(module) for function in copied._functions for module in modules_behind(function)}
        if not any(True for _ in self.parameters()) or reached & own:
            raise ValueError(
                "functions cannot be trained: their weights are not the codec's own, so that its average, its best and "
                "a run that goes on would not have them. from_autoencoder(net) takes a module with encode and decode"
            )

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the codes of `x`; zero where the encoder is a plain function."""
        return _law(self._functions[0](x))

    def decode(self, z: Tensor) -> Tensor:
        """Data from codes."""
        answer = self._functions[1](z)
        if isinstance(answer, tuple) and answer:
            answer = answer[0]
        found: Any = answer if isinstance(answer, Tensor) else getattr(answer, "sample", None)
        if not isinstance(found, Tensor):
            raise TypeError(
                f"the decoder answered {type(answer).__name__}, wanted a tensor, or an object that has it as .sample"
            )
        return found


def from_functions(
    encode: Callable[[Tensor], Any],
    decode: Callable[[Tensor], Any],
    *,
    shape: tuple[int, ...] | None = None,
    scale: Any = 1.0,
    shift: Any = 0.0,
    noise: float | None = None,
) -> NetCodec:
    """A codec of two functions, whose units `latent.measure` finds from data, if they are not known.

    Args:
        encode: Data `(B, *)` to codes, see `latent.adapters`.
        decode: Codes `(B, *code)` to data.
        shape: As in `NetCodec`, as `scale`, `shift` and `noise` are.
        scale: See there.
        shift: See there.
        noise: See there; a bound on log p(x) wants it, and `measure` finds it where it has a first value.

    Raises:
        TypeError: No functions; answers of another kind, when they are called.
    """
    return NetCodec(Adapted(encode, decode), shape=shape, scale=scale, shift=shift, noise=noise)


def from_autoencoder(net: Any, **units: Any) -> NetCodec:
    """A codec of an object with `encode` and `decode`, which may answer in any of the forms of `latent.adapters`.

    Args:
        net: A module, for instance.
        **units: As in `from_functions`.

    Raises:
        TypeError: It lacks one of the two.
    """
    for name in ("encode", "decode"):
        if not callable(getattr(net, name, None)):
            raise TypeError(
                f"{type(net).__name__} has no {name}: from_functions(encode, decode) takes functions of any name"
            )
    return from_functions(net.encode, net.decode, **units)


def from_diffusers(vae: Any, **units: Any) -> NetCodec:
    r"""A codec of an `AutoencoderKL` of diffusers, with the scaling and shift of its configuration.

    $$ z = (u - \text{shift\_factor}) \cdot \text{scaling\_factor} $$

    Where it has `latents_mean`, one for each channel, these are the shift; where it has `latents_std`, the scale is
    divided by them. Quantised codes are not made unit by any of it: `latent.measure` does that for any codec.

    Args:
        vae: The autoencoder.
        **units: As in `from_functions`; `scale=` and `shift=` take the place of what the configuration says.

    Raises:
        TypeError: It lacks `encode`, `decode` or `config`.
        ValueError: Its configuration has no `scaling_factor` and no `latents_std`.
    """
    config = getattr(vae, "config", None)
    if config is None:
        raise TypeError(f"{type(vae).__name__} has no config, as AutoencoderKL has: from_autoencoder takes any other")

    def said(name: str) -> Any:
        return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)

    factor, mean, std = (said(name) for name in ("scaling_factor", "latents_mean", "latents_std"))
    if factor is None and std is None and "scale" not in units:
        raise ValueError(
            f"the configuration of {type(vae).__name__} has no scaling_factor, and no latents_std: give scale=, or "
            "measure it on data, latent.measure(from_autoencoder(vae), data)"
        )
    scale, shift = factor, said("shift_factor") or 0.0
    if mean is not None:
        shift = torch.tensor(mean, device="cpu")
    if std is not None:
        scale = (1.0 if factor is None else factor) / torch.tensor(std, device="cpu")
    return from_autoencoder(vae, **{"scale": scale, "shift": shift, **units})


def _law(answer: Any) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, from whatever an encoder answers."""
    if isinstance(answer, tuple) and len(answer) == 1:
        answer = answer[0]
    answer = getattr(answer, "latent_dist", answer)
    if isinstance(answer, Tensor):
        return answer, torch.zeros_like(answer)
    if isinstance(answer, tuple) and len(answer) == 2 and all(isinstance(part, Tensor) for part in answer):
        return answer
    mean, std = getattr(answer, "mean", None), getattr(answer, "std", getattr(answer, "stddev", None))
    if isinstance(mean, Tensor) and isinstance(std, Tensor):
        return mean, std
    if isinstance(found := getattr(answer, "latents", None), Tensor):
        return found, torch.zeros_like(found)
    raise TypeError(
        f"the encoder answered {type(answer).__name__}, wanted a tensor, a pair of mean and standard deviation, or an "
        "object that has them as .mean and .std, in .latent_dist or itself"
    )
