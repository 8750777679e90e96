"""What a run would be: its configuration, the model's size, the plan, tokens and FLOPs."""

from __future__ import annotations

import torch

from tread_ssm.config.run import EvalConfig, RunConfig
from tread_ssm.config.strict import dump
from tread_ssm.models.cost import backbone_cost
from tread_ssm.routing import RoutePlan
from tread_ssm.routing.cost import Cost, PlanCost


def describe(config: RunConfig) -> str:
    """Several lines of text. The model is built without memory or time (on the meta device)."""
    with torch.device("meta"):
        parameters = sum(p.numel() for p in config.model.build().parameters())
    cost = backbone_cost(config.model, config.plan)
    lines = [
        dump(config).rstrip(),
        "",
        f"model       {config.model.kind}, {_short(parameters)} parameters, {config.model.depth} "
        f"blocks, {config.grid[0]} x {config.grid[1]} image tokens",
        *_plan_lines(config.plan, cost),
        f"dense       {_flops(cost.dense)}",
        f"routed      {_flops(cost.routed)}, {cost.step_share:.1%} of the dense training step",
        *_eval_lines(config.eval),
    ]
    return "\n".join(lines)


def _plan_lines(plan: RoutePlan, cost: PlanCost) -> list[str]:
    if not plan.routes:
        return [f"plan        no routes; every block sees {cost.dense.tokens[0]} tokens"]
    lines = [
        f"route       blocks {r.start}..{r.stop - 1}: {r.drop:.0%} dropped, {r.select.kind}, "
        f"rejoins with {r.rejoin}"
        for r in plan.routes
    ]
    runs: list[list[int]] = []
    for block, tokens in enumerate(cost.routed.tokens):
        if runs and runs[-1][2] == tokens:
            runs[-1][1] = block
        else:
            runs.append([block, block, tokens])
    lines += [
        f"blocks      {first}..{last} see {tokens} tokens (with prefix and padding)"
        for first, last, tokens in runs
    ]
    lines.append(f"tokens      {cost.token_share:.1%} of the dense network's, over all blocks")
    return lines


def _eval_lines(options: EvalConfig) -> list[str]:
    if options.every == 0:
        return []
    metrics = ", ".join(options.metrics)
    return [
        f"eval        every {options.every:,} steps: {metrics} of {options.num:,} images, "
        f"{options.extractor} features"
    ]


def _flops(cost: Cost) -> str:
    return (
        f"{_short(cost.forward)} FLOPs forward, {_short(cost.training)} forward and backward, "
        f"per image"
    )


def _short(number: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{letter}"
    return f"{number:.0f}"
