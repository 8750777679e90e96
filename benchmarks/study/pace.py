"""Seconds of a training step of each arm, all taking turns, so that their ratios can be trusted.

The CPU seconds that runs record are those of whatever shared the machine with them.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks.origin import origin
from benchmarks.study.arms import SETTINGS, arm_of
from benchmarks.study.jobs import Job, configure
from benchmarks.study.measure import split_data
from tread_ssm.files import read_json, replacing
from tread_ssm.report.measure import step_of, stepper_of
from tread_ssm.timing import take_turns

STEPS = 1200
FILE = Path(__file__).parents[1] / "results" / "study_paces.json"


def measure(names: Sequence[str], work: Path, repeats: int) -> dict[str, Any]:
    """Medians over `repeats` turns of the CPU seconds of a step, by arm, and where they are from.

    A step skips no path: with path drop, the arm's mean is lower.
    """
    torch.set_num_threads(1)
    sides = {}
    for name in names:
        arm = arm_of(name)
        setting = SETTINGS[arm.setting]
        config = configure(work, setting, Job(arm, 0, STEPS))
        split_data(work, setting.image_size, setting.held)
        torch.manual_seed(0)
        stepper = stepper_of(config, config.model.build())
        data = config.data.open()
        sides[name] = step_of(config, data, stepper, config.plan, config.train.batch_size)
    taken = take_turns(sides, repeats, time.process_time)
    seconds = {name: round(statistics.median(s), 5) for name, s in taken.items()}
    return {"date": date.today().isoformat(), **origin(), "repeats": repeats, "seconds": seconds}


def record(found: dict[str, Any], path: Path = FILE) -> None:
    """Write the file of paces anew."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def recorded(path: Path = FILE) -> dict[str, float]:
    """Seconds of a step by arm; empty where none were measured."""
    return dict(read_json(path)["seconds"]) if path.is_file() else {}
