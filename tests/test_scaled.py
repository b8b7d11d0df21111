"""Claim: a scaled source has the rows of its source, each scaled, in memory or read in parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import StackDataset

from sde_diffusion.data import Quantile, Source, Standardise, source_of
from sde_diffusion.data.sources.arrays import Rows
from sde_diffusion.data.sources.scaled import Condition, scaled

X = 3 + 10 * torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
CONTEXT = 100 + torch.randn(50, 3, generator=torch.Generator().manual_seed(1))
LABEL = torch.arange(50) % 4


def of(data, cond=None):
    source = source_of(data, cond)
    assert isinstance(source, Source)
    return source


@pytest.mark.parametrize("kept", [True, False], ids=["in memory", "read in parts"])
@pytest.mark.parametrize("kind", [Standardise, Quantile])
def test_rows_and_conditions_are_scaled_and_labels_are_not(kept, kind):
    rows: Any = {"x": X, "context": CONTEXT, "label": LABEL}
    source = of(X, {"context": CONTEXT, "label": LABEL}) if kept else of(StackDataset(**rows))
    scaling, told = kind.of(source), Standardise.of(Condition(source, "context"))
    found = scaled(source, scaling, {"context": told})
    assert isinstance(found, Rows) == kept
    assert (len(found), found.shape) == (50, (2,))
    numbers = torch.tensor([7, 3, 3])
    for x, cond in (found.rows(numbers), next(found.batches([numbers]))):
        assert torch.equal(x, scaling.apply(X[numbers]))
        assert torch.equal(cond["context"], told.apply(CONTEXT[numbers]))
        assert torch.equal(cond["label"], LABEL[numbers])


def test_a_scaling_of_a_condition_is_that_of_its_numbers():
    told = Standardise.of(Condition(of(X, {"context": CONTEXT}), "context"))
    torch.testing.assert_close(told.mean, CONTEXT.double().mean(0))


def test_data_without_a_scaling_stay_as_they_are():
    found = scaled(of(X), None)
    assert torch.equal(found.rows(torch.arange(50)).x, X)
