"""What a run's routes cost and save, before training: python scripts/plan.py --config FILE

Prints tokens and FLOPs of the blocks, dense against routed, the step time to expect, and what
speaks against the plan; with --out also draws it. Any key can be overridden behind the command.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tread_ssm.config.run import RunConfig, load_config
from tread_ssm.models.cost import backbone_cost, long_skips
from tread_ssm.routing.advice import advice
from tread_ssm.routing.cost import PlanCost


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="a YAML file, see configs/")
    parser.add_argument("--out", type=Path, help="PNG or SVG to draw the plan into")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    args = parser.parse_intermixed_args(argv)
    try:
        config = load_config(args.config, args.overrides)
        plan = config.plan
        cost = backbone_cost(config.model, plan)
    except ValueError as error:  # ConfigError among them
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report(config, cost))
    if args.out is not None:
        try:
            draw(config, cost, args.out)
        except (ValueError, OSError) as error:
            print(f"error: cannot draw {args.out}: {error}", file=sys.stderr)
            return 2
        print(f"\n{args.out}")
    return 0


def report(config: RunConfig, cost: PlanCost) -> str:
    """The table of blocks, the totals and the advice, as Markdown."""
    lines = [
        "| blocks | tokens, dense | tokens, routed | GFLOPs, dense | GFLOPs, routed |",
        "|---|---|---|---|---|",
    ]
    for first, last in _runs(cost.routed.tokens):
        blocks = slice(first, last + 1)
        dense, routed = (sum(c.block_flops[blocks]) / 1e9 for c in (cost.dense, cost.routed))
        lines.append(
            f"| {first} to {last} | {cost.dense.tokens[first]} | {cost.routed.tokens[first]} "
            f"| {dense:.1f} | {routed:.1f} |"
        )
    dense, routed = cost.dense.forward / 1e9, cost.routed.forward / 1e9
    lines.append(f"| whole network, forward | | | {dense:.1f} | {routed:.1f} |")
    dense, routed = cost.dense.training / 1e9, cost.routed.training / 1e9
    lines.append(f"| whole network, training step | | | {dense:.1f} | {routed:.1f} |")
    lines += [
        "",
        f"Per image. Blocks see {cost.token_share:.1%} of the dense network's tokens; expect a "
        f"training step of {cost.step_share:.2f} times the dense one's time, or a little more "
        f"where overhead counts.",
    ]
    tail = config.routing.schedule.dense_tail if config.routing.schedule.off_after is None else None
    cautions = advice(config.plan, config.grid, long_skips(config.model), tail)
    if cautions:
        lines += ["", *(f"- {c}" for c in cautions)]
    elif config.plan.routes:
        lines += ["", "Nothing known speaks against these routes."]
    return "\n".join(lines)


def draw(config: RunConfig, cost: PlanCost, out: Path) -> None:
    """Write the picture of the plan."""
    from tread_ssm.plots.plan import show_plan

    title = f"{config.name}: {config.model.kind}, {config.model.depth} blocks"
    if config.plan.routes:
        title += f", a training step takes {cost.step_share:.0%} of the dense one's FLOPs"
    skips = long_skips(config.model)
    figure = show_plan(config.plan, cost.routed.tokens, cost.dense.tokens[0], skips, title)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)


def _runs(tokens: Sequence[int]) -> list[tuple[int, int]]:
    """(first, last) of the stretches of blocks that see equally many tokens."""
    starts = [i for i in range(len(tokens)) if i == 0 or tokens[i] != tokens[i - 1]]
    return list(zip(starts, [s - 1 for s in starts[1:]] + [len(tokens) - 1], strict=True))


if __name__ == "__main__":
    sys.exit(main())
