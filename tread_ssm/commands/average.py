"""Average a run's weights with any width, after training (post-hoc EMA).

    tread-ssm average --run runs/dim_l --width 0.05
    tread-ssm sample --run runs/dim_l/averages/width-0.05 --out grid.png

The run must have kept snapshots (train.posthoc_ema). The result is a folder that sample and
evaluate take as a run. A width is the standard deviation of the averaged steps over the number of
steps, as in EDM2. Exit codes: 2 where an argument or a file cannot be used, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tread_ssm.command import parser, run
from tread_ssm.config.run_folder import RunFolder
from tread_ssm.pretrained import export
from tread_ssm.training.averages.posthoc import reconstruct


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    read = parser("average", __doc__)
    add = read.add_argument
    add("--run", type=Path, required=True, help="folder of a run")
    add("--width", type=float, required=True, help="relative width of the average, such as 0.05")
    add("--step", type=int, help="snapshot at which the average ends (default: the last)")
    add("--out", type=Path, help="folder to write (default: averages/width-WIDTH in the run)")
    args = read.parse_args(argv)
    return run(lambda: _average(args))


def _average(args: argparse.Namespace) -> None:
    out = args.out or args.run / "averages" / f"width-{args.width!r}"
    weights, described = reconstruct(RunFolder(args.run), args.width, args.step)
    export(out, weights, described)
    print(f"{out}: the weights of step {described.step}, averaged with width {args.width:g}")
