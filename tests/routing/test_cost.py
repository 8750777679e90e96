import pytest
import torch
from torch import Tensor, nn

from tread_ssm import Blocks, Layout, Route, RoutePlan, attach, run_blocks
from tread_ssm.routing import Draw
from tread_ssm.routing.cost import plan_cost

DIM, DEPTH, GRID = 8, 6, (4, 4)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(DIM, DIM, bias=False)

    def forward(self, x: Tensor, cond: None, layout: Layout) -> Tensor:
        return x + self.linear(x)


class Network(nn.Module):
    grid = GRID

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, DIM, bias=False)
        self.blocks = nn.ModuleList(Mlp() for _ in range(DEPTH))

    def forward(self, x: Tensor, *, routing: Draw = ()) -> Tensor:
        return run_blocks(self.blocks, self.embed(x), None, Layout(GRID), routing)


def test_tokens_and_flops_of_linear_blocks_are_exact() -> None:
    with torch.device("meta"):
        network, x = Network(), torch.empty(2, 16, 3)
    cost = plan_cost(network, RoutePlan((Route(1, 5),), DEPTH), [x])
    assert cost.dense.tokens == (16,) * 6
    assert cost.routed.tokens == (16, 8, 8, 8, 8, 16)
    one_token = 2 * 2 * DIM * DIM  # batch 2, multiply and add
    assert cost.dense.block_flops == (16 * one_token,) * 6
    assert cost.routed.block_flops == tuple(t * one_token for t in cost.routed.tokens)
    embed = 2 * 16 * 2 * 3 * DIM
    assert cost.routed.forward == embed + 64 * one_token
    # Backward: two products a layer, one for the embedding, whose input needs no gradient.
    assert cost.routed.training == 2 * embed + 3 * 64 * one_token
    assert cost.token_share == 64 / 96
    assert cost.step_share == cost.routed.training / cost.dense.training


def test_counting_leaves_no_gradients_and_no_hooks() -> None:
    network = Network()
    plan_cost(network, RoutePlan((Route(1, 5),), DEPTH), [torch.randn(2, 16, 3)])
    assert all(p.grad is None for p in network.parameters())
    assert all(not b._forward_hooks and not b._forward_pre_hooks for b in network.blocks)


def test_backward_of_a_depthwise_convolution_costs_two_forwards() -> None:
    class Convolution(nn.Module):
        grid = GRID

        def __init__(self, groups: int) -> None:
            super().__init__()
            self.blocks = nn.ModuleList()
            self.conv = nn.Conv2d(8, 8, 3, padding=1, groups=groups)

        def forward(self, x: Tensor, *, routing: Draw = ()) -> Tensor:
            return self.conv(x)

    for groups in (1, 8):
        x = torch.randn(2, 8, 4, 4, requires_grad=True)
        cost = plan_cost(Convolution(groups), RoutePlan((), 1), [x]).dense
        assert cost.forward == 2 * 2 * 16 * 8 * (8 // groups) * 9
        assert cost.training == 3 * cost.forward


def test_streams_given_by_name_are_counted() -> None:
    class ByName(Network):
        def forward(self, x: Tensor, *, routing: Draw = ()) -> Tensor:
            x = self.embed(x)
            for block in self.blocks:
                x = block(x=x, cond=None, layout=Layout(GRID))
            return x

    cost = plan_cost(ByName(), RoutePlan((), DEPTH), [torch.randn(2, 16, 3)])
    assert cost.dense.tokens == (16,) * DEPTH


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(DIM, DIM, bias=False)

    def forward(self, scale: float, x: Tensor) -> Tensor:
        return x + scale * self.linear(x)


class Foreign(nn.Module):
    """A model that knows no routes: a class token before the image, its output in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, DIM, bias=False)
        self.layers = nn.ModuleList(Block() for _ in range(DEPTH))

    def forward(self, image: Tensor) -> dict[str, object]:
        x = self.embed(image)
        x = torch.cat([x.new_zeros(len(x), 1, DIM), x], dim=1)
        for block in self.layers:
            x = block(0.5, x=x)
        return {"sample": x, "grid": GRID}


def test_attached_models_are_counted_as_they_run() -> None:
    with torch.device("meta"):
        model, image = Foreign(), torch.empty(2, 16, 3)
    routing = attach(model, rows=(Blocks("layers", n_prefix=1, streams=("x",)),))
    plan = RoutePlan((Route(1, 5),), DEPTH)
    cost = plan_cost(routing, plan, {"image": image}, grid=GRID)
    assert cost.dense.tokens == (17,) * 6
    assert cost.routed.tokens == (17, 9, 9, 9, 9, 17)
    one_token = 2 * 2 * DIM * DIM
    assert cost.routed.block_flops == tuple(t * one_token for t in cost.routed.tokens)
    embed = 2 * 16 * 2 * 3 * DIM
    assert cost.routed.training == 2 * embed + 3 * 70 * one_token
    assert plan_cost(routing, plan, [image], grid=GRID) == cost


def test_what_an_attached_model_must_tell() -> None:
    model, image = Foreign(), torch.randn(2, 16, 3)
    plan = RoutePlan((Route(1, 5),), DEPTH)
    routing = attach(model, rows=(Blocks("layers", n_prefix=1, streams=("x",)),))
    with pytest.raises(ValueError, match="does not tell its token grid"):
        plan_cost(routing, plan, [image])
    routing.detach()
    alone = attach(model.layers, n_prefix=1, streams=("x",))
    with pytest.raises(ValueError, match="attached to blocks alone"):
        plan_cost(alone, plan, [image], grid=GRID)
    with pytest.raises(ValueError, match="leave grid out"):
        plan_cost(Network(), plan, [image], grid=(2, 8))
