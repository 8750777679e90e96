"""What a trained network of the study is measured by: held-out loss and FD-emoji."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tread_ssm.config.run import RunConfig
from tread_ssm.data import load_emoji
from tread_ssm.evaluation import (
    EmojiFeatures,
    FeatureMoments,
    feature_moments,
    frechet_distance,
    to_batch,
)
from tread_ssm.files import replacing
from tread_ssm.pretrained import load_export
from tread_ssm.randomness import generator
from tread_ssm.sampling.generate import generate_all
from tread_ssm.sampling.image_grid import decoder
from tread_ssm.sampling.recipe import Recipe


@dataclass(frozen=True)
class Held:
    """The images that no arm trains on, with the noise and t at which each is denoised.

    Attributes:
        x: (n, 3, H, W) float32 in [-1, 1].
        labels: (n,) int64.
        noise: Like x.
        t: (n,) float32.
        reference: Features of the training images.
    """

    x: Tensor
    labels: Tensor
    noise: Tensor
    t: Tensor
    reference: FeatureMoments


def split_data(work: Path, size: int, held: int) -> tuple[Path, np.ndarray, np.ndarray]:
    """Write the training part as an .npz; returns its path, and the held-out images and labels."""
    images, labels, names = load_emoji(size)
    order = torch.randperm(len(images), generator=generator(0, 0, "comparison")).numpy()
    out, rest = order[:held], order[held:]
    path = work / f"training_images_{size}.npz"
    if not path.is_file():
        with replacing(path) as temporary:
            arrays = {"images": images[rest], "labels": labels[rest]}
            np.savez(temporary, class_names=np.array(names), **arrays)
    return path, images[out], labels[out]


def held_out(work: Path, config: RunConfig, held: int) -> Held:
    """The fixed evaluation set; the same for every arm, seed and step of an image size."""
    path, images, labels = split_data(work, config.model.image_size, held)
    rng = generator(0, 1, "comparison")
    x = to_batch(images).float().div(127.5).sub(1)
    return Held(
        x,
        torch.from_numpy(labels),
        torch.randn(x.shape, generator=rng),
        config.objective.sample_t(len(x), rng),
        _reference(path),
    )


@functools.cache
def _reference(path: Path) -> FeatureMoments:
    with np.load(path, allow_pickle=False) as archive:
        return feature_moments(EmojiFeatures(), to_batch(archive["images"]))


@torch.no_grad()
def loss_of(folder: Path, held: Held) -> float:
    """Mean loss of the dense network with averaged weights on the fixed evaluation set."""
    model, described = load_export(folder)
    parts = zip(*(t.split(64) for t in (held.x, held.labels, held.t, held.noise)), strict=True)
    losses = [
        described.objective.loss_terms(model, x, labels, t, noise).loss_map.mean(dim=(1, 2, 3))
        for x, labels, t, noise in parts
    ]
    return float(torch.cat(losses).mean())


def samples(folder: Path, labels: Tensor, recipe: Recipe, seed: int = 0) -> np.ndarray:
    """uint8 (n, H, W, 3) from averaged weights; image i has the same noise for every folder."""
    model, run = load_export(folder)
    decode = decoder(run.values, None, "cpu")
    return generate_all(model, run, recipe, labels, seed=seed, decode=decode)


def distance_of(folder: Path, held: Held, recipe: Recipe, seed: int = 0) -> float:
    """FD-emoji of samples with the held-out labels, from the training images."""
    return distance(samples(folder, held.labels, recipe, seed), held)


def distance(images: np.ndarray, held: Held) -> float:
    """FD-emoji of uint8 (n, H, W, 3) from the training images."""
    return frechet_distance(feature_moments(EmojiFeatures(), to_batch(images)), held.reference)


def strips(folders: Sequence[Path], n_classes: int, sample_steps: int) -> np.ndarray:
    """uint8 picture: a row of each folder's samples, a column a class, with the same noise."""
    recipe = Recipe(steps=sample_steps, guidance=2.0, sampler="dpm_solver_pp")
    rows = [samples(folder, torch.arange(n_classes), recipe) for folder in folders]
    return np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)
