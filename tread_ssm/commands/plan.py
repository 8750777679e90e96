"""What a run's routes cost and save, before training.

Tokens and FLOPs of the blocks, dense against routed, the step time to expect, and what speaks
against the plan; with --gpus an estimate of memory and speed, with --out a picture:
    tread-ssm plan --config dim_l --gpus 8 --out plan.png
Any key can be overridden behind the command. One table of estimates over several configurations:
    tread-ssm plan --table dim_l dim2_l dit_xl
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tread_ssm.command import check_at_least, parser, run
from tread_ssm.config.run import load_config, load_with_notes
from tread_ssm.errors import ConfigError
from tread_ssm.report.plan import estimates_table, plan_figure, plan_text


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    read = parser("plan", __doc__)
    what = read.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", help="a YAML file, or a name, such as dim_l")
    what.add_argument("--table", nargs="+", metavar="FILE", help="several, a row each")
    read.add_argument("--gpus", type=int, help="estimate memory and speed on so many A100")
    read.add_argument("--out", type=Path, help="PNG or SVG to plot the plan into")
    read.add_argument("overrides", nargs="*", metavar="section.key=value")
    args = read.parse_intermixed_args(argv)
    return run(lambda: _plan(args))


def _plan(args: argparse.Namespace) -> None:
    check_at_least(args, 1, "gpus")
    if args.table:
        if args.out is not None or args.overrides:
            raise ConfigError("--out and overrides belong to --config.")
        print(estimates_table(map(load_config, args.table), args.gpus or 8))
        return
    if args.out is not None and args.out.suffix not in (".png", ".svg"):
        raise ConfigError(f"--out: {args.out} must end in .png or .svg.")
    config, notes = load_with_notes(args.config, args.overrides)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    print(plan_text(config, args.gpus))
    if args.out is None:
        return
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        plan_figure(config).savefig(args.out, dpi=150)
    except (ValueError, OSError) as error:
        raise ConfigError(f"cannot plot {args.out}: {error}") from None
    print(f"\n{args.out}")
