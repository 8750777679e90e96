"""FLOPs of a training step, against products that are counted by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.runs import tiny
from tread_ssm.config.run import RunConfig
from tread_ssm.diffusion import SRA2, Auxiliary, Dispersive
from tread_ssm.models.cost import backbone_cost
from tread_ssm.report.estimate import estimate
from tread_ssm.report.plan import plan_text
from tread_ssm.training.cost import training_cost


def with_losses(out: Path, *losses: Auxiliary) -> RunConfig:
    return replace(tiny(out), auxiliary=losses)


def by_hand(config: RunConfig, tokens: int) -> int:
    """A head of two linear layers, forward and backward, on so many tokens."""
    d, values = config.model.dim, config.model.patch**2 * config.model.channels
    return 3 * 2 * tokens * (d * d + d * values)


def test_a_head_counts_for_the_tokens_that_it_sees(tmp_path: Path) -> None:
    start = tiny(tmp_path).plan.routes[0].start
    config = with_losses(tmp_path, SRA2(block=start, layers=2), Dispersive(block=0, group=2))
    network, cost = backbone_cost(config.model, config.plan), training_cost(config)
    (kept,) = config.plan.n_kept(config.grid)
    rows, columns = config.grid
    assert kept < rows * columns
    assert cost.dense.training - network.dense.training == by_hand(config, rows * columns)
    assert cost.routed.training - network.routed.training == by_hand(config, kept)
    assert cost.routed.forward == network.routed.forward  # which is what is sampled from
    assert cost.routed.block_flops == network.routed.block_flops
    share = by_hand(config, kept) / cost.routed.training
    assert f"Heads of auxiliary losses are {share:.1%} of a training step." in plan_text(config)


def test_without_a_head_it_is_the_network(tmp_path: Path) -> None:
    for losses in ((), (Dispersive(block=0, group=2),)):
        config = with_losses(tmp_path, *losses)
        assert training_cost(config) == backbone_cost(config.model, config.plan)
        assert "Heads of" not in plan_text(config)


def test_the_estimate_holds_the_heads_state(tmp_path: Path) -> None:
    config = with_losses(tmp_path, SRA2(block=0, layers=1))
    d, values = config.model.dim, config.model.patch**2 * config.model.channels
    head = d * values + values
    more = estimate(config, 2).ddp.state - estimate(tiny(tmp_path), 2).ddp.state
    assert more == pytest.approx(20 * head)
