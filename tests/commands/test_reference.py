"""Reference files from one's own images, and evaluations against a folder of photographs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from accelerate.state import AcceleratorState
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import save_file
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from tests.networks import save_autoencoder
from tread_ssm.data import load_emoji
from tread_ssm.data.images import read_image

SIZE, IMAGES = 16, 150
Main = Callable[..., int]


def main(command: str, *arguments: str | Path) -> int:
    try:
        code: int = import_module(f"tread_ssm.commands.{command}").main([*map(str, arguments)])
        return code
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """photos/, oblong and of several sizes; photos.npz, the same cropped; samples.npz."""
    folder = tmp_path_factory.mktemp("place")
    images = load_emoji(32)[0][np.random.default_rng(0).permutation(1900)]
    for i, image in enumerate(images[:IMAGES]):
        path = folder / "photos" / f"{i % 2}" / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).resize((40 + i % 5, 30 + i % 3)).save(path)
    paths = sorted((folder / "photos").rglob("*.png"))
    np.savez(folder / "photos.npz", arr_0=np.stack([read_image(p, SIZE) for p in paths]))
    samples = [np.asarray(Image.fromarray(i).resize((SIZE, SIZE))) for i in images[-200:]]
    np.savez(folder / "samples.npz", arr_0=np.stack(samples))
    return folder


EMOJI = ("--extractor", "emoji", "--device", "cpu")


def scored(place: Path, reference: Path, out: Path, *arguments: str | Path) -> dict[str, float]:
    line = ["--samples", place / "samples.npz", "--reference", reference, "--out", out]
    assert main("evaluate", *line, *(arguments or EMOJI)) == 0
    values: dict[str, float] = json.loads(out.read_text())["metrics"]
    return values


def test_a_folder_is_cropped_as_training_does_and_made_a_file_of(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = scored(place, place / "photos.npz", tmp_path / "a.json", *EMOJI, "--metrics",
                      "fid,kid,precision,recall")  # fmt: skip
    of_folder = scored(place, place / "photos", tmp_path / "b.json", *EMOJI, "--metrics",
                       "fid,kid,precision,recall")  # fmt: skip
    assert of_folder == pytest.approx(expected, rel=1e-6)

    shutil.copytree(place / "photos", tmp_path / "photos")
    (tmp_path / "photos" / "0" / "cut.png").write_bytes(b"no picture")
    capsys.readouterr()
    of_folder = scored(place, tmp_path / "photos", tmp_path / "b.json", *EMOJI, "--metrics",
                       "fid,kid,precision,recall")  # fmt: skip
    assert of_folder == pytest.approx(expected, rel=1e-6)
    assert "Left out: 1 of 151 files" in capsys.readouterr().err

    made = ["--out", tmp_path / "made.npz", *EMOJI, "--metrics", "fid,kid,precision,recall"]
    assert main("reference", "--data", tmp_path / "photos", "--size", f"{SIZE}", *made) == 0
    said = capsys.readouterr().out
    assert "1 of 151 files" in said and "cut.png" in said
    assert f"emoji features of {IMAGES} images of {SIZE} x {SIZE}, for fid, kid, prec" in said
    of_file = scored(place, tmp_path / "made.npz", tmp_path / "c.json", *made[2:])
    assert of_file == pytest.approx(expected, rel=1e-6)

    assert main("reference", "--data", place / "photos.npz", *made) == 0
    of_array = scored(place, tmp_path / "made.npz", tmp_path / "d.json", *made[2:])
    assert of_array == pytest.approx(expected, rel=1e-6)

    assert main("reference", "--data", tmp_path / "photos", "--size", "24", *made) == 0
    line = ["--samples", place / "samples.npz", "--reference", tmp_path / "made.npz", *made[2:]]
    assert main("evaluate", *line) == 2
    said = capsys.readouterr().err
    assert "made.npz are 24 x 24 pixels, those sampled 16 x 16; compare images of one size" in said


def test_a_run_is_measured_against_its_own_images(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = "model.dim=16 model.depth=3 model.patch=8 routing.routes.0.stop=3 train.steps=2 "
    tiny += "train.batch_size=4 train.threads=1 train.report=false sample.every=0 "
    tiny += "eval.every=2 eval.num=70 eval.extractor=emoji eval.metrics=[fid,kid] eval.steps=1"
    line = ["--config", "folder", f"data.path={place / 'photos'}", f"data.size={SIZE}"]
    assert main("train", *line, f"out={tmp_path}", "name=own", *tiny.split()) == 0
    row = json.loads((tmp_path / "own" / "evals.jsonl").read_text())
    assert row["count"] == 70 and row["fid"] > 0  # against the folder: none other is named

    run, made = tmp_path / "own", tmp_path / "own.npz"
    assert main("reference", "--run", run, "--out", made, *EMOJI, "--metrics", "fid") == 0
    assert f"{IMAGES} images of {SIZE} x {SIZE}" in capsys.readouterr().out
    fid = scored(place, made, tmp_path / "a.json", *EMOJI, "--metrics", "fid")["fid"]
    of_array = scored(place, place / "photos.npz", tmp_path / "b.json", *EMOJI, "--metrics", "fid")
    assert fid == pytest.approx(of_array["fid"], rel=1e-6)


def test_latents_are_decoded(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vae, latents, made = (tmp_path / n for n in ("vae", "latents", "made.npz"))
    save_autoencoder(vae)
    line = ["--data", place / "photos", "--vae", vae, "--resolution", SIZE, "--out", latents]
    assert main("prepare", *line, "--device", "cpu") == 0

    # By hand: the posterior's mean is stored in float16, and decoded.
    autoencoder = AutoencoderKL.from_pretrained(vae).eval()
    x = torch.from_numpy(np.load(place / "photos.npz")["arr_0"]).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        mean = autoencoder.encode(x).latent_dist.mean
        decoded = (autoencoder.decode(mean.half().float()).sample + 1) * 127.5
    pixels = decoded.clamp(0, 255).round().permute(0, 2, 3, 1).to(torch.uint8)
    np.savez(tmp_path / "decoded.npz", arr_0=pixels.numpy())
    fid = ["--metrics", "fid"]
    expected = scored(place, tmp_path / "decoded.npz", tmp_path / "a.json", *EMOJI, *fid)["fid"]
    of_photos = scored(place, place / "photos", tmp_path / "a.json", *EMOJI, *fid)["fid"]
    assert abs(of_photos / expected - 1) > 0.1  # it has not learned to decode

    capsys.readouterr()
    assert main("reference", "--data", latents, "--out", made, *EMOJI, *fid) == 0
    assert f"{IMAGES} images of {SIZE} x {SIZE}, for fid" in capsys.readouterr().out
    of_latents = scored(place, made, tmp_path / "b.json", *EMOJI, *fid)["fid"]
    assert of_latents == pytest.approx(expected, rel=1e-3)

    tiny = "model.dim=32 model.depth=3 model.heads=2 routing.routes=[] train.steps=1 "
    tiny += f"train.batch_size=4 train.threads=1 sample.every=0 model.image_size={SIZE // 2} "
    tiny += "model.n_classes=2 train.precision=fp32 train.report=false"
    line = ["--config", "dit_b", f"data.path={latents}", f"out={tmp_path}", "name=run"]
    assert main("train", *line, *tiny.split()) == 0
    shutil.move(vae, tmp_path / "moved")
    run = ["--run", tmp_path / "run", "--out", made, *EMOJI, *fid]
    assert main("reference", *run) == 2
    assert f"The autoencoder '{vae}' is neither a folder" in capsys.readouterr().err
    made.unlink()
    assert main("reference", *run, "--vae", tmp_path / "moved") == 0
    assert scored(place, made, tmp_path / "b.json", *EMOJI, *fid)["fid"] == of_latents


def test_counts_are_checked_before_anything_is_computed(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = ["--out", tmp_path / "made.npz", *EMOJI]
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted((place / "photos").rglob("*.png"))[:113]:
        shutil.copy(path, few)
    # Its spatial features are 112, so 113 images are enough; one less is not.
    assert main("reference", "--data", few, "--size", "8", *made) == 0
    next(few.iterdir()).unlink()
    capsys.readouterr()
    assert main("reference", "--data", few, "--size", "8", *made) == 2
    shown = capsys.readouterr().err
    assert "sfid needs at least 113 images for the covariance of 112 features; the ref" in shown
    assert "reference:" not in shown  # no progress bar: nothing was read

    np.savez(tmp_path / "few.npz", arr_0=np.load(place / "samples.npz")["arr_0"][:40])
    line = ["--samples", tmp_path / "few.npz", "--reference", place / "photos", *EMOJI]
    assert main("evaluate", *line) == 2
    shown = capsys.readouterr().err
    assert "fid needs at least 65 images" in shown and "sample set has 40" in shown
    assert "photos:" not in shown


def test_other_features(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = timm.create_model("test_vit", num_classes=0, img_size=224)
    save_file(network.state_dict(), tmp_path / "vit.safetensors")
    vit = ["--extractor", "timm:test_vit", "--weights", tmp_path / "vit.safetensors"]
    vit += ["--device", "cpu"]
    assert list(scored(place, place / "photos", tmp_path / "a.json", *vit)) == [
        *("fid", "precision", "recall", "kid")
    ]
    made = tmp_path / "vit.npz"
    assert main("reference", "--data", place / "photos", "--size", SIZE, "--out", made, *vit) == 0
    again = scored(place, made, tmp_path / "b.json", *vit)
    assert again == pytest.approx(json.loads((tmp_path / "a.json").read_text())["metrics"])

    (tmp_path / "colour_features.py").write_text("def mean(x):\n    return x.float().mean((2, 3))")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "colour_features", raising=False)
    own = ["--extractor", "colour_features:mean", "--device", "cpu"]
    assert scored(place, place / "photos", tmp_path / "c.json", *own)["fid"] > 0


def cached(cache: Path, name: str) -> Path:
    """The folder where the Hub's client keeps the files of a model."""
    model, commit = cache / f"models--{name.replace('/', '--')}", "0" * 40
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(commit)
    (model / "snapshots" / commit).mkdir(parents=True)
    return model / "snapshots" / commit


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_dinov2_from_the_hub(place: Path, tmp_path: Path, library: str) -> None:
    """From the Hub's cache, where a download would lie; the same weights as from the disk."""
    torch.manual_seed(0)
    disk = ["--extractor"]
    if library == "timm":
        name = "vit_small_patch14_dinov2.lvd142m"
        network = timm.create_model(name, num_classes=0)
        weights = cached(tmp_path / "cache", f"timm/{name}") / "model.safetensors"
        save_file(network.state_dict(), weights)
        disk += [f"timm:{name}", "--weights", weights]
    else:
        name = "facebook/dinov2-small"
        size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        folder = cached(tmp_path / "cache", name)
        Dinov2Model(Dinov2Config(**size, patch_size=14, image_size=518)).save_pretrained(folder)
        BitImageProcessor(image_mean=[0.485, 0.456, 0.406]).save_pretrained(folder)
        disk += [f"transformers:{folder}"]
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted((place / "photos").rglob("*.png"))[:5]:
        shutil.copy(path, few)
    line = ["--data", few, "--size", SIZE, "--metrics", "kid", "--device", "cpu"]
    assert main("reference", *line, "--out", tmp_path / "disk.npz", *disk) == 0

    line += ["--extractor", f"{library}:{name}", "--out", tmp_path / "hub.npz"]
    done = subprocess.run(
        [sys.executable, "-m", "tread_ssm", "reference", *map(str, line)],
        env=os.environ | {"HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{library}:{name} features of 5 images of {SIZE} x {SIZE}, for kid." in done.stdout
    from_disk, from_hub = (np.load(tmp_path / f"{n}.npz")["features"] for n in ("disk", "hub"))
    assert np.ptp(from_disk, axis=0).max() > 0
    np.testing.assert_allclose(from_hub, from_disk, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--data", "gone", "--out", "a.npz"], "--data: gone is not there"),
        (["--run", ".", "--out", "a.npz"], "--run: config.yaml is not there"),
        (["--data", ".", "--out", "a.txt"], "--out: a.txt does not end in .npz"),
        (["--data", "photos.npz", "--size", "8", "--out", "a.npz"], "--size cuts a folder"),
        (["--data", ".", "--out", "a.npz", "--metrics", "is"], "is compares with no reference"),
        (["--data", ".", "--out", "a.npz", "--extractor", "vgg"], "no features are called 'vgg'"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    text: str,
) -> None:
    monkeypatch.chdir(place)
    assert main("reference", *arguments) == 2
    assert text in capsys.readouterr().err
