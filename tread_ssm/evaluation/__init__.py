"""Evaluation: features of images, statistics of sets of them, and the metrics in use.

extractor = load_extractor("inception", "cuda")
reference = reference_statistics(Path("VIRTUAL_imagenet256_labeled.npz"), extractor, ["fid"])
samples = statistics(extractor, batches, ["fid"]).merged()
print(score(samples, reference, ["fid"]))
"""

from tread_ssm.evaluation.extractors import (
    EmojiFeatures,
    FeatureExtractor,
    Features,
    InceptionFeatures,
)
from tread_ssm.evaluation.frechet import FeatureMoments, Gaussian, frechet_distance
from tread_ssm.evaluation.images import Images, batches, open_images, to_batch
from tread_ssm.evaluation.load import load_extractor
from tread_ssm.evaluation.metrics import METRICS, Metric, check_metrics
from tread_ssm.evaluation.reference import reference_statistics, save_statistics
from tread_ssm.evaluation.score import check_comparable, check_counts, score
from tread_ssm.evaluation.statistics import Statistics, feature_moments, statistics

__all__ = [
    "METRICS",
    "EmojiFeatures",
    "FeatureExtractor",
    "FeatureMoments",
    "Features",
    "Gaussian",
    "Images",
    "InceptionFeatures",
    "Metric",
    "Statistics",
    "batches",
    "check_comparable",
    "check_counts",
    "check_metrics",
    "feature_moments",
    "frechet_distance",
    "load_extractor",
    "open_images",
    "reference_statistics",
    "save_statistics",
    "score",
    "statistics",
    "to_batch",
]
