"""One thread per test process, and one state of the generator: no test depends on the load, or on those before it."""

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


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test begins with the same state of torch's generator, whichever ran before it: nets are drawn from it."""
    torch.manual_seed(0)
