"""Metrics while training goes on: always the same noise and classes, drawn and compared.

Shape legend: n images, B batch, C channels, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from tread_ssm.config.run import RunConfig
from tread_ssm.data import Data, Pixels
from tread_ssm.errors import ConfigError
from tread_ssm.evaluation import (
    Statistics,
    check_comparable,
    load_extractor,
    open_images,
    reference_statistics,
    score,
    statistics,
)
from tread_ssm.evaluation.images import KEYS, npz_names
from tread_ssm.pretrained import Export
from tread_ssm.processes import gathered, own_share, world
from tread_ssm.sampling.generate import Recipe, generate, sample_labels, shares
from tread_ssm.sampling.image_grid import decoder, save_grid
from tread_ssm.training.metrics import MetricsLog

ROWS, COLUMNS = 8, 8  # of the grid, at most


class Evaluation:
    """Measures averaged weights: a row of evals.jsonl, and evals/step-0001000.png."""

    def __init__(self, config: RunConfig, data: Data, device: torch.device, resume_at: int) -> None:
        """Loads the features and the reference now, so that a mistake shows before training.

        resume_at: steps done; rows of evals.jsonl behind them are dropped. Every process makes
        one. Raises ConfigError.
        """
        options = config.eval
        self._config, self._device = config, device
        self._recipe = Recipe(
            steps=options.steps or config.sample.steps,
            guidance=config.sample.guidance if options.guidance is None else options.guidance,
            sampler=config.sample.sampler,
        )
        classes = range(max(1, config.model.n_classes))
        self._labels = sample_labels(options.num, classes, config.seed)
        weights = None if options.weights is None else Path(options.weights)
        try:
            self._decode = decoder(data.values, None, device)
            blank = self._decode(torch.zeros(1, *data.shape, device=device))
            _check_size(options.reference, blank.shape[1:3])
            self._extractor = load_extractor(options.extractor, device, weights)
            self._reference = self._real(data)
            check_comparable(options.num, self._extractor.name, self._reference, options.metrics)
        except ValueError as error:
            raise ConfigError(f"eval: {error}") from None
        log = config.folder.evals
        self._log = MetricsLog(log, resume_at) if world()[0] == 0 else None

    def measure(self, model: nn.Module, run: Export) -> dict[str, float]:
        """Draw, compare, write; the metrics, empty on all processes but the first.

        Every process calls it, with the same weights. Leaves torch's random numbers alone. Raises
        ConfigError where the images cannot be measured.
        """
        options = self._config.eval
        shown: list[np.ndarray] = []
        model.eval()
        # A compiled model would be compiled again for these shapes.
        try:
            with torch.compiler.set_stance("force_eager"):
                images = self._draw(model, run, shown)
                samples = statistics(self._extractor, images, options.metrics).merged()
            model.train()
            if self._log is None:
                return {}
            values = score(samples, self._reference, options.metrics, self._device)
        except ValueError as error:  # perhaps on this process alone
            raise ConfigError(f"eval: after step {run.step}: {error}") from None
        metrics = {str(name): value for name, value in values.items()}
        self._log.write({"step": run.step, "count": samples.count, **metrics})
        self._write_grid(run.step, np.concatenate(shown))
        return metrics

    def _draw(self, model: nn.Module, run: Export, shown: list[np.ndarray]) -> Iterator[Tensor]:
        """This process's images (B, 3, H, W) uint8; the first of them are put into `shown`."""
        batches = shares(self._config.eval.num, self._config.eval.batch)
        mine = list(own_share(batches))
        # All processes call the network equally often: sharded weights are gathered together.
        idle = [batches[0]] * (max(gathered(len(mine))) - len(mine))
        drawn = generate(
            model,
            run,
            self._recipe,
            mine + idle,
            self._labels,
            seed=self._config.seed,
            decode=self._decode,
        )
        first = world()[0] == 0
        total = sum(map(len, mine))
        with tqdm(total=total, unit="image", desc="eval", leave=False, disable=not first) as bar:
            for i, part in enumerate(drawn):
                own = i < len(mine)
                # With fewer batches than processes the first one has none but its idle one.
                if first and (own or not mine) and sum(map(len, shown)) < ROWS * COLUMNS:
                    shown.append(part.images)
                if not own:
                    continue
                yield torch.tensor(part.images).permute(0, 3, 1, 2)
                bar.update(len(part.numbers))

    def _write_grid(self, step: int, images: np.ndarray) -> None:
        rows = min(ROWS, max(1, len(images) // COLUMNS))
        path = self._config.folder.eval_grid(step)
        save_grid(path, images[: rows * COLUMNS], [""] * rows)

    def _real(self, data: Data) -> Statistics | None:
        """What the samples are compared with: the reference that is named, or the data itself."""
        options = self._config.eval
        if options.reference is not None:
            return reference_statistics(
                Path(options.reference),
                self._extractor,
                options.metrics,
                batch=options.batch,
                progress=True,
            )
        if not isinstance(data, Pixels):
            return None
        mine = own_share(shares(len(data.images), options.batch))
        parts = (torch.tensor(data.images[r.start : r.stop]).permute(0, 3, 1, 2) for r in mine)
        return statistics(self._extractor, parts, options.metrics).merged()


def _check_size(reference: str | None, size: tuple[int, ...]) -> None:
    """Whether the real images, where the reference holds some, are as large as those drawn."""
    if reference is None:
        return
    path = Path(reference)
    if not path.is_dir() and not npz_names(path) & set(KEYS):
        return
    real = open_images(path).shape[1:3]
    if real != size:
        raise ValueError(
            f"the images of {path} are {real[0]} x {real[1]} pixels, those drawn {size[0]} x "
            f"{size[1]}; compare images of one size."
        )
