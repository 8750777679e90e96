"""What is sampled and measured during training, from the averaged weights."""

from __future__ import annotations

from dataclasses import replace

from tread_ssm.config.run import RunConfig
from tread_ssm.data import Data
from tread_ssm.data.held_out import split
from tread_ssm.pretrained import Description
from tread_ssm.processes import gathered
from tread_ssm.training.checkpoints.checkpoint import Trained
from tread_ssm.training.logs.log import Log
from tread_ssm.training.logs.metrics import read_metrics
from tread_ssm.training.logs.trackers import show, wants_pictures
from tread_ssm.training.monitoring.evaluation import Evaluation
from tread_ssm.training.monitoring.preview import Preview
from tread_ssm.training.monitoring.validation import Validation


class Watch:
    """The image grids and the evaluations of a run; every process makes one and calls it alike."""

    def __init__(
        self,
        config: RunConfig,
        run: Description,
        data: Data,
        trained: Trained,
        log: Log,
        start: int,
    ) -> None:
        """`run`: what the weights are, whatever their step. `start`: steps done."""
        self._folder, self._run, self._trained, self._log = config.folder, run, trained, log
        self._start, self._steps = start, config.train.steps
        self._sample_every, self._eval_every = config.sample.every, config.eval.every
        self._shows = wants_pictures(config.train.trackers)
        device = trained.accelerator.device
        self._validate_every, self._validation = config.train.validate_every, None
        _, held_out = split(len(data.labels), config.data.validation)
        if len(held_out):
            self._validation = Validation.of(config, data, held_out, device)
        self._preview = Preview(run, config.folder, config.seed)
        self._evaluation = None
        if config.eval.every:
            self._evaluation = Evaluation(
                config.eval,
                run,
                data,
                config.folder,
                seed=config.seed,
                device=device,
                resume_at=start,
            )

    def validate(self, step: int) -> dict[str, float]:
        """What is due of `validation_loss` after `step` steps, for the row of that step."""
        if self._validation is None or not self._due(step, self._validate_every):
            return {}
        self._log.checked(step)
        with self._log.paused(), self._trained.ema.applied():
            return {"validation_loss": self._validation.loss(self._trained.model)}

    def look(self, step: int) -> None:
        """Sample and evaluate what is due after `step` steps, once its checkpoint is written."""
        if self._due(step, self._sample_every):
            self._sample(step)
        if self._due(step, self._eval_every):
            self._measure(step)

    def catch_up(self) -> None:
        """Do what an interrupted process owed after the step that training resumes from."""
        step = self._start
        if step == 0:
            return
        sampled = self._folder.sample_grid(step).exists()
        measured = any(row["step"] == step for row in read_metrics(self._folder.evals))
        # The first process writes these files, so what it sees counts for all.
        sampled, measured = gathered((sampled, measured))[0]
        if self._due(step, self._sample_every) and not sampled:
            self._sample(step)
        if self._due(step, self._eval_every) and not measured:
            self._measure(step)

    def _due(self, step: int, every: int) -> bool:
        return every > 0 and (step % every == 0 or step == self._steps)

    def _sample(self, step: int) -> None:
        trained = self._trained
        self._log.checked(step)
        main = trained.accelerator.is_main_process
        with self._log.paused():
            with trained.ema.applied():
                self._preview.write(trained.model, step, write=main)
            if self._shows:
                state = trained.ema.state(gather=main)
                if main:
                    weights = {name: state[name] for name in trained.ema.average}
                    grid = self._folder.sample_grid(step)
                    show(trained.accelerator.trackers, step, grid, weights)

    def _measure(self, step: int) -> None:
        assert self._evaluation is not None
        trained = self._trained
        self._log.checked(step)
        with self._log.paused(), trained.ema.applied():
            metrics = self._evaluation.measure(trained.model, replace(self._run, step=step))
        trained.accelerator.log({f"eval/{k}": v for k, v in metrics.items()}, step=step)
