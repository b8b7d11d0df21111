"""One thread per test process: two processes on two cores, and sums that do not depend on the machine's load."""

from collections.abc import Iterator

import pytest
import torch

torch.set_num_threads(1)

TRYING = ("test_forecast", "test_docs", "test_readme")


@pytest.fixture(autouse=True, scope="module")
def untried(request: pytest.FixtureRequest) -> Iterator[None]:
    """Leaves out the trial of the steps, which would take a tenth of the suite; the files above ask for it."""
    with pytest.MonkeyPatch.context() as patch:
        if request.module.__name__.rpartition(".")[2] not in TRYING:
            patch.setattr("sde_diffusion.sampler.forecast.check_steps", lambda *_: None)
        yield
