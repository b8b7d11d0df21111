r"""A weight that is learnt: each noise level counts by the inverse of the error that is left at it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion._checks import check_count
from sde_diffusion._tensors import as_float64
from sde_diffusion.denoiser.objectives.effective import as_lam
from sde_diffusion.denoiser.objectives.matching import DenoisingScoreMatching
from sde_diffusion.denoiser.objectives.regressed import Regressed, check_call


class Uncertainty(nn.Module):
    r"""An objective whose loss $L$ is divided by a learnt $e^u$ at each noise level.

    $$ \mathrm E\,[\,e^{-u(\lambda)}L + u(\lambda)\,] $$

    The minimum in $u$ is $\log\mathrm E[L \mid \lambda]$, so that every level comes to count alike, whatever weight the
    objective had. The function $u$ is a sum of cosines in $z = \lambda/(4 + |\lambda|)$, which runs from -1 to 1, with
    coefficients of zero to start with:

    $$ u = \sum_{k=0}^{K-1} \frac{16}{1 + k}\,v_k \cos\big(\tfrac{\pi k}2(1 + z)\big) $$

    It is a module, since $v$ is trained beside the model: give its `parameters()` to the optimiser too. They belong to
    the training and not to the model, whose checkpoint does not have them; `state_dict()` is what resumes a run.

    Args:
        objective: What is divided, such as `model.objective()`.
        features: $K$.

    Raises:
        TypeError: `objective` is no `DenoisingScoreMatching`.
        ValueError: No feature, or an objective with a `variance_bound`.

    References:
        Karras et al., Analyzing and Improving the Training Dynamics of Diffusion Models, 2024 (equations 14 and 15);
        Kendall et al., Multi-Task Learning Using Uncertainty to Weigh Losses, 2018.

    Example:
        >>> loss = Uncertainty(model.objective())
        >>> optimiser = torch.optim.Adam([*model.parameters(), *loss.parameters()])
        >>> loss(model, x0).backward()
    """

    def __init__(self, objective: DenoisingScoreMatching, *, features: int = 32) -> None:
        super().__init__()
        given: object = objective
        if not isinstance(given, DenoisingScoreMatching):
            raise TypeError(f"Uncertainty divides a DenoisingScoreMatching, such as model.objective(), got {given!r}")
        if objective.variance_bound:
            raise ValueError(
                "Uncertainty divides an error, which is positive, and a bound is not: "
                f"variance_bound=0, got {objective.variance_bound!r}"
            )
        self.objective = objective
        self.v = nn.Parameter(torch.zeros(check_count(features, "features"), device="cpu"))

    def __repr__(self) -> str:
        apart = "" if len(self.v) == 32 else f", features={len(self.v)}"
        return f"{type(self).__name__}({self.objective!r}{apart})"

    def log_error(self, lam: Tensor) -> Tensor:
        r"""$u(\lambda)$, of the shape of `lam`, on the device and in the dtype of the parameters."""
        lam = lam.to(self.v)
        z = torch.where(torch.isinf(lam), lam.sign(), lam / (4 + lam.abs()))
        k = torch.arange(len(self.v), device=lam.device, dtype=lam.dtype)
        return torch.cos(math.pi / 2 * k * (1 + z)[..., None]) @ (16 / (1 + k) * self.v)

    def forward(
        self,
        model: Regressed,
        x0: Tensor,
        *,
        generator: torch.Generator | None = None,
        t: Tensor | None = None,
        eps: Tensor | None = None,
        reduction: str = "mean",
        **cond: Any,
    ) -> Tensor:
        """The divided loss of a model on one batch; all arguments as those of `DenoisingScoreMatching`."""
        check_call(model, x0, generator, reduction)
        if t is None:
            t = self.times_for(model, len(x0), generator).to(x0.device)
        error = self.objective(model, x0, generator=generator, t=t, eps=eps, reduction="none", **cond)
        u = self.log_error(model.sde.level(t, x0).lam.reshape(-1)).to(error)
        error = torch.exp(-u) * error + u
        return error.mean() if reduction == "mean" else error

    def times_for(self, model: Regressed, n: int, generator: torch.Generator | None = None) -> Tensor:
        """The times of a batch of `n`, shape `(n,)`, in float64 on the CPU."""
        return self.objective.times_for(model, n, generator)

    def draws(
        self,
        model: Regressed,
        shape: Iterable[int],
        n: int,
        generator: torch.Generator | None = None,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Tensor, Tensor]:
        """What a call draws for `n` data: times `(n,)` and noise `(n, *shape)`, on the CPU."""
        return self.objective.draws(model, shape, n, generator, dtype=dtype)

    def effective_weight(self, model: Regressed, lam: Tensor) -> Tensor:
        r"""$w(\lambda)\,e^{-u(\lambda)}$ as it has been learnt so far, shape `(n,)`, in float64."""
        lam = as_lam(lam)
        u = as_float64(self.log_error(lam).detach().to("cpu"))
        return self.objective.effective_weight(model, lam) * torch.exp(-u)
