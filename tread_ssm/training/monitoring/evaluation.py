"""Metrics while training goes on: always the same noise and classes, sampled and compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from tread_ssm.config.run import EvalConfig
from tread_ssm.config.run_folder import RunFolder
from tread_ssm.data import Data, PixelValues
from tread_ssm.errors import ConfigError
from tread_ssm.evaluation import (
    FeatureExtractor,
    Images,
    Statistics,
    batches,
    check_counts,
    load_extractor,
    reference_statistics,
    statistics,
)
from tread_ssm.evaluation.evaluator import Evaluator
from tread_ssm.evaluation.images import images_of
from tread_ssm.pretrained import Description
from tread_ssm.processes import world
from tread_ssm.sampling.generate import sample_labels
from tread_ssm.sampling.image_grid import decoder, save_grid
from tread_ssm.training.logs.metrics import MetricsLog

ROWS, COLUMNS = 8, 8  # of the image grid, at most


class Evaluation:
    """Measures averaged weights: a row of evals.jsonl, and evals/step-0001000.png."""

    def __init__(
        self,
        options: EvalConfig,
        run: Description,
        data: Data,
        folder: RunFolder,
        *,
        seed: int,
        device: torch.device,
        resume_at: int,
    ) -> None:
        """Load the features and the reference now, so that a mistake shows before training.

        Every process makes one.

        Args:
            options: What to measure.
            run: What is trained, and how it samples where `options` says nothing.
            data: The training data; its images are the reference where none is named.
            folder: Where the results go.
            seed: Of the images.
            device: Where to sample and to measure.
            resume_at: Steps done; rows of evals.jsonl behind them are dropped.

        Raises:
            ConfigError: The metrics cannot be computed.
        """
        self._options, self._folder, self._seed = options, folder, seed
        sampled = run.sample.recipe
        self._recipe = replace(
            sampled,
            steps=options.steps or sampled.steps,
            guidance=sampled.guidance if options.guidance is None else options.guidance,
        )
        self._labels = sample_labels(options.num, range(max(1, run.model.n_classes)), seed)
        weights = None if options.weights is None else Path(options.weights)
        try:
            self._decode = decoder(data.values, None, device)
            images = images_of(data, self._decode, device)
            extractor = load_extractor(options.extractor, device, weights)
            counts = {"sample set": options.num}
            check_counts(extractor, counts, options.metrics, images.size)
            reference = _reference(options, data, images, extractor)
            self._evaluator = Evaluator(extractor, options.metrics, reference, device)
            self._evaluator.check(options.num)
        except ValueError as error:
            raise ConfigError(f"eval: {error}") from None
        self._log = MetricsLog(folder.evals, resume_at) if world()[0] == 0 else None

    def measure(self, model: nn.Module, run: Description) -> dict[str, float]:
        """Sample, compare, write; the metrics, empty on all processes but the first.

        Every process calls it, with the same weights. Torch's global random state is left alone.

        Raises:
            ConfigError: The images cannot be measured.
        """
        model.eval()
        # A compiled model would be compiled again for these shapes.
        try:
            with torch.compiler.set_stance("force_eager"):
                scored, first = self._evaluator.score_model(
                    model,
                    run,
                    self._recipe,
                    self._labels,
                    seed=self._seed,
                    batch=self._options.batch,
                    decode=self._decode,
                    progress="eval",
                    keep=ROWS * COLUMNS,
                )
        except ValueError as error:  # perhaps on this process alone
            raise ConfigError(f"eval: after step {run.step}: {error}") from None
        model.train()
        if self._log is not None and first is not None:
            self._log.write({"step": run.step, "count": scored.count, **scored.values})
            rows = min(ROWS, max(1, len(first) // COLUMNS))
            save_grid(self._folder.eval_grid(run.step), first[: rows * COLUMNS], [""] * rows)
        return dict(scored.values)


def _reference(
    options: EvalConfig, data: Data, images: Images, extractor: FeatureExtractor
) -> Statistics | None:
    """What the samples are compared with: the reference that is named, or the data itself."""
    if options.reference is not None:
        return reference_statistics(
            Path(options.reference),
            extractor,
            options.metrics,
            size=images.size,
            batch=options.batch,
            progress=True,
        )
    if not isinstance(data.values, PixelValues):
        return None
    parts = batches(images, options.batch, "eval.reference")
    return statistics(extractor, parts, options.metrics).merged()
