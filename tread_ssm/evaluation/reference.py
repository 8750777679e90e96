"""Statistics of real images: from the images, from ADM's reference files, or from our own.

ADM's files hold images (`arr_0`), `mu` and `sigma` of Inception's pooled features and `mu_s` and
`sigma_s` of its spatial ones; the latter were made from more images than the file holds. Ours
have the same names, and `extractor`, `count`, `size` and perhaps `features` as well.
"""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch

from tread_ssm.evaluation.extractors import FeatureExtractor
from tread_ssm.evaluation.frechet import FeatureMoments, Gaussian
from tread_ssm.evaluation.images import KEYS, Images, batches, npz_names, open_images
from tread_ssm.evaluation.metrics import METRICS, check_metrics
from tread_ssm.evaluation.score import check_counts, check_sizes
from tread_ssm.evaluation.statistics import Statistics, statistics
from tread_ssm.files import replacing
from tread_ssm.processes import is_main

_MOMENTS = {"pooled": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}


def reference_statistics(
    path: Path,
    extractor: FeatureExtractor,
    metrics: Sequence[str],
    *,
    size: tuple[int, int] | None = None,
    batch: int = 64,
    progress: bool = False,
) -> Statistics:
    """What the metrics need of the real images at `path`: a folder or an .npz.

    Statistics that the file holds for this extractor are taken as they are, and the rest from its
    images. With several processes all of them call this, share the work and get the whole.

    Args:
        path: The folder or .npz.
        extractor: Gives the features of images.
        metrics: Names from `METRICS`.
        size: Rows and columns of the images that it is compared with. Square ones: images of a
            folder are cut and scaled to it, as training does. None: not known.
        batch: Images at a time.
        progress: Whether to show a progress bar, and which files of a folder are left out.

    Raises:
        ValueError: The file has neither images nor statistics that serve; its images are too few,
            or of another size.
    """
    check_metrics(metrics)
    wanted = [m for m in metrics if METRICS[m].compared]
    held = Statistics(extractor.name, 0)
    names = set() if path.is_dir() else npz_names(path)
    images = _images(path, size) if path.is_dir() or names & set(KEYS) else None
    maker = _maker(path, names)
    if maker == extractor.name:
        held = _read(path, names, maker)
        check_sizes(f"the images of {path}", held.size, size)
    missing = [m for m in wanted if getattr(held, METRICS[m].needs) is None]
    if not missing:
        return held
    if images is None:
        _refuse(path, extractor.name, maker, missing)
    check_counts(extractor, {"reference": len(images)}, missing, images.size)
    for note in images.notes if progress and is_main() else ():
        print(f"note: {note}", file=sys.stderr)
    parts = batches(images, batch, f"{path.name}" if progress else None)
    made = statistics(extractor, parts, missing).merged()
    return replace(made, **{f: getattr(held, f) for f in _MOMENTS if getattr(held, f) is not None})


def save_statistics(path: Path, held: Statistics) -> None:
    """Write statistics as an .npz that `reference_statistics` reads, whole or not at all.

    Class probabilities are left out: no metric compares them with a reference's.

    Args:
        path: The file to write.
        held: The statistics.

    Raises:
        OSError: It cannot be written.
    """
    arrays: dict[str, np.ndarray] = {"extractor": np.array(held.extractor)}
    for field, (mean, covariance) in _MOMENTS.items():
        moments = getattr(held, field)
        if moments is not None:
            arrays |= {mean: moments.mean.numpy(), covariance: moments.covariance.numpy()}
            if isinstance(moments, FeatureMoments):
                arrays["count"] = np.array(moments.count)
    if held.features is not None:
        arrays["features"] = held.features.numpy()
    if held.size is not None:
        arrays["size"] = np.array(held.size)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # allow_pickle is no array


def _images(path: Path, size: tuple[int, int] | None) -> Images:
    square = size is not None and size[0] == size[1]
    images = open_images(path, size[0] if size is not None and square else None)
    check_sizes(f"the images of {path}", images.size, size)
    return images


def _maker(path: Path, names: set[str]) -> str | None:
    """Which extractor the statistics in a file are of; None: there are none."""
    if "extractor" in names:
        return str(_load(path, ["extractor"])["extractor"])
    return "inception" if names & {"mu", "mu_s"} else None


def _read(path: Path, names: set[str], extractor: str) -> Statistics:
    """The statistics that an .npz holds."""
    known = {"count", "features", *(n for pair in _MOMENTS.values() for n in pair)}
    known |= {"size"} if "extractor" in names else set()
    arrays = _load(path, sorted(known & names))
    count = int(arrays["count"]) if "count" in arrays else 0
    moments: dict[str, FeatureMoments | Gaussian] = {}
    for field, (mean, covariance) in _MOMENTS.items():
        if mean in arrays and covariance in arrays:
            moments[field] = _moments(path, arrays[mean], arrays[covariance], count)
    features = torch.from_numpy(arrays["features"]) if "features" in arrays else None
    count = count or (0 if features is None else len(features))
    size = _size(path, arrays["size"]) if "size" in arrays else None  # not in ADM's files
    return Statistics(
        extractor, count, moments.get("pooled"), moments.get("spatial"), features, size=size
    )


def _size(path: Path, size: np.ndarray) -> tuple[int, int]:
    if size.shape != (2,) or size.dtype.kind not in "iu" or size.min() < 1:
        raise ValueError(
            f"{path}: its size of images is {size.tolist()}, not two whole numbers; make it anew."
        )
    return int(size[0]), int(size[1])


def _moments(
    path: Path, mean: np.ndarray, covariance: np.ndarray, count: int
) -> FeatureMoments | Gaussian:
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(
            f"{path}: a mean of shape {mean.shape} and a covariance of shape {covariance.shape} do "
            f"not belong together; expected (F,) and (F, F)."
        )
    m, c = (torch.from_numpy(x.astype(np.float64)) for x in (mean, covariance))
    if not bool(m.isfinite().all() and c.isfinite().all()):
        raise ValueError(f"{path}: its mean or covariance is not finite; make the file anew.")
    return FeatureMoments(count, m, c * (count - 1)) if count > 1 else Gaussian(m, c)


def _load(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in names}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read ({error}).") from None


def _refuse(path: Path, wanted: str, maker: str | None, missing: Sequence[str]) -> NoReturn:
    if maker is None:
        open_images(path)  # says what it found instead
    metrics = ", ".join(missing)
    if maker != wanted:
        raise ValueError(
            f"{path} holds statistics of {maker} features and no images: {metrics} of {wanted} "
            f"features cannot be computed; use the {maker} extractor or a file with images."
        )
    raise ValueError(
        f"{path} holds no images, and its statistics do not serve for {metrics}; use a file with "
        f"images (arr_0), or one saved for these metrics."
    )
