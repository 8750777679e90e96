"""What a run says while it trains: progress bar, metrics.jsonl, trackers."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from tread_ssm.config.run import RunConfig
from tread_ssm.training.checkpoint import Progress
from tread_ssm.training.metrics import MetricsLog
from tread_ssm.training.step import LOGGED


class TrainingError(RuntimeError):
    """Training cannot go on; its text is the whole message for the user."""


class Log:
    """Collects every step's numbers on the device and writes their means now and then.

    Reading a number waits for the device, so nothing is read between two logged rows.
    """

    def __init__(self, config: RunConfig, accelerator: Accelerator, start: Progress) -> None:
        self._config = config
        self._accelerator = accelerator
        self._window = [
            torch.tensor(row, dtype=torch.float32, device=accelerator.device)
            for row in start.window
        ]
        self._seconds = start.seconds
        self._since = time.perf_counter()
        # Images and seconds since the last row of this session, for the speed.
        self._recent = (0, start.seconds)
        main = accelerator.is_main_process
        self._metrics = MetricsLog(config.folder.metrics, start.step) if main else None
        self._bar = tqdm(
            total=config.train.steps,
            initial=start.step,
            desc=config.name,
            unit="step",
            disable=not main,
            mininterval=0.5 if sys.stderr.isatty() else 10.0,
            dynamic_ncols=True,
        )

    def add(self, numbers: Tensor) -> None:
        """Take in one step's LOGGED numbers (4,)."""
        self._window.append(numbers)
        self._recent = (self._recent[0] + self._config.train.batch_size, self._recent[1])
        self._bar.update()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside does not count as training."""
        seconds = self._now()
        try:
            yield
        finally:
            self._seconds, self._since = seconds, time.perf_counter()

    def write(self, step: int, lr: float) -> None:
        """Write the means since the last row. Raises TrainingError where they are not finite."""
        window = self.checked(step)
        now = self._now()
        images, then = self._recent
        self._window, self._recent = [], (0, now)
        row: dict[str, float | int | None] = {
            "step": step,
            "images": step * self._config.train.batch_size,
            "lr": lr,
        }
        for name, column in zip(LOGGED, zip(*window, strict=True), strict=True):
            # A step without routes has no routed loss.
            values = [v for v in column if not math.isnan(v)]
            row[name] = sum(values) / len(values) if values else None
        row["images_per_second"] = images / max(now - then, 1e-9)
        row["seconds"] = now
        if self._metrics is not None:
            self._metrics.write(row)
        self._accelerator.log({k: v for k, v in row.items() if v is not None}, step=step)
        shown = {"img/s": row["images_per_second"], "kept": row["kept_loss"]}
        if row["routed_loss"] is not None:
            shown["routed"] = row["routed_loss"]
        self._bar.set_postfix({k: f"{v:.4g}" for k, v in shown.items()}, refresh=False)

    def checked(self, step: int) -> list[list[float]]:
        """The numbers of the steps since the last row, averaged over processes; waits for them.

        step: steps done. Raises TrainingError where a loss (or a gradient) is not finite: the
        caller asks before it saves, so a good checkpoint is never replaced by a broken one.
        """
        if not self._window:
            return []
        window = self._accelerator.reduce(torch.stack(self._window), "mean").tolist()
        # With fp16 an overflowing gradient is normal: its step is skipped.
        must = (0, 3) if self._config.train.precision != "fp16" else (0,)
        for i, row in enumerate(window):
            for k in must:
                if not math.isfinite(row[k]):
                    raise TrainingError(
                        f"{LOGGED[k]} became {row[k]} at step {step - len(window) + i + 1}. The "
                        f"newest checkpoint in {self._config.folder.path / 'checkpoints'} is from "
                        f"before; lower train.lr, lengthen train.warmup or use "
                        f"train.precision=fp32."
                    )
        return [list(map(float, row)) for row in window]

    def progress(self, step: int) -> Progress:
        """What a checkpoint after `step` steps has to remember. Raises TrainingError."""
        window = self.checked(step)  # first: it waits for the steps that are still computed
        return Progress(step=step, seconds=self._now(), window=window)

    def close(self) -> None:
        """Close the progress bar; what it showed stays."""
        self._bar.close()

    def _now(self) -> float:
        return self._seconds + time.perf_counter() - self._since
