"""The metrics: one table, and what a set of images must have for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from tread_ssm.evaluation.frechet import frechet_distance
from tread_ssm.evaluation.inception_score import inception_score
from tread_ssm.evaluation.kernel import kernel_distance
from tread_ssm.evaluation.precision_recall import precision_recall

NEIGHBOURS = 3

Field = Literal["pooled", "spatial", "features", "probabilities"]
Device = torch.device | str


@dataclass(frozen=True)
class Metric:
    """A row of the table.

    Attributes:
        title: How tables and plots name it.
        needs: The field of `Statistics` that it is computed from.
        least: Images that a set must hold. None: one more than there are features, so that their
            covariance has full rank.
        compute: The field of the samples, that of the reference and a device -> the value by the
            metric's name. Values that come from the same pass may stand beside it.
        compared: Whether it compares with real images.
    """

    title: str
    needs: Field
    least: int | None
    compute: Callable[[Any, Any, Device], Mapping[str, float]]
    compared: bool = True


def _neighbours(samples: Any, reference: Any, device: Device) -> Mapping[str, float]:
    values = precision_recall(samples, reference, k=NEIGHBOURS, device=device)
    return dict(zip(("precision", "recall"), values, strict=True))


METRICS: Mapping[str, Metric] = {
    "fid": Metric("FID", "pooled", None, lambda s, r, _: {"fid": frechet_distance(s, r)}),
    "sfid": Metric("sFID", "spatial", None, lambda s, r, _: {"sfid": frechet_distance(s, r)}),
    "is": Metric(
        "IS", "probabilities", 1, lambda s, _, __: {"is": inception_score(s)}, compared=False
    ),
    "precision": Metric("precision", "features", NEIGHBOURS + 1, _neighbours),
    "recall": Metric("recall", "features", NEIGHBOURS + 1, _neighbours),
    "kid": Metric(
        "KID", "features", 2, lambda s, r, device: {"kid": kernel_distance(s, r, device=device)}
    ),
}


_OWN = ("inception", "emoji")


def check_extractor(name: str) -> None:
    """Check that the name of an extractor is one that `load_extractor` takes.

    Raises:
        ValueError: It is not.
    """
    source, colon, model = name.partition(":")
    if name not in _OWN and not (source and colon and model):
        raise ValueError(
            f"no features are called {name!r}; use {', '.join(_OWN)}, timm:MODEL, "
            f"transformers:MODEL or MODULE:FUNCTION."
        )


def offered(extractor: str) -> tuple[str, ...]:
    """The metrics that are computed where none are named.

    The extractors of this package serve for all of them. Of another one only its pooled features
    are sure.
    """
    pooled = (m for m, metric in METRICS.items() if metric.needs in ("pooled", "features"))
    return tuple(METRICS) if extractor in _OWN else tuple(pooled)


def title_of(metric: str, extractor: str) -> str:
    """How tables and plots name a metric of these features: FID is one of Inception's alone."""
    title = METRICS[metric].title if metric in METRICS else metric
    if extractor == "inception" or metric not in METRICS:
        return title
    return f"{title.replace('FID', 'FD')} ({extractor})"


def check_metrics(names: Sequence[str]) -> None:
    """Check the names of metrics.

    Raises:
        ValueError: A metric is unknown or named twice, or none is named.
    """
    for name in names:
        if name not in METRICS:
            raise ValueError(f"No metric is called {name!r}; there are {', '.join(METRICS)}.")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"metrics are {', '.join(names) or 'none'}; name each wanted one once.")
