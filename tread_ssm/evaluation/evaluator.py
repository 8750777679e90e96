"""Sample, measure, score: what training, sweeps, the command evaluate and the report share.

    evaluator = Evaluator(load_extractor("emoji"), ("fid",), reference)
    scored = evaluator.score(batches(open_images(path), 64))
    scored, first = evaluator.score_model(model, run, recipe, labels, seed=0, batch=64, decode=...)

Every process calls these functions, and the images are shared among them.

Shape legend: n images, B batch, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from tread_ssm.evaluation.extractors import FeatureExtractor
from tread_ssm.evaluation.images import to_batch
from tread_ssm.evaluation.metrics import title_of
from tread_ssm.evaluation.score import check_comparable, score
from tread_ssm.evaluation.statistics import Statistics, alike, statistics
from tread_ssm.pretrained import Description
from tread_ssm.processes import even_share, world
from tread_ssm.sampling.generate import generate, shares
from tread_ssm.sampling.image_grid import Decode
from tread_ssm.sampling.recipe import Recipe
from tread_ssm.tables import markdown_table


@dataclass(frozen=True)
class Scored:
    """The result for a set of images.

    Attributes:
        count: Images of the set, over all processes.
        values: The metrics by name, in the order asked for; empty on all processes but the first.
        alike: Whether all images have the same features, to rounding: they may all be black.
    """

    count: int
    values: Mapping[str, float]
    alike: bool


@dataclass(frozen=True)
class Evaluator:
    """Scores sets of images with one extractor against one reference.

    Attributes:
        extractor: Gives the features.
        metrics: Names from `tread_ssm.evaluation.METRICS`.
        reference: Statistics of real images. None will do for the inception score alone.
        device: Where neighbours (precision, recall) and kernels (kid) are computed.
    """

    extractor: FeatureExtractor
    metrics: Sequence[str]
    reference: Statistics | None
    device: torch.device | str = "cpu"

    def check(self, count: int) -> None:
        """Check that `count` images are enough; ask before sampling them.

        Raises:
            ValueError: A metric needs more, or the reference has other features.
        """
        check_comparable(count, self.extractor.name, self.reference, self.metrics)

    def table(
        self, head: Sequence[str], rows: Sequence[tuple[Sequence[str], Mapping[str, float]]]
    ) -> str:
        """Scores in Markdown: for each row, what it is of, then its metrics.

        Args:
            head: Titles of the columns before the metrics.
            rows: The cells of these columns, and the values as in `Scored`.
        """
        return markdown_table(
            [*head, *(title_of(m, self.extractor.name) for m in self.metrics)],
            [[*first, *(f"{values[m]:.4g}" for m in self.metrics)] for first, values in rows],
        )

    def score(self, batches: Iterable[Tensor]) -> Scored:
        """Score images.

        Args:
            batches: uint8 (B, 3, H, W) each, this process's share of the set.

        Raises:
            ValueError: Features are not finite, or there are too few images.
        """
        samples = statistics(self.extractor, batches, self.metrics).merged()
        if world()[0] != 0:
            return Scored(samples.count, {}, alike(samples))
        values = score(samples, self.reference, self.metrics, self.device)
        return Scored(samples.count, values, alike(samples))

    def score_model(
        self,
        model: nn.Module,
        run: Description,
        recipe: Recipe,
        labels: Tensor,
        *,
        seed: int,
        batch: int,
        decode: Decode,
        progress: str = "sampling",
        keep: int = 0,
    ) -> tuple[Scored, np.ndarray | None]:
        """Sample a set of images and score it.

        Args:
            model, run, recipe, seed, decode: As for `tread_ssm.sampling.generate.generate`.
            labels: (n,) int64, the label of every image.
            batch: Images that a process samples at once.
            progress: What to write beside the progress bar.
            keep: How many of the first images to give back.

        Returns:
            The scores, and the first images (at least `keep` where there are so many), uint8
            (K, H, W, 3), on the first process. None without `keep`, and on the others.

        Raises:
            ValueError: Images cannot be sampled so, are not finite, or are too few.
        """
        kept: list[np.ndarray] = []
        first = world()[0] == 0
        mine, idle = even_share(shares(len(labels), batch))

        def images() -> Iterator[Tensor]:
            total = sum(map(len, mine))
            parts = generate(model, run, recipe, mine + idle, labels, seed=seed, decode=decode)
            with tqdm(
                total=total, unit="image", desc=progress, leave=False, disable=not first
            ) as bar:
                for i, part in enumerate(parts):
                    # With fewer batches than processes the first one has none but its idle one.
                    if first and (i < len(mine) or not mine) and sum(map(len, kept)) < keep:
                        kept.append(part.images)
                    if i < len(mine):
                        yield to_batch(part.images)
                        bar.update(len(part.numbers))

        scored = self.score(images())
        return scored, np.concatenate(kept) if kept else None
