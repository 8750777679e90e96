"""Evaluation: features of images, statistics of sets of them, and the metrics in use.

extractor = load_extractor("inception", "cuda")
reference = reference_statistics(Path("VIRTUAL_imagenet256_labeled.npz"), extractor, METRICS)
samples = statistics(extractor, batches, METRICS).merged()
print(score(samples, reference, METRICS))
"""

from tread_ssm.evaluation.extractors import (
    EmojiFeatures,
    FeatureExtractor,
    Features,
    InceptionFeatures,
    load_extractor,
)
from tread_ssm.evaluation.frechet import FeatureMoments, Gaussian, frechet_distance
from tread_ssm.evaluation.images import Images, batches, open_images
from tread_ssm.evaluation.reference import reference_statistics, save_statistics
from tread_ssm.evaluation.score import check_comparable, score
from tread_ssm.evaluation.statistics import METRICS, Metric, Statistics, feature_moments, statistics

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
    "feature_moments",
    "frechet_distance",
    "load_extractor",
    "open_images",
    "reference_statistics",
    "save_statistics",
    "score",
    "statistics",
]
