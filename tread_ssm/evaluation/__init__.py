"""Evaluation: features of images, and Frechet distances between sets of them."""

from tread_ssm.evaluation.features import EmojiFeatures, FeatureExtractor, feature_moments
from tread_ssm.evaluation.frechet import Moments, frechet_distance

__all__ = [
    "EmojiFeatures",
    "FeatureExtractor",
    "Moments",
    "feature_moments",
    "frechet_distance",
]
