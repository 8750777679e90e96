"""Images and statistics on disk, in the layouts that others use; bad files are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tread_ssm.data import load_emoji
from tread_ssm.evaluation import (
    METRICS,
    EmojiFeatures,
    Features,
    Gaussian,
    batches,
    feature_moments,
    open_images,
    reference_statistics,
    save_statistics,
    score,
    statistics,
)

REAL: tuple[str, ...] = ("fid", "sfid", "precision", "recall", "kid")


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return load_emoji(8)[0][:150]


@pytest.fixture
def extractor() -> EmojiFeatures:
    return EmojiFeatures()


def write(path: Path, kind: str, pixels: np.ndarray) -> Path:
    if kind == "adm":
        np.savez(path, arr_0=pixels, arr_1=np.arange(len(pixels)))
    elif kind == "ours":
        np.savez(path, labels=np.arange(len(pixels)), images=pixels)
    elif kind == "compressed":
        np.savez_compressed(path, arr_0=pixels)
    elif kind == "fortran":
        np.savez(path, arr_0=np.asfortranarray(pixels))
    else:
        path = path.with_suffix("")
        for i, image in enumerate(pixels):
            folder = path / ("a" if i < 70 else "b")
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{i:06d}.png")
    return path


@pytest.mark.parametrize("kind", ["adm", "ours", "compressed", "fortran", "folder"])
def test_images_come_back_as_they_were_written(
    tmp_path: Path, pixels: np.ndarray, kind: str
) -> None:
    images = open_images(write(tmp_path / "set.npz", kind, pixels))
    assert images.shape == pixels.shape and len(images) == 150
    parts = list(batches(images, 64))
    assert [len(p) for p in parts] == [64, 64, 22] and parts[0].dtype == torch.uint8
    assert np.array_equal(torch.cat(parts).permute(0, 2, 3, 1).numpy(), pixels)


def test_an_archive_is_read_in_place(tmp_path: Path, pixels: np.ndarray) -> None:
    images = open_images(write(tmp_path / "set.npz", "adm", pixels))
    assert isinstance(images.read(3, 5), np.memmap)


def test_files_that_cannot_be_used_are_named(tmp_path: Path, pixels: np.ndarray) -> None:
    path = tmp_path / "bad.npz"
    with pytest.raises(ValueError, match=r"bad.npz is not there"):
        open_images(path)
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"bad.npz is no readable .npz"):
        open_images(path)
    np.savez(path, samples=pixels)
    with pytest.raises(ValueError, match=r"bad.npz holds no images: it has samples; expected"):
        open_images(path)
    np.savez(path, arr_0=pixels.astype(np.float32))
    with pytest.raises(ValueError, match=r"arr_0 is float32 of shape \(150, 8, 8, 3\); expected"):
        open_images(path)
    np.savez(path, arr_0=pixels.transpose(0, 3, 1, 2))
    with pytest.raises(ValueError, match=r"shape \(150, 3, 8, 8\)"):
        open_images(path)
    np.savez(path, arr_0=np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"arr_0 cannot be read \(an array of Python objects"):
        open_images(path)
    np.savez(path, arr_0=pixels)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match=r"bad.npz is no readable .npz"):
        open_images(path)


def test_folders_that_cannot_be_used_are_named(tmp_path: Path, pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match="holds no images"):
        open_images(tmp_path)
    Image.fromarray(pixels[0]).save(tmp_path / "0.png")
    Image.fromarray(pixels[1, :6]).save(tmp_path / "1.png")
    with pytest.raises(ValueError, match=r"1.png is 8 x 6 pixels, .*0.png is 8 x 8"):
        list(batches(open_images(tmp_path), 4))
    (tmp_path / "1.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"1.png is no readable image"):
        list(batches(open_images(tmp_path), 4))


@pytest.mark.parametrize("kind", ["adm", "folder"])
def test_a_reference_of_images_is_their_statistics(
    tmp_path: Path, pixels: np.ndarray, extractor: EmojiFeatures, kind: str
) -> None:
    path = write(tmp_path / "set.npz", kind, pixels)
    held = reference_statistics(path, extractor, METRICS)
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    assert held.count == 150 and held.probabilities is None
    expected = feature_moments(extractor, x, batch=64)
    torch.testing.assert_close(held.pooled.mean, expected.mean)  # type: ignore[union-attr]


def test_saved_statistics_serve_like_the_images(
    tmp_path: Path, pixels: np.ndarray, extractor: EmojiFeatures
) -> None:
    held = reference_statistics(write(tmp_path / "set.npz", "adm", pixels), extractor, REAL)
    save_statistics(tmp_path / "saved.npz", held)
    again = reference_statistics(tmp_path / "saved.npz", extractor, REAL)
    assert again.count == 150
    other = torch.from_numpy(load_emoji(8)[0][300:500]).permute(0, 3, 1, 2)
    samples = statistics(extractor, [other], REAL)
    assert score(samples, again, REAL) == pytest.approx(score(samples, held, REAL), rel=1e-9)


def test_saved_statistics_are_of_one_size_of_images(
    tmp_path: Path, pixels: np.ndarray, extractor: EmojiFeatures
) -> None:
    small = write(tmp_path / "set.npz", "adm", pixels[:, 1:7, 1:7])
    held = reference_statistics(small, extractor, ["fid"])
    saved = tmp_path / "saved.npz"
    save_statistics(saved, held)
    assert reference_statistics(saved, extractor, ["fid"], size=(6, 6)).size == (6, 6)
    expected = (
        r"images of .*saved.npz are 6 x 6 pixels, those sampled 8 x 8; compare images of one size: "
        r"make a reference from images of 8 x 8."
    )
    with pytest.raises(ValueError, match=expected):
        reference_statistics(saved, extractor, ["fid"], size=(8, 8))
    samples = statistics(extractor, [torch.from_numpy(pixels).permute(0, 3, 1, 2)], ["fid"])
    with pytest.raises(ValueError, match=r"the reference are 6 x 6 pixels, those sampled 8 x 8"):
        score(samples, held, ["fid"])

    with np.load(saved) as arrays:
        np.savez(tmp_path / "bad.npz", **{**arrays, "size": np.array([6, 6, 3])})
    with pytest.raises(ValueError, match=r"bad.npz: its size of images is \[6, 6, 3\], not two"):
        reference_statistics(tmp_path / "bad.npz", extractor, ["fid"])

    # A file of an earlier version does not say it.
    with np.load(saved) as arrays:
        np.savez(tmp_path / "old.npz", **{n: arrays[n] for n in arrays.files if n != "size"})  # type: ignore[arg-type]
    old = reference_statistics(tmp_path / "old.npz", extractor, ["fid"], size=(8, 8))
    assert old.size is None and score(samples, old, ["fid"])["fid"] > 0


def test_images_of_several_sizes_have_none(pixels: np.ndarray, extractor: EmojiFeatures) -> None:
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    assert statistics(extractor, [x[:5], x[5:9]], ["fid"]).size == (8, 8)
    mixed = [x[:5], x[5:9, :, 1:7, 1:7]]
    assert statistics(extractor, mixed, ["kid"]).size is None
    each = [statistics(extractor, [part], ["kid"]) for part in mixed]
    assert (each[0] + each[1]).size is None


def test_saved_statistics_say_what_they_do_not_serve_for(
    tmp_path: Path, pixels: np.ndarray, extractor: EmojiFeatures
) -> None:
    held = reference_statistics(write(tmp_path / "set.npz", "adm", pixels), extractor, ["fid"])
    save_statistics(tmp_path / "saved.npz", held)
    with pytest.raises(ValueError, match=r"saved.npz holds no images.* do not serve for sfid, kid"):
        reference_statistics(tmp_path / "saved.npz", extractor, ["fid", "sfid", "kid"])

    class Other:
        name = "other"

        def __call__(self, x: torch.Tensor) -> Features:
            return Features(x.float().flatten(1)[:, :4])

    with pytest.raises(ValueError, match=r"of emoji features and no images: fid of oth"):
        reference_statistics(tmp_path / "saved.npz", Other(), ["fid"])
    np.savez(tmp_path / "saved.npz", mu=np.zeros(3), sigma=np.zeros((2, 2)), extractor="emoji")
    with pytest.raises(ValueError, match=r"saved.npz: a mean of shape \(3,\)"):
        reference_statistics(tmp_path / "saved.npz", extractor, ["fid"])
    bad = np.full((3, 3), np.nan)
    np.savez(tmp_path / "saved.npz", mu=np.zeros(3), sigma=bad, extractor="emoji")
    with pytest.raises(ValueError, match=r"saved.npz: its mean or covariance is not finite"):
        reference_statistics(tmp_path / "saved.npz", extractor, ["fid"])


class Inception(EmojiFeatures):
    """Small features under Inception's name, as ADM's files give no name of their own."""

    name = "inception"


def adm_file(path: Path, pixels: np.ndarray, images: bool) -> tuple[np.ndarray, ...]:
    """As VIRTUAL_imagenet256_labeled.npz: moments of more images than it holds."""
    more = Inception()(torch.from_numpy(load_emoji(8)[0]).permute(0, 3, 1, 2))
    pooled, spatial = more.pooled.numpy(), more.spatial.numpy()  # type: ignore[union-attr]
    arrays = {
        "mu": pooled.mean(0),
        "sigma": np.cov(pooled, rowvar=False),
        "mu_s": spatial.mean(0),
        "sigma_s": np.cov(spatial, rowvar=False),
    }
    np.savez(path, **({"arr_0": pixels} if images else {}), **arrays)
    return pooled, spatial


def test_adms_file_gives_its_moments_and_the_features_of_its_images(
    tmp_path: Path, pixels: np.ndarray, extractor: EmojiFeatures
) -> None:
    path = tmp_path / "VIRTUAL.npz"
    pooled, spatial = adm_file(path, pixels, images=True)
    held = reference_statistics(path, Inception(), METRICS)
    assert isinstance(held.pooled, Gaussian) and isinstance(held.spatial, Gaussian)
    np.testing.assert_allclose(held.pooled.mean.numpy(), pooled.mean(0), rtol=1e-6)
    np.testing.assert_allclose(held.spatial.covariance.numpy(), np.cov(spatial.T), rtol=1e-6)
    assert held.features is not None and held.features.shape == (150, 64)
    samples = statistics(Inception(), [torch.from_numpy(pixels).permute(0, 3, 1, 2)], METRICS)
    values = score(samples, held, METRICS)
    assert values["precision"] == values["recall"] == 1.0 and values["fid"] > 0
    # Its moments are not those of other features; the images are.
    emoji = reference_statistics(path, extractor, ["fid"])
    assert not isinstance(emoji.pooled, Gaussian) and emoji.count == 150


def test_adms_moments_alone_serve_for_frechet_distances(
    tmp_path: Path, pixels: np.ndarray, extractor: EmojiFeatures
) -> None:
    path = tmp_path / "stats.npz"
    adm_file(path, pixels, images=False)
    held = reference_statistics(path, Inception(), ["fid", "sfid", "is"])
    assert isinstance(held.pooled, Gaussian) and held.features is None
    with pytest.raises(ValueError, match=r"do not serve for precision, recall"):
        reference_statistics(path, Inception(), ["fid", "precision", "recall"])
    with pytest.raises(ValueError, match=r"holds statistics of inception features and no images"):
        reference_statistics(path, extractor, ["fid"])
