"""Calls that must be refused, each with the type of its error and what a user reads."""

from __future__ import annotations

from typing import Any

import pytest

T, V = TypeError, ValueError  # a capability or a kind of thing; a wrong value


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
