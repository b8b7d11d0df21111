r"""`LatentSampler`: codes by an `SDESampler`, and data of them by a codec.

$$ z \sim p_\text{diffusion}, \qquad x = d(z / \text{scale} + \text{shift}) $$

The step costs what it costs at the size of a code; the decoder is asked once for a sample. Whatever works on an
`SDESampler` works inside: every solver, guidance, a posterior, a tuned table, a flow map of one call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor

from sde_diffusion._checks import check_count, check_finite, check_flag, check_state
from sde_diffusion.denoiser.conditions import Conditions
from sde_diffusion.denoiser.modules import Evaluation, home
from sde_diffusion.latent.codec import Code, Codec, check_codec, check_measured, decoded, encoded
from sde_diffusion.noise.seeds import Seed
from sde_diffusion.noise.sources import NoiseSource, Streams
from sde_diffusion.sampler.base import Sampler
from sde_diffusion.sampler.sampler import SDESampler
from sde_diffusion.solvers.loop import Snapshot

__all__ = ["LatentSampler"]


class LatentSampler(Sampler):
    """Draws codes by a sampler and decodes them. Sample `i` depends on seed `i` and row `i` of a condition alone.

    Codec and model are in evaluation mode in every call, and in their own again after it. What is drawn is what the
    decoder makes of a code: its noise is not added, and detail that the codec loses no sampler brings back.

    Args:
        sampler: Draws codes of unit scale; it knows their shape. With its solver, grid, steps and prior.
        codec: Takes data to codes and back.

    Raises:
        TypeError: Something else than an `SDESampler`, or no codec.
        ValueError: A sampler that does not know its event shape, or a codec that cannot decode codes of that shape, or
            was trained since it was measured.

    Example:
        >>> sampler = LatentSampler(SDESampler(sde, model, nfe=20), codec)
        >>> x = sampler.sample(64, seed=0)
    """

    def __init__(self, sampler: SDESampler, codec: Codec) -> None:
        given: object = sampler
        if not isinstance(given, SDESampler):
            fix = ": of a Tuned take tuned.sampler(nfe)" if hasattr(given, "choices") else ""
            raise TypeError(f"sampler must be an SDESampler of codes, got {type(given).__name__}{fix}")
        if sampler.shape is None:
            raise ValueError("the shape of a code is not known: give it to SDESampler(..., shape=(4, 8, 8))")
        self.sampler, self.codec = sampler, check_codec(codec)
        check_measured(codec)
        dtype, device = home(sampler.model)
        one = torch.zeros(1, *sampler.shape, dtype=dtype, device=device)
        with torch.no_grad(), Evaluation(codec), fitting(codec, "decode", one):
            x = decoded(codec, one)
        self._shape, self._dtype = tuple(x.shape[1:]), x.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Event shape of the data, as the codec decodes them."""
        return self._shape

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the data."""
        return self._dtype

    @property
    def models(self) -> tuple[object, ...]:
        """The model of the codes, and the codec."""
        return (*self.sampler.models, self.codec)

    @property
    def details(self) -> list[Any]:
        """Those of the sampler, the scale and the shift of the codec, and what it holds, if it is no module."""
        codec: Any = self.codec
        held = {} if isinstance(codec, torch.nn.Module) else dict(getattr(codec, "__dict__", {}))
        return [*self.sampler.details, codec.scale, codec.shift, held]

    def conditions(self, cond: Mapping[str, Any], n: int) -> Conditions:
        """The conditions of `n` samples, sorted by what the model of the codes says of them."""
        return self.sampler.conditions(cond, n)

    def __repr__(self) -> str:
        return f"LatentSampler({self.sampler!r}, codec)"

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
        """Draws `n` samples, shape `(n, *)`: those of the sampler, decoded.

        Args:
            n: Number of samples.
            seed: As in `SDESampler.sample`.
            x_T: Start from this state of the codes, shape `(n, *code)`, such as `encode` finds.
            batch_size: Samples in flight at once, in the solve and in the decoder.
            progress: Shows a progress bar, of the solve.
            noise: As in `SDESampler.sample`.
            grad: Keeps the graph, through the decoder and the solve.
            nonfinite: As in `SDESampler.sample`; a code that is kept as NaN is not decoded, and its sample is NaN.
            **cond: Handed to the model of the codes, as in `SDESampler.sample`.

        Raises:
            ValueError: As `SDESampler.sample`, or a decoder that answers other than it did, or not finite.
            SolverError: A state that is not finite, with its rows.
        """
        z = self.sampler.sample(
            n,
            seed=seed,
            x_T=x_T,
            batch_size=batch_size,
            progress=progress,
            noise=noise,
            grad=grad,
            nonfinite=nonfinite,
            **cond,
        )
        return self.decode(z, batch_size=batch_size, grad=grad)

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
        """The solve behind `sample`, step by step, each state decoded. Arguments as there.

        The last snapshot is the sample. A state on the way is a code with noise, of which a decoder makes what it can;
        `sampler.iterate` of the sampler inside has the codes, and costs no decoder.
        """
        check_flag(grad, "grad")
        solve = self.sampler.iterate(n, seed=seed, x_T=x_T, noise=noise, grad=grad, nonfinite=nonfinite, **cond)
        return (now._replace(x=self.decode(now.x, grad=grad)) for now in solve)

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
        """Data made more like those of the model, by way of their codes, as `SDESampler.edit` does it.

        Args:
            x0: Data to start from, shape `(n, *)`; their codes are the means of the encoder.
            level: Noise level, in units of the codes, whose scale is about 1.
            seed: As in `sample`, the noise that is added included.
            batch_size: As in `sample`; the encoder is asked in such batches, too.
            progress: Shows a progress bar.
            noise: As in `sample`.
            grad: Keeps the graph.
            nonfinite: As in `sample`.
            **cond: As in `sample`.

        Returns:
            Samples, shape `(n, *)`.
        """
        z = self.sampler.edit(
            self.code(x0, batch_size=batch_size, grad=grad),
            level,
            seed=seed,
            batch_size=batch_size,
            progress=progress,
            noise=noise,
            grad=grad,
            nonfinite=nonfinite,
            **cond,
        )
        return self.decode(z, batch_size=batch_size, grad=grad)

    def encode(self, x0: Tensor, *, progress: bool = False, grad: bool = False, **cond: Any) -> Tensor:
        """The state `x_T` of the codes from which the deterministic sampler returns to what the codec keeps of `x0`.

        Args:
            x0: Data, shape `(B, *)`; their codes are the means of the encoder.
            progress: Shows a progress bar.
            grad: Keeps the graph.
            **cond: Handed to the model of the codes, as in `sample`.

        Returns:
            The state at the first grid time, shape `(B, *code)`; `sample(x_T=...)` decodes it.

        Raises:
            ValueError: A stochastic solver, or data of another shape, empty or not finite.
            TypeError: Integer or half-precision data.
        """
        return self.sampler.encode(self.code(x0, grad=grad), progress=progress, grad=grad, **cond)

    def code(self, x0: Tensor, *, batch_size: int | None = None, grad: bool = False) -> Tensor:
        """The codes of data at unit scale, the means of their `law`.

        Args:
            x0: Data, shape `(B, *)`.
            batch_size: Rows that the encoder is asked for at once; all by default.
            grad: Keeps the graph.

        Returns:
            Codes, shape `(B, *code)`.

        Raises:
            ValueError: Data or codes of another shape.
        """
        check_state(x0, "x0", shape=self.shape)
        with torch.set_grad_enabled(check_flag(grad, "grad")):
            return torch.cat([self.law(x).mean for x in x0.split(_size(batch_size, len(x0)))])

    def law(self, x0: Tensor) -> Code:
        """The law of the codes of data at unit scale, their means and standard deviations.

        Args:
            x0: Data, shape `(B, *)`.

        Raises:
            ValueError: Data that the encoder does not take, or codes of another shape than the sampler draws.
        """
        check_finite(check_state(x0, "x0", shape=self.shape), "x0")
        with Evaluation(self.codec), fitting(self.codec, "encode", x0):
            code = encoded(self.codec, x0)
        if tuple(code.mean.shape[1:]) != self.sampler.shape:
            raise ValueError(
                f"{type(self.codec).__name__}.encode answered codes of shape {tuple(code.mean.shape[1:])}, and the "
                f"sampler draws {self.sampler.shape}: the model must be one of codes of this codec"
            )
        return code

    def decode(self, z: Tensor, *, batch_size: int | None = None, grad: bool = False) -> Tensor:
        """Data from codes at unit scale; a row that is not finite is not decoded, and is NaN.

        Args:
            z: Codes, shape `(B, *code)`.
            batch_size: Rows that the decoder is asked for at once; all by default.
            grad: Keeps the graph.

        Returns:
            Data, shape `(B, *)`.
        """
        check_state(z, "z", shape=self.sampler.shape)
        with torch.set_grad_enabled(check_flag(grad, "grad")), Evaluation(self.codec):
            parts = [self._decoded(part) for part in z.split(_size(batch_size, len(z)))]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def log_prob(self, x0: Tensor, **options: Any) -> NoReturn:
        """Raises `TypeError`: the density of what a codec decodes is an integral over all codes."""
        raise TypeError(
            "a LatentSampler has no exact log_prob: log p(x) is an integral over all codes. latent.elbo(sampler, x0) "
            "bounds it from below; sampler.sampler.log_prob(sampler.code(x0)) is the exact density of the codes"
        )

    def sample_with_log_prob(self, n: int = 1, **options: Any) -> NoReturn:
        """Raises `TypeError`, as `log_prob`."""
        raise TypeError(
            "a LatentSampler has no exact log_prob of its samples: sampler.sampler.sample_with_log_prob(n) has that of "
            "codes, sampler.decode(z) their data, and latent.elbo(sampler, x) bounds the density of these from below"
        )

    def _decoded(self, z: Tensor) -> Tensor:
        good = z.detach().flatten(1).isfinite().all(1)
        if bool(good.all()):
            return decoded(self.codec, z, self.shape)
        x = torch.full((len(z), *self.shape), torch.nan, dtype=z.dtype, device=z.device)
        return x.index_put((good,), decoded(self.codec, z[good], self.shape)) if bool(good.any()) else x


@contextmanager
def fitting(codec: Codec, call: str, x: Tensor) -> Iterator[None]:
    """Within it, what torch says of shapes, dtypes and devices that do not fit a codec is said of the codec.

    Args:
        codec: The codec.
        call: What it is asked for, `"encode"` or `"decode"`.
        x: What it is given.

    Raises:
        ValueError: It does not take this.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, IndexError) as error:
        what = f"{'data' if call == 'encode' else 'codes'} of shape {tuple(x.shape[1:])}, {x.dtype} on {x.device}"
        raise ValueError(
            f"{type(codec).__name__}.{call} does not take {what} ({str(error).splitlines()[0]}): codec, model and data "
            "must be of one dtype, on one device, and the model one of codes of this codec"
        ) from error


def _size(batch_size: int | None, n: int) -> int:
    return n if batch_size is None else check_count(batch_size, "batch_size")
