"""What a run would be, before it is: the model's size, its routes, tokens and FLOPs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tread_ssm.config.run import RunConfig
from tread_ssm.models.cost import backbone_cost, count_parameters, long_skips
from tread_ssm.pretrained import load_export
from tread_ssm.report.estimate import estimate
from tread_ssm.routing.advice import advice
from tread_ssm.routing.cost import PlanCost
from tread_ssm.sampling.cost import sampling_cost
from tread_ssm.tables import duration, markdown_table, prefix, short
from tread_ssm.training.cost import training_cost
from tread_ssm.training.heads import with_heads

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plan_text(config: RunConfig, gpus: int | None = None) -> str:
    """Size, routes, tokens, FLOPs and what speaks against the routes, as Markdown.

    The model is built without memory or time (on the meta device).

    Args:
        config: The run.
        gpus: Also estimate memory and speed on so many A100. None: no estimate.
    """
    cost = training_cost(config)
    rows, columns = config.grid
    parts = [
        f"{config.name}: {config.model.kind}, {short(count_parameters(config.model))} parameters, "
        f"{config.model.depth} blocks, {rows} x {columns} image tokens",
        _routes(config),
        cost_table(cost),
        f"Per image. Blocks see {cost.token_share:.1%} of the dense network's tokens; expect a "
        f"training step of {cost.step_share:.2f} times the dense one's time, or a little more "
        f"where overhead counts.",
        _heads(config, cost),
        _sampling(config),
        _cautions(config),
        _optimizer(config),
        _evaluation(config),
        estimate(config, gpus, cost).table() if gpus else "",
    ]
    return "\n\n".join(part for part in parts if part)


def plan_figure(config: RunConfig) -> Figure:
    """The plan as a picture."""
    from tread_ssm.plots.plan import plot_plan  # matplotlib, which takes a second to import

    cost = training_cost(config)
    title = f"{config.name}: {config.model.kind}, {config.model.depth} blocks"
    if config.plan.routes:
        title += f", a training step takes {cost.step_share:.0%} of the dense one's FLOPs"
    skips = long_skips(config.model)
    return plot_plan(config.plan, cost.routed.tokens, cost.dense.tokens[0], skips, title)


def estimates_table(configs: Iterable[RunConfig], gpus: int) -> str:
    """A row for each run: size, FLOPs, and the estimate on so many A100, as Markdown."""
    head = ["", "parameters", "FLOPs of a step, dense", "routed", "memory a GPU, DDP", "FSDP2"]
    head += ["images/s", "whole run"]
    rows = []
    for config in configs:
        cost = training_cost(config)
        found = estimate(config, gpus, cost)
        flops = [short(c.training, "FLOPs") for c in (cost.dense, cost.routed)]
        speed = [f"{found.images_per_second:,.0f}", duration(found.seconds)]
        memory = [str(found.ddp), str(found.fsdp2)]
        rows.append([f"`{config.name}`", short(found.parameters), *flops, *memory, *speed])
    return markdown_table(head, rows)


def cost_table(cost: PlanCost) -> str:
    """Tokens and FLOPs of the blocks, dense against routed, as Markdown."""
    sides, rows, counts = (cost.dense, cost.routed), [], []
    blocks = range(len(cost.routed.tokens))
    for _, group in groupby(blocks, key=lambda i: (cost.dense.tokens[i], cost.routed.tokens[i])):
        same = list(group)
        tokens = [str(c.tokens[same[0]]) for c in sides]
        rows.append([f"{same[0]} to {same[-1]}", *tokens])
        counts.append([sum(c.block_flops[i] for i in same) for c in sides])
    rows.append(["whole network, forward", "", ""])
    counts.append([c.forward for c in sides])
    rows.append(["whole network, training step", "", ""])
    counts.append([c.training for c in sides])
    size, letter = prefix(min(map(min, counts)))  # one unit for all, no number below 1
    unit = f"{letter}FLOPs"
    head = ("blocks", "tokens, dense", "tokens, routed", f"{unit}, dense", f"{unit}, routed")
    return markdown_table(
        head,
        [[*r, *(f"{n / size:,.1f}" for n in c)] for r, c in zip(rows, counts, strict=True)],
    )


def _routes(config: RunConfig) -> str:
    if not config.plan.routes:
        return "No routes; every block sees every token."
    return "\n".join(
        f"Route over blocks {r.start} to {r.stop - 1}: {r.drop:.0%} dropped, {r.select.kind}, "
        f"rejoins with {r.rejoin}."
        for r in config.plan.routes
    )


def _heads(config: RunConfig, cost: PlanCost) -> str:
    """What the heads of auxiliary losses take of a training step."""
    if not config.auxiliary:
        return ""
    network = backbone_cost(config.model, config.plan).routed.training
    share = 1 - network / cost.routed.training
    return f"Heads of auxiliary losses are {share:.1%} of a training step." if share else ""


def _cautions(config: RunConfig) -> str:
    schedule = config.routing.schedule
    tail = schedule.dense_tail if schedule.off_after is None else None
    found: Sequence[str] = advice(config.plan, config.grid, long_skips(config.model), tail)
    if found:
        return "\n".join(f"- {caution}" for caution in found)
    return "Nothing known speaks against these routes." if config.plan.routes else ""


def _optimizer(config: RunConfig) -> str:
    """The groups of parameters, as Markdown."""
    with torch.device("meta"):
        trained = with_heads(config.model.build(), config.auxiliary)
    rows = []
    for group in config.train.optimizer.groups(trained):
        size = short(sum(p.numel() for p in group.parameters))
        tensors, decay = str(len(group.parameters)), f"{group.weight_decay:g}"
        rows.append([group.role, size, tensors, group.rule, decay])
    head = ["parameter group", "parameters", "tensors", "optimiser", "weight decay"]
    return markdown_table(head, rows)


def _sampling(config: RunConfig) -> str:
    """FLOPs of an image by kind of guidance, as the run samples its own image grids."""
    routes, classes = config.routing.routes, config.model.n_classes
    plain = replace(config.sample.recipe, guidance=1.0, guided_by=None, weak_run=None)
    base = replace(plain, weak_drop=None, strong_drop=0.0)
    recipes = {"none": base}
    if classes:
        recipes["class"] = replace(base, guidance=2.0)
    if routes:
        drop = max(r.drop for r in routes)
        by_routes = replace(base, guidance=2.0, weak_drop=drop)
        recipes |= {f"routes, the weak pass drops {drop:.0%}": by_routes}
        recipes |= {"path": replace(base, guidance=2.0, guided_by="path")}
    weak = None
    if config.sample.weak_run is not None:
        recipes["model"] = replace(config.sample.recipe, guidance=2.0)
        weak = load_export(Path(config.sample.weak_run))[1].model
    costs = {
        name: sampling_cost(config.model, config.objective, routes, recipe, weak)
        for name, recipe in recipes.items()
    }
    dense = costs["none"].flops
    rows = [[n, short(c.flops, "FLOPs"), f"{c.flops / dense:.2f}"] for n, c in costs.items()]
    table = markdown_table(["guidance", "an image", "of no guidance"], rows)
    passes = costs["none"].passes
    return f"{table}\n\nSampled in {config.sample.steps} steps: {passes} passes and the weak ones."


def _evaluation(config: RunConfig) -> str:
    options = config.eval
    if options.every == 0:
        return ""
    return (
        f"Evaluated every {options.every:,} steps: {', '.join(options.metrics)} of "
        f"{options.num:,} images, {options.extractor} features."
    )
