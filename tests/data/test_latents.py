"""Folders of latents as a data set."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tread_ssm.data import LatentData, LatentValues
from tread_ssm.data.shards import Manifest, Shard, write_array, write_manifest
from tread_ssm.errors import ConfigError
from tread_ssm.randomness import generator


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


def test_statistics_of_channels_in_the_manifest_scale_what_a_model_reads(tmp_path: Path) -> None:
    folder = tmp_path / "latents"
    write_latents(folder)
    index, plain = np.arange(200), LatentData(path=str(folder)).open()
    augmentation = plain.sample_augmentation(200, generator(0, 1, "step"))
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    told = {"mean": [1.0, -2.0, 0.5, 3.0], "deviation": [2.0, 1.0, 4.0, 0.5], "pixels": [0, 1]}
    for key in told:
        del manifest[key]
    path.write_text(json.dumps(manifest))  # as folders were before: nothing is shifted
    old = LatentData(path=str(folder)).open()
    assert torch.equal(old.read(index, augmentation), plain.read(index, augmentation))
    assert old.fingerprint() == plain.fingerprint()
    path.write_text(json.dumps(manifest | told))
    data = LatentData(path=str(folder), vae="other").open()
    assert data.values == LatentValues(
        scale=0.5, vae="other", mean=(1, -2, 0.5, 3), deviation=(2, 1, 4, 0.5), pixels=(0, 1)
    )
    z = plain.read(index, augmentation) / 0.5
    mean, deviation = (torch.tensor(told[k])[:, None, None] for k in ("mean", "deviation"))
    expected = (z - mean) / deviation * 0.5
    torch.testing.assert_close(data.read(index, augmentation), expected)
    assert data.fingerprint() != plain.fingerprint()


def test_latents_are_sampled_anew_from_their_posterior(tmp_path: Path) -> None:
    moments = write_latents(tmp_path / "latents")
    data = LatentData(path=str(tmp_path / "latents")).open()
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
    data = LatentData(path=str(tmp_path / "latents")).open()
    index = np.random.default_rng(1).permutation(200)
    assert np.array_equal(data.moments.take(index), moments[index])


def test_mirrored_latents_take_the_moments_of_mirrored_images(tmp_path: Path) -> None:
    write_latents(tmp_path / "latents", flip=True)
    data = LatentData(path=str(tmp_path / "latents"), flip=True).open()
    mirror, noise = data.sample_augmentation(200, generator(0, 0, "step"))
    x = data.read(np.arange(200), (mirror, noise))
    assert torch.equal(x.mean(dim=(1, 2, 3)) > 25, mirror)
    assert 70 < int(mirror.sum()) < 130


def test_a_shard_that_is_missing_or_cut_short_is_named_before_training(tmp_path: Path) -> None:
    folder = tmp_path / "latents"
    write_latents(folder)
    config = LatentData(path=str(folder))
    with pytest.raises(ConfigError, match=r"data\.flip: .* no mirrored images"):
        replace(config, flip=True).open()
    shard = folder / "moments-00001.npy"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    with pytest.raises(ConfigError, match=r"moments-00001\.npy is cut short or damaged"):
        config.open()
    np.save(shard, np.zeros((3, 8, 4, 4), dtype=np.float16))
    with pytest.raises(ConfigError, match=r"shape \(3, 8, 4, 4\); expected \(64, 8, 4, 4\)"):
        config.open()
    shard.unlink()
    with pytest.raises(ConfigError, match=r"moments-00001\.npy is missing"):
        config.open()


@pytest.mark.parametrize("how", ["truncated", "emptied", "removed"])
def test_a_shard_that_vanishes_under_a_run_is_a_sentence(tmp_path: Path, how: str) -> None:
    write_latents(tmp_path / "latents", flip=True)
    code = f"""
import os, numpy as np
from pathlib import Path
from tread_ssm.data import LatentData
from tread_ssm.randomness import generator
data = LatentData(path={str(tmp_path / "latents")!r}, flip=True).open()
augmentation = data.sample_augmentation(200, generator(0, 0, "step"))
data.read(np.arange(200), augmentation)
shard = Path({str(tmp_path / "latents" / "flip-00002.npy")!r})
if {how!r} == "removed":
    shard.unlink()
else:
    os.truncate(shard, 0 if {how!r} == "emptied" else shard.stat().st_size - 1)
try:
    data.read(np.arange(200), augmentation)
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "flip-00002.npy was removed or cut short while it was in use. Prepare" in done.stdout


def test_shards_that_are_not_what_the_manifest_says_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "latents"
    moments = write_latents(folder)
    config = LatentData(path=str(folder))
    shard, first = folder / "moments-00000.npy", moments[:64]
    for wrong, said in (
        (first.astype(np.float32), r"is <f4 of shape .* of <f2"),
        (first.astype(">f2"), r"is >f2 of shape .* of <f2"),
        (np.asfortranarray(first), r"in Fortran order; expected"),
        (first.view(np.int16), r"is <i2"),
    ):
        np.save(shard, wrong)
        with pytest.raises(ConfigError, match=said):
            config.open()
    np.save(shard, first)
    np.save(folder / "labels.npy", np.load(folder / "labels.npy").astype(np.int32))
    with pytest.raises(ConfigError, match=r"labels\.npy is <i4 .* expected \(200,\) of <i8"):
        config.open()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"mean": [1.0]},
            r"its mean is \(1\.0,\); .* for each of 4 channels",
        ),
        ({"deviation": [1.0, 2.0, 0.0, 1.0]}, "its deviation is .* greater than 0"),
        ({"pixels": [1.0, 0.0]}, r"its pixels are \(1\.0, 0\.0\); expected \(black, white\)"),
        ({"scale": 0}, "its scale is 0; it must be greater than 0"),
        ({"scale": -0.18}, "its scale is -0.18"),
        ({"scale": float("nan")}, "its scale is nan"),
        ({"scale": "1"}, "cannot be used"),
        ({"class_names": [1, 2, 3, 4, 5]}, "its class_names are not all text"),
        ({"count": 100}, "its shards hold 200 samples, but count is 100"),
        ({"shape": [7, 4, 4]}, "its shape is"),
        ({"shape": [8, 4]}, "its shape is"),
        ({"shape": [8, 4, 4.0]}, "its shape is"),
        ({"shards": [{"name": "../x.npy", "count": 200, "sha256": ""}]}, r"it lists '\.\./x\.npy'"),
        ({"mirrored": [{"name": "x.npy", "count": 7, "sha256": ""}]}, "its mirrored hold 7"),
    ],
)
def test_manifests_that_cannot_be_right_are_refused(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    write_latents(tmp_path / "latents")
    path = tmp_path / "latents" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError, match=said):
        LatentData(path=str(tmp_path / "latents")).open()


def test_the_fingerprint_is_the_manifests(tmp_path: Path) -> None:
    write_latents(tmp_path / "latents", flip=True)
    first = LatentData(path=str(tmp_path / "latents")).open().fingerprint()
    assert first == LatentData(path=str(tmp_path / "latents"), flip=True).open().fingerprint()
    assert first["bytes"] == 200 * 8 * 4 * 4 * 2
    path = tmp_path / "latents" / "manifest.json"
    for change in ({"scale": 0.25}, {"class_names": ["a", "b", "c", "d", "E"]}):
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        changed = LatentData(path=str(tmp_path / "latents")).open().fingerprint()
        assert changed != first
        first = changed
