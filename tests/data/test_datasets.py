"""Data sources, and the order in which steps see them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tread_ssm.data import load_emoji
from tread_ssm.data.datasets import (
    ArrayData,
    EmojiData,
    FolderData,
    LatentData,
    batch_index,
    open_data,
)
from tread_ssm.data.shards import Manifest, Shard, write_array, write_manifest
from tread_ssm.data.sources import Latents, LatentValues, Pixels
from tread_ssm.errors import ConfigError
from tread_ssm.randomness import generator


@pytest.mark.parametrize(("n", "batch"), [(10, 3), (7, 20), (12, 4), (1, 2)])
def test_every_epoch_holds_every_sample_once(n: int, batch: int) -> None:
    steps = [batch_index(n, batch, seed=1, step=s) for s in range(3 * n)]
    assert {len(s) for s in steps} == {batch}
    stream = np.concatenate(steps)
    epochs = stream[: len(stream) // n * n].reshape(-1, n)
    assert (np.sort(epochs, axis=1) == np.arange(n)).all()
    if n > 5:
        assert len({tuple(e) for e in epochs}) > 1  # shuffled anew


def test_a_step_is_addressed_without_those_before_it() -> None:
    far = batch_index(1000, 64, seed=5, step=123_456_789)
    assert len(set(far.tolist())) == 64
    assert np.array_equal(far, batch_index(1000, 64, seed=5, step=123_456_789))
    assert not np.array_equal(far, batch_index(1000, 64, seed=6, step=123_456_789))


def test_the_embedded_emoji() -> None:
    images, labels, names = load_emoji(32)
    assert images.shape == (1906, 32, 32, 3)
    assert images.dtype == np.uint8
    assert len(names) == 9
    assert set(labels) == set(range(9))
    small, *_ = load_emoji(16)
    expected = images.reshape(1906, 16, 2, 16, 2, 3).astype(float).mean(axis=(2, 4))
    assert np.abs(small - expected).max() <= 0.5
    with pytest.raises(ValueError, match="size is 20"):
        load_emoji(20)


def test_pixels_are_read_in_range_and_mirrored_half_the_time() -> None:
    plain = open_data(EmojiData(size=8))
    data = open_data(EmojiData(size=8, flip=True))
    assert isinstance(plain, Pixels)
    assert isinstance(data, Pixels)
    index = np.arange(400)
    drawn = data.sample_augmentation(400, generator(0, 0, "step"))
    straight, x = (
        plain.read(index, plain.sample_augmentation(400, generator(0, 0, "step"))),
        data.read(index, drawn),
    )
    assert x.shape == (400, 3, 8, 8)
    assert x.dtype == torch.float32
    assert straight.min() == -1
    assert straight.max() == 1
    assert 150 < int(drawn.sum()) < 250
    assert torch.equal(x[drawn], straight[drawn].flip(3))
    assert torch.equal(x[~drawn], straight[~drawn])


def write_latents(folder: Path, n: int = 200, flip: bool = False) -> np.ndarray:
    """Shards of 64 and an odd rest; the mirrored images' means are 100 higher."""
    rng = np.random.default_rng(0)
    mean, variance = rng.normal(size=(n, 4, 4, 4)), np.full((n, 4, 4, 4), -2.0)
    moments = np.concatenate([mean, variance], axis=1).astype(np.float16)
    other = moments.copy()
    other[:, :4] += 100
    folder.mkdir()

    def write(name: str, array: np.ndarray) -> tuple[Shard, ...]:
        starts = range(0, n, 64)
        return tuple(
            write_array(folder / f"{name}-{i:05d}.npy", array[s : s + 64])
            for i, s in enumerate(starts)
        )

    write_manifest(
        folder,
        Manifest(
            vae="some/vae",
            scale=0.5,
            resolution=None,
            count=n,
            shape=(8, 4, 4),
            class_names=("a", "b", "c", "d", "e"),
            shards=write("moments", moments),
            mirrored=write("flip", other) if flip else (),
            labels=write_array(folder / "labels.npy", rng.integers(0, 5, n)),
        ),
    )
    return moments


def test_latents_are_sampled_anew_from_their_posterior(tmp_path: Path) -> None:
    moments = write_latents(tmp_path / "latents")
    data = open_data(LatentData(path=str(tmp_path / "latents")))
    assert isinstance(data, Latents)
    assert len(data.moments.parts) == 4
    assert not any(part.flags.owndata or part.flags.writeable for part in data.moments.parts)
    assert data.values == LatentValues(scale=0.5, vae="some/vae")
    assert data.shape == (4, 4, 4)
    assert data.class_names == ("a", "b", "c", "d", "e")
    index = np.arange(200)
    draws = [
        data.read(index, data.sample_augmentation(200, generator(0, s, "step"))) / 0.5
        for s in range(2)
    ]
    mean = torch.from_numpy(moments[:, :4]).float()
    for x in draws:
        error = (x - mean).std()
        assert abs(error - np.exp(-1.0)) < 0.01
    assert not torch.equal(*draws)


def test_samples_come_in_the_order_asked_for_across_shards(tmp_path: Path) -> None:
    moments = write_latents(tmp_path / "latents")
    data = open_data(LatentData(path=str(tmp_path / "latents")))
    assert isinstance(data, Latents)
    index = np.random.default_rng(1).permutation(200)
    assert np.array_equal(data.moments.take(index), moments[index])


def test_mirrored_latents_take_the_moments_of_mirrored_images(tmp_path: Path) -> None:
    write_latents(tmp_path / "latents", flip=True)
    data = open_data(LatentData(path=str(tmp_path / "latents"), flip=True))
    mirror, noise = data.sample_augmentation(200, generator(0, 0, "step"))  # type: ignore[misc]
    x = data.read(np.arange(200), (mirror, noise))  # type: ignore[arg-type]
    assert torch.equal(x.mean(dim=(1, 2, 3)) > 25, mirror)
    assert 70 < int(mirror.sum()) < 130


def test_arrays_with_and_without_labels(tmp_path: Path) -> None:
    images = np.zeros((5, 4, 4, 1), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.array([0, 1, 2, 1, 0]))
    data = open_data(ArrayData(path=str(tmp_path / "a.npz")))
    assert data.class_names == ("0", "1", "2")
    assert data.shape == (1, 4, 4)
    np.savez(tmp_path / "b.npz", images=images)
    assert open_data(ArrayData(path=str(tmp_path / "b.npz"))).class_names == ()


def test_broken_data_is_refused_with_a_sentence(tmp_path: Path) -> None:
    def refuse(match: str, **arrays: np.ndarray) -> None:
        np.savez(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=match):
            open_data(ArrayData(path=str(tmp_path / "x.npz")))

    images = np.zeros((5, 4, 4, 1), dtype=np.uint8)
    refuse("no array `images`", pictures=images)
    refuse("float32", images=images.astype(np.float32))
    refuse("expected 5 whole numbers", images=images, labels=np.zeros(4, dtype=int))
    refuse(
        "names 1 classes, but a label is 1",
        images=images,
        labels=np.array([0, 1, 0, 1, 0]),
        class_names=np.array(["a"]),
    )
    refuse("no samples", images=images[:0])
    with pytest.raises(ConfigError, match="does not exist"):
        open_data(LatentData(path=str(tmp_path / "gone")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"holds no manifest\.json"):
        open_data(LatentData(path=str(tmp_path / "empty")))


def test_a_shard_that_is_missing_or_cut_short_is_named_before_training(tmp_path: Path) -> None:
    folder = tmp_path / "latents"
    write_latents(folder)
    config = LatentData(path=str(folder))
    with pytest.raises(ConfigError, match=r"data\.flip: .* no mirrored images"):
        open_data(replace(config, flip=True))
    shard = folder / "moments-00001.npy"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    with pytest.raises(ConfigError, match=r"moments-00001\.npy is cut short or damaged"):
        open_data(config)
    np.save(shard, np.zeros((3, 8, 4, 4), dtype=np.float16))
    with pytest.raises(ConfigError, match=r"shape \(3, 8, 4, 4\); expected \(64, 8, 4, 4\)"):
        open_data(config)
    shard.unlink()
    with pytest.raises(ConfigError, match=r"moments-00001\.npy is missing"):
        open_data(config)


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    images, *_ = load_emoji(32)
    for name, count in (("cat", 5), ("dog", 3)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(images[i]).save(tmp_path / "images" / name / f"{i}.png")
    return tmp_path / "images"


def test_a_folder_of_images_is_read_as_pixels(image_folder: Path) -> None:
    data = open_data(FolderData(path=str(image_folder), size=16, flip=True))
    assert data.class_names == ("cat", "dog")
    assert data.labels.tolist() == [0] * 5 + [1] * 3
    assert data.shape == (3, 16, 16)
    index = np.array([6, 0])
    x = data.read(index, torch.tensor([True, False]))  # type: ignore[arg-type]
    images, *_ = load_emoji(32)
    for got, k, mirrored in zip(x, (1, 0), (True, False), strict=True):
        expected = images[k].reshape(16, 2, 16, 2, 3).mean(axis=(1, 3)) / 127.5 - 1
        seen = (got.flip(2) if mirrored else got).permute(1, 2, 0).numpy()
        assert np.abs(seen - expected).max() < 1.01 / 127.5  # Pillow rounds in each direction
    (image_folder / "cat" / "0.png").write_bytes(b"no picture")
    with pytest.raises(ConfigError, match=r"cat/0\.png is no readable image"):
        data.read(index, torch.tensor([True, False]))  # type: ignore[arg-type]


def test_images_in_no_class_folder_have_no_class(image_folder: Path) -> None:
    data = open_data(FolderData(path=str(image_folder / "dog"), size=32))
    assert data.class_names == ()
    assert data.labels.tolist() == [0] * 3
    with pytest.raises(ConfigError, match=r"data\.path: .* holds no images"):
        (image_folder / "none").mkdir()
        open_data(FolderData(path=str(image_folder / "none"), size=32))
