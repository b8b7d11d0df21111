"""Claim: a compiled network is sampled as it is, and a whole solve can be compiled into one graph."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import zoo
from torch import Tensor, nn

from sde_diffusion import VPSDE, Network, SDESampler, SolverTable, TableSolver, grids, predict
from sde_diffusion.solvers import RK4, Angle, DPMSolverPP, Heun, Solver, UniPC


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 16), nn.SiLU(), nn.Linear(16, 3))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = self.layers(x) * t[:, None]
        return out


def sampler(net: Callable[..., Tensor], solver: Solver) -> SDESampler:
    return SDESampler(VPSDE(), Network(net, VPSDE(), predict.EDM(0.5), shape=(3,)), solver=solver, steps=8)


@pytest.mark.slow
@pytest.mark.parametrize("solver", [DPMSolverPP(2), UniPC(3), Heun(), Angle(RK4())], ids=zoo.name)
def test_a_whole_solve_compiles_into_one_graph(solver: Solver) -> None:
    torch.manual_seed(0)
    s = sampler(Net(), solver)
    x_T = torch.randn(4, 3)
    plain = s.sample(
        x_T=x_T, seed=0
    )  # also tabulates the levels and the weights, which the graph then holds as numbers
    torch._dynamo.reset()
    whole = torch.compile(lambda x: s.sample(x_T=x, seed=0), backend="eager", fullgraph=True)
    torch.testing.assert_close(whole(x_T), plain, rtol=0, atol=1e-6)
    torch.testing.assert_close(whole(x_T + 1), s.sample(x_T=x_T + 1, seed=0), rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("window", [None, 2])
def test_a_solve_by_a_table_compiles_into_one_graph(window: int | None) -> None:
    torch.manual_seed(0)
    table = SolverTable.of(DPMSolverPP(2), VPSDE(), grids.quadratic, steps=5)
    solver = TableSolver(table if window is None else table.windowed(window))
    s = SDESampler(VPSDE(), Network(Net(), VPSDE(), predict.EDM(0.5), shape=(3,)), solver=solver)
    x_T = torch.randn(4, 3)
    plain = s.sample(x_T=x_T, seed=0)
    torch._dynamo.reset()
    whole = torch.compile(lambda x: s.sample(x_T=x, seed=0), backend="eager", fullgraph=True)
    torch.testing.assert_close(whole(x_T), plain, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_compiled_network_is_compiled_once_for_all_steps() -> None:
    torch.manual_seed(0)
    net, graphs = Net(), []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    compiled = sampler(torch.compile(net, backend=backend), DPMSolverPP(2)).sample(5, seed=0)
    torch.testing.assert_close(compiled, sampler(net, DPMSolverPP(2)).sample(5, seed=0), rtol=0, atol=1e-6)
    assert len(graphs) == 1
