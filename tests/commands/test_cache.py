"""Features cached from a folder of images, and a run that aligns with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.training.runs import run, tiny
from tread_ssm.commands.cache import main
from tread_ssm.config.check import check
from tread_ssm.config.run import RunConfig
from tread_ssm.data import FolderData, LatentData
from tread_ssm.data.features import open_features
from tread_ssm.data.images import read_image
from tread_ssm.data.vision import PatchFeatures
from tread_ssm.diffusion import Repa
from tread_ssm.errors import ConfigError
from tread_ssm.models import DiMConfig
from tread_ssm.training.batch import BatchMaker
from tread_ssm.training.checkpoints.resume import check_folder

SIZE, CHANNELS = 64, 64  # 4 x 4 patches of 16 pixels


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images/ of two classes; vit.safetensors; features/ of them."""
    folder = tmp_path_factory.mktemp("place")
    rng = np.random.default_rng(0)
    for i in range(11):
        path = folder / "images" / ("a" if i < 6 else "b") / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(path)
    torch.manual_seed(0)
    network = timm.create_model("test_vit", num_classes=0, img_size=SIZE)
    save_file(network.state_dict(), folder / "vit.safetensors")
    assert cached(folder, "features", "--flip") == 0
    return folder


def cached(folder: Path, out: str, *more: str) -> int:
    command = ["--data", folder / "images", "--model", "test_vit", "--device", "cpu"]
    command += ["--weights", folder / "vit.safetensors", "--size", f"{SIZE}", "--batch", "4"]
    command += ["--shard-size", "5", "--out", folder / out, *more]
    return main([*map(str, command)])


def aligned(out: Path, place: Path, **changes: object) -> RunConfig:
    settings = {"block": 1, "features": str(place / "features"), "channels": CHANNELS, "layers": 2}
    return replace(
        tiny(out, steps=4),
        data=FolderData(path=str(place / "images"), size=8, flip=True),
        model=DiMConfig(image_size=8, channels=3, n_classes=2, dim=16, depth=3, pads=1),
        auxiliary=(Repa(**(settings | changes)),),  # type: ignore[arg-type]
    )


def test_each_sample_of_a_batch_has_the_features_of_its_own_image(
    tmp_path: Path, place: Path
) -> None:
    config = aligned(tmp_path, place)
    data = check(config)
    batch = BatchMaker.of(config, data).make(0, config.plan, slice(0, 4))
    assert batch.cached is not None and batch.cached.shape == (4, 16, CHANNELS)
    encoder = PatchFeatures.load("test_vit", "timm", SIZE, weights=place / "vit.safetensors")
    paths = sorted((place / "images").rglob("*.png"))
    plain = data.read(np.arange(11), (torch.zeros(11, dtype=torch.bool),))
    flipped = data.read(np.arange(11), (torch.ones(11, dtype=torch.bool),))
    pixels = torch.from_numpy(np.stack([read_image(p, SIZE) for p in paths]))
    for x, held in zip(batch.x, batch.cached, strict=True):
        sides = [bool((side == x).flatten(1).all(1).any()) for side in (plain, flipped)]
        number = int(((plain if sides[0] else flipped) == x).flatten(1).all(1).nonzero()[0])
        shown = pixels[number][None]
        expected = encoder.encode(shown if sides[0] else shown.flip(2)).flatten(2).mT[0]
        torch.testing.assert_close(held, expected, rtol=0, atol=2e-3)


def test_a_run_aligns_and_its_parts_agree(tmp_path: Path, place: Path) -> None:
    rows = run(aligned(tmp_path / "a", place))
    assert all(-1 <= r["repa_loss"] <= 1 for r in rows)
    config = aligned(tmp_path / "b", place)
    split = run(replace(config, train=replace(config.train, micro_batch=1)))
    assert [r["repa_loss"] for r in split] == pytest.approx(
        [r["repa_loss"] for r in rows], rel=1e-3
    )


def test_other_features_are_noticed_on_resume(tmp_path: Path, place: Path) -> None:
    config = aligned(tmp_path, place)
    run(config)
    check_folder(config, check(config))
    assert cached(place, "other", "--flip", "--precision", "bf16") == 0
    (place / "features").rename(place / "aside")
    (place / "other").rename(place / "features")
    with pytest.raises(ConfigError, match="holds a run on other data: features was"):
        check_folder(config, check(config))
    (place / "features").rename(place / "other")
    (place / "aside").rename(place / "features")


def test_what_does_not_fit_is_refused(tmp_path: Path, place: Path) -> None:
    for changes, text in (
        ({"channels": 32}, "features of 64 channels for 4 x 4 patches"),
        ({"features": str(place / "nowhere")}, "tread-ssm cache` makes it"),
        ({"features": str(place / "images")}, "features: .* holds no manifest"),
    ):
        with pytest.raises(ConfigError, match=text):
            check(aligned(tmp_path, place, **changes))
    with pytest.raises(ConfigError, match="holds features of images, no latents"):
        LatentData(path=str(place / "features")).open()
    features = place / "features"
    with pytest.raises(ConfigError, match="11 samples whose labels are not those of the 5"):
        open_features(features, np.zeros(5, dtype=np.int64), flip=False)
    assert cached(place, "straight") == 0
    with pytest.raises(ConfigError, match="holds no mirrored images"):
        check(aligned(tmp_path, place, features=str(place / "straight")))


def test_a_size_that_is_no_multiple_of_the_patch_is_refused(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cached(place, "odd", "--size", "60") == 2
    assert "multiple of 16" in capsys.readouterr().err
