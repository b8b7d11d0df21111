"""Calls that must be refused, each with the type of its error and what a user reads."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sde_diffusion import SDE

T, V = TypeError, ValueError  # a capability or a kind of thing; a wrong value


class DoubleWell(SDE):
    """dx = (x - x^3) dt + dw: not Gaussian."""

    t_min, t_max = 0.0, 1.0

    def drift(self, x, t):
        return x - x**3

    def diffusion(self, t):
        return torch.ones(())

    def prior(self, z):
        return z

    def prior_log_prob(self, x):
        return -0.5 * x.square().flatten(1).sum(1)


def refuses(*cases: Any) -> pytest.MarkDecorator:
    """Runs a test over cases `(call, error, text)`; a call may be anything that the test makes one of."""
    ids = [f"{i}: {text[:50]}" for i, (_, _, text) in enumerate(cases)]
    return pytest.mark.parametrize(("call", "error", "text"), cases, ids=ids)


def check(call, error, text):
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error, f"a {type(caught.value).__name__}: {caught.value}"
    assert text in str(caught.value), str(caught.value)


def wrong(value: Any) -> Any:
    """A value of a type that the call does not take, which the type checker would see, too."""
    return value
