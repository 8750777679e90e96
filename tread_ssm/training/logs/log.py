"""What a run says while it trains: progress bar, metrics.jsonl, trackers."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from tread_ssm.config.run import TrainConfig
from tread_ssm.config.run_folder import RunFolder
from tread_ssm.training.checkpoints.checkpoint import Progress
from tread_ssm.training.logs.metrics import MetricsLog

# A loss so many times the usual one is no noise.
_SPIKE = 100.0


class TrainingError(RuntimeError):
    """Training cannot continue; its text is the whole message for the user."""


class Log:
    """Collects every step's numbers on the device and writes their means now and then.

    Reading a number waits for the device, so nothing is read between two logged rows.
    """

    def __init__(
        self,
        train: TrainConfig,
        folder: RunFolder,
        accelerator: Accelerator,
        start: Progress,
        names: Sequence[str],
    ) -> None:
        """`names`: of the numbers of a step, see `tread_ssm.training.step.logged`."""
        self._train, self._folder, self._names = train, folder, names
        self._accelerator = accelerator
        self._window = [
            torch.tensor(row, dtype=torch.float32, device=accelerator.device)
            for row in start.window
        ]
        self._seconds = start.seconds
        self._since = time.perf_counter()
        self._usual: float | None = None
        # Images and seconds since the last row of this session, for the speed.
        self._recent = (0, start.seconds)
        main = accelerator.is_main_process
        self._metrics = MetricsLog(folder.metrics, start.step) if main else None
        self._bar = tqdm(
            total=train.steps,
            initial=start.step,
            desc=folder.path.name,
            unit="step",
            disable=not main,
            mininterval=0.5 if sys.stderr.isatty() else 10.0,
            dynamic_ncols=True,
        )

    def add(self, numbers: Tensor) -> None:
        """Take in one step's numbers, one for each name."""
        self._window.append(numbers)
        self._recent = (self._recent[0] + self._train.batch_size, self._recent[1])
        self._bar.update()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside does not count as training."""
        seconds = self._now()
        try:
            yield
        finally:
            self._seconds, self._since = seconds, time.perf_counter()

    def write(self, step: int, lr: float, measured: Mapping[str, float] | None = None) -> None:
        """Write the means since the last row.

        Args:
            step: Steps done.
            lr: Learning rate of the last one.
            measured: What else was found out after this step.

        Raises:
            TrainingError: A loss (or a gradient) is not finite.
        """
        window = self.checked(step)
        self._warn_of_spike(window, step)
        now = self._now()
        images, then = self._recent
        self._window, self._recent = [], (0, now)
        row: dict[str, float | int | None] = {
            "step": step,
            "images": step * self._train.batch_size,
            "lr": lr,
        }
        for name, column in zip(self._names, zip(*window, strict=True), strict=True):
            # A step without routes has no routed loss, one that skips a route's blocks no kept
            # loss, and one that fp16 skips no gradient norm.
            values = [v for v in column if math.isfinite(v)]
            row[name] = sum(values) / len(values) if values else None
        row |= measured or {}
        row["images_per_second"] = images / max(now - then, 1e-9)
        row["seconds"] = now
        if self._metrics is not None:
            self._metrics.write(row)
        self._accelerator.log({k: v for k, v in row.items() if v is not None}, step=step)
        shown = {"img/s": row["images_per_second"]}
        for name in ("kept", "routed"):
            if row[f"{name}_loss"] is not None:
                shown[name] = row[f"{name}_loss"]
        self._bar.set_postfix({k: f"{v:.4g}" for k, v in shown.items()}, refresh=False)

    def checked(self, step: int) -> list[list[float]]:
        """The numbers of the steps since the last row, averaged over processes; waits for them.

        The caller asks before it saves, so a good checkpoint is never replaced by a broken one.

        Args:
            step: Steps done.

        Raises:
            TrainingError: A loss (or a gradient) is not finite.
        """
        if not self._window:
            return []
        window = self._accelerator.reduce(torch.stack(self._window), "mean").tolist()
        # With fp16 an overflowing gradient is normal: its step is skipped.
        # An auxiliary loss is nan where its block was skipped; broken, it breaks the gradient.
        must = ["loss", "grad_norm"] if self._train.precision != "fp16" else ["loss"]
        for i, row in enumerate(window):
            for k in map(self._names.index, must):
                if not math.isfinite(row[k]):
                    at = step - len(window) + i + 1
                    raise TrainingError(
                        f"{self._names[k]} became {row[k]} at step {at}. {self._remedy()}"
                    )
        return [list(map(float, row)) for row in window]

    def progress(self, step: int) -> Progress:
        """What a checkpoint after `step` steps has to remember.

        Raises:
            TrainingError: A loss (or a gradient) is not finite.
        """
        window = self.checked(step)  # first: it waits for the steps that are still computed
        return Progress(step=step, seconds=self._now(), window=window)

    def _remedy(self) -> str:
        change = "a lower train.optimizer.lr, a longer train.warmup or train.precision=fp32"
        found = self._folder.checkpoints()
        if not found:
            return f"Nothing was saved before; train with {change}."
        return (
            f"The checkpoint of step {max(found)} is from before. To train on from it with "
            f"{change}, set another name and train.start_from={found[max(found)]}."
        )

    def _warn_of_spike(self, window: list[list[float]], step: int) -> None:
        """Say where a loss is far above those of the row before."""
        losses = [row[0] for row in window]
        usual, worst = self._usual, max(losses)
        self._usual = statistics.median(losses)
        if usual is not None and worst > _SPIKE * usual and self._metrics is not None:
            at = step - len(losses) + 1 + losses.index(worst)
            tqdm.write(
                f"warning: the loss is {worst:.4g} at step {at}; it was {usual:.4g} before. "
                f"train.optimizer.lr may be too high.",
                file=sys.stderr,
            )

    def close(self) -> None:
        """Close the progress bar; what it showed stays."""
        self._bar.close()

    def _now(self) -> float:
        return self._seconds + time.perf_counter() - self._since
