"""What a run has logged, and what it had spent at each of its steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tread_ssm.config.run import RunConfig, load_config
from tread_ssm.config.run_folder import RunFolder
from tread_ssm.errors import ConfigError
from tread_ssm.evaluation.metrics import title_of
from tread_ssm.routing import RoutePlan
from tread_ssm.routing.cost import Cost
from tread_ssm.training.cost import training_cost
from tread_ssm.training.logs.metrics import read_metrics

_LOGGED = ("images", "seconds", "images_per_second", "loss")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class History:
    """A run, as its folder tells it.

    Attributes:
        folder: The run's folder.
        config: Its configuration.
        rows: Of metrics.jsonl, at least one.
        evals: Of evals.jsonl.
    """

    folder: RunFolder
    config: RunConfig
    rows: Sequence[Row]
    evals: Sequence[Row]

    @staticmethod
    def read(run: str | Path) -> History:
        """The history of the run in this folder.

        Raises:
            ConfigError: The folder is no run, holds no metrics yet, or is damaged.
        """
        folder = RunFolder(Path(run))
        if not folder.config.is_file():
            raise ConfigError(f"{run} holds no config.yaml; it is no run folder.")
        config = load_config(folder.config)
        # A row of steps without routes, or of steps that dropped the path, lacks these.
        blank = {"kept_loss": None, "routed_loss": None}
        rows = [blank | row for row in _checked(folder.metrics, _LOGGED)]
        if not rows:
            raise ConfigError(
                f"{run} holds no metrics yet; train it until the first log line "
                f"(train.log_every={config.train.log_every})."
            )
        return History(folder, config, rows, _checked(folder.evals, ("count",)))

    @property
    def measures(self) -> dict[str, str]:
        """Titles of what was evaluated during training, by name, in the order of its rows."""
        names = dict.fromkeys(name for row in self.evals for name in row)
        features = self.config.eval.extractor
        return {n: title_of(n, features) for n in names if n not in ("step", "count")}

    def seconds_at(self, step: int) -> float:
        """Seconds of training behind `step` steps: those of the nearest logged row."""
        return float(min(self.rows, key=lambda row: abs(row["step"] - step))["seconds"])


def training_flops(config: RunConfig, steps: Sequence[int]) -> list[float]:
    """FLOPs of training behind each of these numbers of steps, forward and backward.

    Routes count as the schedule has them at each step. With path drop it is what can be expected:
    a route's blocks count for the steps that do not skip them, at their share of a forward pass.

    Args:
        config: The run's.
        steps: Rising.
    """
    schedule, total = config.routing.schedule, config.train.steps
    costs: dict[float, float] = {}
    spent, done, found = 0.0, 0, []
    for step in steps:
        while done < step:
            share = schedule.share(done, total)
            if share not in costs:
                plan = schedule.at(config.plan, done, total)
                costs[share] = _expected(plan, training_cost(config, plan).routed)
            spent += costs[share] * config.train.batch_size
            done += 1
        found.append(spent)
    return found


def _expected(plan: RoutePlan, cost: Cost) -> float:
    skipped = sum(r.path_drop * sum(cost.block_flops[r.start : r.stop]) for r in plan.routes)
    return cost.training * (1 - skipped / cost.forward)


def _checked(path: Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a metrics file. Raises ConfigError where they are no log of training."""
    rows, before = read_metrics(path), 0
    for number, row in enumerate(rows, 1):
        fields = row if isinstance(row, dict) else {}
        values = [fields.get(k) for k in ("step", *keys)]
        values += [v for v in fields.values() if v is not None]
        if not all(isinstance(v, (int, float)) and abs(v) < 1e300 for v in values):
            raise ConfigError(
                f"{path}: row {number} is damaged ({str(row)[:80]}); it needs finite numbers for "
                f"step, {', '.join(keys)}. Remove that row."
            )
        if not before < row["step"] < 1e12:
            raise ConfigError(
                f"{path}: row {number} is of step {row['step']}, after one of step {before}; steps "
                f"must rise. Remove that row."
            )
        before = row["step"]
    return rows
