"""Where everything of a run lies: its configuration, logs, pictures, checkpoints and weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tread_ssm.errors import ConfigError
from tread_ssm.files import read_json

_PREFIX = "step-"


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run; nothing in it has to exist.

    Attributes:
        path: The folder itself. After the last step it holds `ema.safetensors` and `config.json`,
            the export of the averaged weights.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration, every default spelled out."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One line for each logged step."""
        return self.path / "metrics.jsonl"

    @property
    def console(self) -> Path:
        """What the console said."""
        return self.path / "train.log"

    @property
    def evals(self) -> Path:
        """One line for each evaluation."""
        return self.path / "evals.jsonl"

    @property
    def trackers(self) -> Path:
        """The folder that trackers such as TensorBoard write to."""
        return self.path / "logs"

    @property
    def samples(self) -> Path:
        """The folder of the image grids that show progress."""
        return self.path / "samples"

    @property
    def lock(self) -> Path:
        """The file that the process which trains holds."""
        return self.path / "run.lock"

    @property
    def data(self) -> Path:
        """What the training data was when the run began."""
        return self.path / "data.json"

    @property
    def report(self) -> Path:
        """The report."""
        return self.path / "report.md"

    @property
    def page(self) -> Path:
        """The report as one HTML file that holds its pictures."""
        return self.path / "report.html"

    @property
    def pictures(self) -> Path:
        """The folder of the report's pictures."""
        return self.path / "report"

    def sample_grid(self, step: int) -> Path:
        """The image grid that was sampled after `step` steps."""
        return self.samples / f"{_PREFIX}{step:07d}.png"

    def eval_grid(self, step: int) -> Path:
        """The first images of the evaluation after `step` steps."""
        return self.path / "evals" / f"{_PREFIX}{step:07d}.png"

    def checkpoint(self, step: int) -> Path:
        """The checkpoint after `step` steps, a folder that is complete or not there."""
        return self.path / "checkpoints" / f"{_PREFIX}{step:07d}"

    def checkpoints(self) -> dict[int, Path]:
        """The complete checkpoints by the steps behind them, oldest first."""
        return _by_step(self.checkpoint(0).parent)

    def snapshot(self, step: int) -> Path:
        """The averages of post-hoc EMA after `step` steps, a folder that is complete or absent."""
        return self.path / "snapshots" / f"{_PREFIX}{step:07d}"

    def snapshots(self) -> dict[int, Path]:
        """The complete snapshots by the steps behind them, oldest first."""
        return _by_step(self.snapshot(0).parent)

    def weights(self, step: int | None = None) -> Path:
        """The folder that holds averaged weights with their description.

        Args:
            step: Those of the checkpoint after so many steps. None: those of the run's end, or
                of the newest checkpoint while the run is not finished (or is being lengthened).

        Raises:
            ConfigError: There is no such folder or checkpoint.
        """
        if not self.path.is_dir():
            raise ConfigError(f"{self.path} is no folder of a run.")
        found = self.checkpoints()
        if step is not None:
            if step not in found:
                steps = ", ".join(map(str, found)) or "none"
                raise ConfigError(
                    f"{self.path} has no checkpoint of step {step}; there are {steps}."
                )
            return found[step]
        return found[max(found)] if found and self._is_behind(max(found)) else self.path

    def _is_behind(self, step: int) -> bool:
        """Whether the export is of fewer steps than `step`, or is not there."""
        if not (self.path / "ema.safetensors").is_file():
            return True
        try:
            return int(read_json(self.path / "config.json")["step"]) < step
        except (OSError, ValueError, KeyError, TypeError):
            return False  # damaged: whoever loads it says so


def _by_step(folder: Path) -> dict[int, Path]:
    steps = [(p.name.removeprefix(_PREFIX), p) for p in folder.glob(_PREFIX + "*")]
    return dict(sorted((int(step), path) for step, path in steps if step.isdigit()))
