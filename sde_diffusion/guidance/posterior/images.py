"""Measurements of signals and images: entries that are kept, blurs, coarser grids."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from sde_diffusion._checks import check_count, check_finite
from sde_diffusion._tensors import rows
from sde_diffusion.guidance.posterior.measurement import Measurement

PADDINGS = {"circular": "circular", "zeros": "constant", "reflect": "reflect", "replicate": "replicate"}


class Mask(Measurement):
    """Some entries of the data, in the order of the flattened event: what is kept is measured, the rest is not.

    `Inpaint` puts exact entries in by replacement; a `Posterior` of a mask is closer to the law.

    Args:
        mask: True where an entry is kept, of the event shape. Where it keeps none, a `Posterior` is the model inside.

    Raises:
        TypeError: Not a tensor of truth values.

    Example:
        >>> model = Posterior(prior, Mask(torch.arange(64).reshape(1, 8, 8) < 32), noise=0.1)
        >>> y = model.measurement(x0)  # (B, 32)
    """

    mask: Tensor
    kept: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        given: object = mask
        if not isinstance(given, Tensor) or given.dtype != torch.bool:
            found = given.dtype if isinstance(given, Tensor) else type(given).__name__
            raise TypeError(f"mask must be a tensor of truth values of the event shape, got {found}: mask > 0 is one")
        self.register_buffer("mask", mask.detach().clone(), persistent=False)
        self.register_buffer("kept", mask.reshape(-1).nonzero()[:, 0], persistent=False)

    def forward(self, x0: Tensor) -> Tensor:
        if x0.shape[1:] != self.mask.shape:
            raise ValueError(f"mask has shape {tuple(self.mask.shape)}, wanted the event shape {tuple(x0.shape[1:])}")
        return rows(x0).index_select(1, self.kept)

    def adjoint(self, v: Tensor, x0: Tensor) -> Tensor:
        empty = v.new_zeros(len(v), self.mask.numel())
        return empty.index_copy(1, self.kept, v).reshape(len(v), *self.mask.shape)

    def diagonal(self, y: Tensor) -> Tensor:
        return torch.ones_like(y)

    def __repr__(self) -> str:
        return f"Mask({self.kept.numel()} of {self.mask.numel()})"


class Blur(Measurement):
    r"""Each channel by itself, convolved with a kernel: $y_i = \sum_jk_j\,x_{i + j - \lfloor n/2\rfloor}$, of one size.

    The kernel is not flipped, as in `torch.nn.functional.conv2d`.

    Args:
        kernel: $k$, of as many dimensions as the event `(C, *)` has behind its channels, one to three.
        padding: What lies beyond the edge: `"circular"`, `"zeros"`, `"reflect"` or `"replicate"`.

    Raises:
        TypeError: Not a tensor of floats.
        ValueError: A kernel of other dimensions, or not finite; another padding.
    """

    kernel: Tensor

    def __init__(self, kernel: Tensor, padding: str = "zeros") -> None:
        super().__init__()
        given: object = kernel
        if not isinstance(given, Tensor) or not given.is_floating_point():
            found = given.dtype if isinstance(given, Tensor) else type(given).__name__
            raise TypeError(f"kernel must be a tensor of floats, got {found}")
        if not 1 <= kernel.ndim <= 3 or not kernel.numel():
            raise ValueError(f"kernel must have one to three dimensions and no empty one, got {tuple(kernel.shape)}")
        if padding not in PADDINGS:
            raise ValueError(f"padding must be one of {', '.join(PADDINGS)}, got {padding!r}")
        self.register_buffer("kernel", check_finite(kernel, "kernel").detach().clone(), persistent=False)
        self.padding = padding

    def forward(self, x0: Tensor) -> Tensor:
        dims, channels = self.kernel.ndim, x0.shape[1] if x0.ndim > 1 else 0
        if x0.ndim != dims + 2:
            raise ValueError(
                f"kernel has {dims} dimensions, for events of a channel and as many more, and this one is "
                f"{tuple(x0.shape[1:])}"
            )
        pad = [side for n in reversed(self.kernel.shape) for side in (n // 2, n - 1 - n // 2)]
        wide = functional.pad(x0, pad, mode=PADDINGS[self.padding])
        weight = self.kernel.to(x0).expand(channels, 1, *self.kernel.shape)
        convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[dims - 1]
        found: Tensor = convolve(wide, weight, groups=channels)
        return found

    def __repr__(self) -> str:
        return f"Blur({' x '.join(map(str, self.kernel.shape))}, {self.padding!r})"


class Downsample(Measurement):
    r"""Means over blocks: `(C, *)` to `(C, */f)`.

    Args:
        factor: Length $f$ of a block in each dimension behind the channels, which it divides.

    Raises:
        ValueError: A factor below 1; and when asked, an event that it does not divide.
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = check_count(factor, "factor")

    def forward(self, x0: Tensor) -> Tensor:
        shape, f = x0.shape[2:], self.factor
        if not shape or any(n % f for n in shape):
            raise ValueError(
                f"factor={f} must divide all dimensions of the event behind its channels, which is "
                f"{tuple(x0.shape[1:])}"
            )
        blocks = x0.reshape(*x0.shape[:2], *(part for n in shape for part in (n // f, f)))
        return blocks.mean(tuple(range(3, blocks.ndim, 2)))

    def adjoint(self, v: Tensor, x0: Tensor) -> Tensor:
        f, dims = self.factor, v.ndim - 2
        for dim in range(2, v.ndim):
            v = v.repeat_interleave(f, dim)
        return v / math.pow(f, dims)

    def diagonal(self, y: Tensor) -> Tensor:
        return torch.full_like(y, 1 / math.pow(self.factor, y.ndim - 1))

    def __repr__(self) -> str:
        return f"Downsample({self.factor})"
