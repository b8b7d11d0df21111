r"""What is measured of data: $y = A(x_0)$, before the noise.

A `Measurement` takes data `(B, *)` to what is measured of each, `(B, *y)`, and has the adjoint of its derivative. It is
a module, moved along with the model that it is used with.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion._checks import check_callable, check_finite, no_tensor
from sde_diffusion._tensors import rows
from sde_diffusion.guidance.posterior.algebra import products
from sde_diffusion.guidance.probes import agree, check_alone, check_slope, draws, graphless, with_graph
from sde_diffusion.guidance.twisted import leaf


class Measurement(nn.Module, ABC):
    """What is measured of data. A subclass writes `forward`, row by row; `adjoint` and `push` are found from it.

    Attributes:
        linear: Whether it is linear; if not, the rules take its derivative at the mean of the data.
    """

    linear: bool = True

    @abstractmethod
    def forward(self, x0: Tensor) -> Tensor:
        """What is measured of data, `(B, *)` -> `(B, *y)`, in their dtype."""

    def adjoint(self, v: Tensor, x0: Tensor) -> Tensor:
        """The adjoint of the derivative, `(B, *y)` -> `(B, *)`; by default from the graph of `forward`.

        Args:
            v: What it is applied to.
            x0: Data at which the derivative is taken, shape `(B, *)`; of a linear measurement only their form counts.

        Raises:
            TypeError: No graph leads from what `forward` answers to the data.
        """
        with torch.inference_mode(mode=False), torch.enable_grad():
            y, at = self._graph(x0)
        (found,) = torch.autograd.grad(y, at, v, create_graph=torch.is_grad_enabled())
        return found

    def push(self, v: Tensor, x0: Tensor) -> Tensor:
        """The derivative at `x0`, applied to `v` of its shape: `(B, *)` -> `(B, *y)`."""
        if self.linear:
            return self(v)
        with torch.inference_mode(mode=False), torch.enable_grad():
            y, at = self._graph(x0)
            dummy = torch.zeros_like(y).requires_grad_()
            (back,) = torch.autograd.grad(y, at, dummy, create_graph=True)
        (found,) = torch.autograd.grad(back, dummy, v, create_graph=torch.is_grad_enabled())
        return found

    def rows(self, x0: Tensor, d: int) -> Tensor:
        """The derivative as matrices, shape `(B, d, D)`, or `(1, d, D)` where it is the same for all.

        Args:
            x0: Data at which it is taken, shape `(B, *)`.
            d: Size of what is measured of one sample.
        """
        if self.linear:
            one = x0[:1].detach()
            shape = self(one).shape[1:]
            unit = torch.eye(d, dtype=x0.dtype, device=x0.device).reshape(d, *shape)
            return rows(self.adjoint(unit, one.expand(d, *one.shape[1:])))[None]
        with torch.inference_mode(mode=False), torch.enable_grad():
            y, at = self._graph(x0)
        unit = torch.eye(d, dtype=x0.dtype, device=x0.device).reshape(d, 1, *y.shape[1:]).expand(d, *y.shape)
        return products(y, at, unit).flatten(2).transpose(0, 1)

    def diagonal(self, y: Tensor) -> Tensor | None:
        """The diagonal of the measurement times its adjoint, of the shape of `y`, where all else in it is 0."""
        return None

    def _graph(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        """What is measured of data, with a graph, and the data that it leads to."""
        at = x0 if x0.requires_grad and not self.linear else leaf(x0)
        y = with_graph(self, at, repr(self))
        if not y.requires_grad:
            raise graphless(repr(self))
        return y, at

    def check(self, like: Tensor) -> tuple[int, ...]:
        """The shape of what is measured of one sample, after a look at the answers to three draws.

        Args:
            like: One sample, shape `(1, *)`.

        Raises:
            TypeError: Answers that are no tensor, of another dtype or without a graph.
            ValueError: Answers without a row for each sample, of rows that depend on others, or that differ when asked
                twice; one that is said to be linear and is not; an adjoint that is none; answers that are not finite,
                or whose derivative is zero everywhere.

        Warns:
            UserWarning: Where it tells nothing of the data.
        """
        with torch.inference_mode(mode=False):
            y = self._checked(draws(3, like))
        if self.linear and not bool((y != 0).any()):
            warnings.warn(
                f"{self!r} tells nothing of the data, so that the model inside is left as it is: is there a mistake in "
                "what it keeps?",
                UserWarning,
                stacklevel=4,
            )
        return tuple(y.shape[1:])

    def _checked(self, x: Tensor) -> Tensor:
        """What is answered to draws, after all looks at it."""
        y = check_alone(self._answer, x, repr(self))
        if not self.linear and not bool(y.isfinite().all()):
            raise ValueError(
                f"{self!r} answered numbers that are not finite to data that are, draws of a normal law, and a rule "
                "asks it at means that lie anywhere: bound it, x.clamp_min(1e-6).log()"
            )
        self._check_adjoint(x, y)
        if not self.linear and y.numel():
            check_slope(self._answer, x, repr(self))
        return y

    def _check_adjoint(self, x: Tensor, y: Tensor) -> None:
        """Raises unless what was answered to draws is linear, if it should be, and the adjoint is one."""
        with torch.no_grad():
            if self.linear:
                what = f"{self!r} is not linear: give it as Nonlinear(forward), an offset as a part of y"
                agree(self._answer(x[:1] - 2 * x[1:2]), y[:1] - 2 * y[1:2], y, what)
            v = draws(len(y), y, seed=1)
            back = self.adjoint(v, x)
            if not isinstance(back, Tensor):
                raise no_tensor(back, x, f"the adjoint of {self!r}")
            if back.shape != x.shape:
                raise ValueError(
                    f"the adjoint of {self!r} answered shape {tuple(back.shape)}, wanted that of the data, "
                    f"{tuple(x.shape)}"
                )
            if self.linear and y.numel():
                one, other = (rows(y) * rows(v)).sum(1), (rows(x) * rows(back)).sum(1)
                size = rows(y).norm(dim=1) * rows(v).norm(dim=1) + rows(x).norm(dim=1) * rows(back).norm(dim=1)
                agree(one, other, size, f"the adjoint of {self!r} is none: <A x, v> and <x, A' v> differ")

    def _answer(self, x: Tensor) -> Tensor:
        y: Any = self(x)
        if not isinstance(y, Tensor):
            raise TypeError(f"{self!r} answered {type(y).__name__}, wanted a tensor with a row for each sample")
        if y.dtype != x.dtype:
            raise TypeError(f"{self!r} answered {y.dtype} to data in {x.dtype}: wanted the dtype of the data")
        if not y.ndim or len(y) != len(x):
            raise ValueError(f"{self!r} answered shape {tuple(y.shape)} to {len(x)} samples: wanted a row for each")
        return y


class Matrix(Measurement):
    r"""A matrix over the flattened event, $y = A\,x_0$.

    Args:
        a: $A$, shape `(d, D)`.

    Raises:
        TypeError: Not a tensor of floats.
        ValueError: Not of two dimensions, or not finite.

    Example:
        >>> Posterior(model, Matrix(torch.tensor([[1.0, 1.0]])), noise=0.1)
    """

    a: Tensor

    def __init__(self, a: Tensor) -> None:
        super().__init__()
        given: object = a
        if not isinstance(given, Tensor) or not given.is_floating_point():
            found = given.dtype if isinstance(given, Tensor) else type(given).__name__
            raise TypeError(f"a must be a matrix of floats, a tensor of shape (d, D), got {found}")
        if a.ndim != 2:
            raise ValueError(f"a must be of shape (d, D), over the flattened event, got {tuple(a.shape)}")
        self.register_buffer("a", check_finite(a, "a").detach().clone(), persistent=False)

    def forward(self, x0: Tensor) -> Tensor:
        flat = rows(x0)
        if flat.shape[1] != self.a.shape[1]:
            raise ValueError(
                f"a has shape {tuple(self.a.shape)}, and an event of {tuple(x0.shape[1:])} has {flat.shape[1]} "
                f"numbers: wanted (d, {flat.shape[1]})"
            )
        return flat @ self.a.to(x0).mT

    def adjoint(self, v: Tensor, x0: Tensor) -> Tensor:
        return (v @ self.a.to(v)).reshape(len(v), *x0.shape[1:])

    def rows(self, x0: Tensor, d: int) -> Tensor:
        return self.a.to(x0)[None]

    def __repr__(self) -> str:
        return f"Matrix({self.a.shape[0]} x {self.a.shape[1]})"


class Operator(Measurement):
    """A linear function.

    Args:
        forward: Called with data `(B, *)`, answers `(B, *y)`, each row from its own.
        adjoint: Called with `(B, *y)`, answers `(B, *)`; None to find it from the graph of `forward`.

    Raises:
        TypeError: Not a function.
    """

    def __init__(self, forward: Callable[[Tensor], Tensor], adjoint: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        check_callable(forward, "forward", "a function of the data")
        if adjoint is not None:
            check_callable(adjoint, "adjoint", "a function of what is measured")
        self._apply_to, self._back = forward, adjoint  # a module among them is registered, and moved along

    def forward(self, x0: Tensor) -> Tensor:
        return self._apply_to(x0)

    def adjoint(self, v: Tensor, x0: Tensor) -> Tensor:
        return super().adjoint(v, x0) if self._back is None else self._back(v)

    def __repr__(self) -> str:
        return f"Operator({_named(self._apply_to)})"


class Nonlinear(Measurement):
    r"""Any differentiable function; a rule takes its derivative at the mean of the data, $A = \partial h/\partial x_0$.

    Args:
        forward: $h$, called with data `(B, *)`, answers `(B, *y)`, each row from its own.

    Raises:
        TypeError: Not a function.
    """

    linear = False

    def __init__(self, forward: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        check_callable(forward, "forward", "a function of the data")
        self._apply_to = forward

    def forward(self, x0: Tensor) -> Tensor:
        return self._apply_to(x0)

    def __repr__(self) -> str:
        return f"Nonlinear({_named(self._apply_to)})"


def _named(function: object) -> str:
    return getattr(function, "__name__", type(function).__name__)
