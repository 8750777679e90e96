"""The command line: a published .pt to a folder that can be sampled, and back."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.models.test_convert_dim import layout as dim_layout
from tread_ssm.commands import convert
from tread_ssm.diffusion import EDM, Flow, NoisePrediction
from tread_ssm.files import write_checksums
from tread_ssm.models import DiMConfig, DiT, DiTConfig
from tread_ssm.models.convert import to_published
from tread_ssm.pretrained import export, load_export
from tread_ssm.sampling.generate import generate_all
from tread_ssm.sampling.image_grid import to_uint8

ROOT = Path(__file__).parents[2]
CONFIG = DiTConfig(image_size=8, channels=4, n_classes=3, dim=32, depth=2, heads=2, out_channels=8)


def command(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "tread_ssm", name, *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True)


def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    state = {n: 0.1 * torch.randn_like(t) for n, t in DiT(CONFIG).state_dict().items()}
    return to_published(CONFIG, state)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Converted from a checkpoint as DiT's own training writes it."""
    root = tmp_path_factory.mktemp("published")
    ema = weights()
    model = {n: torch.zeros_like(t) for n, t in ema.items()}
    whole = {"model": model, "ema": ema, "opt": {}, "args": argparse.Namespace(lr=1e-4)}
    torch.save(whole, root / "0400000.pt")
    done = command(
        "convert",
        *("--from", "dit", "--weights", root / "0400000.pt", "--out", root / "run"),
        *("--heads", 2, "--step", 400000),
    )
    assert done.returncode == 0, done.stderr
    assert "2 blocks, 32 channels, 2 heads, patch 2; 8 x 8 x 4, 3 classes" in done.stdout
    return root / "run"


def test_the_folder_tells_all_that_sampling_needs(folder: Path) -> None:
    run = load_export(folder)[1]
    assert run.model == CONFIG and run.step == 400000 and run.class_names == ("0", "1", "2")
    assert json.loads((folder / "config.json").read_text())["objective"] == {
        "kind": "noise",
        "n_steps": 1000,
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "betas": "linear",
        "first": 0,
    }
    ours = load_file(folder / "ema.safetensors")
    assert torch.equal(ours["blocks.1.attention.qkv.weight"], weights()["blocks.1.attn.qkv.weight"])


def test_it_is_fine_tuned_on_images_of_ones_own(folder: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "own.npz", images=images, labels=np.arange(6) % 3)
    done = command(
        "train",
        *("--config", "quickstart", f"out={tmp_path}", "name=tuned", "routing.routes=[]"),
        f"data={{kind: array, path: {tmp_path / 'own.npz'}}}",
        "model={kind: dit, image_size: 8, channels: 3, n_classes: 3, dim: 32, depth: 2, heads: 2}",
        *(f"train.init_from={folder}", "train.steps=1", "train.batch_size=2", "train.threads=1"),
        *("train.warmup=0", "train.optimizer.lr=1e-12", "train.report=false", "sample.every=0"),
    )
    assert done.returncode == 0, done.stderr
    assert "left out: " in done.stderr and "4 x 2 x 2 there" in done.stderr
    ours = load_file(tmp_path / "tuned" / "ema.safetensors")["blocks.1.attention.qkv.weight"]
    torch.testing.assert_close(ours, weights()["blocks.1.attn.qkv.weight"], rtol=0, atol=1e-6)


def test_samples_are_drawn_from_it(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "grid.png"
    arguments = ("--run", folder, "--steps", 2, "--per-class", 1, "--device", "cpu", "--out", out)
    # No network here: without the autoencoder latents are shown as they are.
    done = command("sample", *arguments, "--vae", tmp_path / "none")
    assert done.returncode == 2 and "autoencoder" in done.stderr
    config = json.loads((folder / "config.json").read_text())
    config["values"]["vae"] = None
    plain = tmp_path / "run"
    plain.mkdir()
    (plain / "config.json").write_text(json.dumps(config))
    (plain / "ema.safetensors").symlink_to(folder / "ema.safetensors")
    write_checksums(plain, ("config.json", "ema.safetensors"))
    done = command("sample", *arguments[:1], plain, *arguments[2:])
    assert done.returncode == 0, done.stderr
    assert out.is_file()
    assert "step 400000" in done.stdout and "guidance 1.5" in done.stdout


def test_back_is_exact_and_overwrites_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "back.pt"
    arguments = ["--to", "dit", "--run", str(folder), "--out", str(out)]
    assert convert.main(arguments) == 0
    back, expected = torch.load(out, weights_only=True), weights()
    assert back.keys() == expected.keys()
    assert all(torch.equal(back[n], t) for n, t in expected.items())
    assert convert.main(arguments) == 2
    assert "is there already" in capsys.readouterr().err

    # The bare state dict, as published.
    new = ["--from", "dit", "--weights", str(out), "--out", str(tmp_path / "new")]
    assert convert.main(new) == 2  # of no published width
    assert "pass heads" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert convert.main([*new, "--heads", "2"]) == 0
    ours = load_file(folder / "ema.safetensors")
    again = load_file(tmp_path / "new" / "ema.safetensors")
    assert all(torch.equal(again[n], t) for n, t in ours.items())
    assert convert.main([*new, "--heads", "2"]) == 2
    assert "holds weights already" in capsys.readouterr().err


def sit_checkpoint(path: Path, **options: object) -> Path:
    args = argparse.Namespace(**{"path_type": "Linear", "prediction": "velocity", **options})
    torch.save({"ema": weights(), "model": weights(), "opt": {}, "args": args}, path)
    return path


def new(source: str, weights: Path, out: Path) -> list[str]:
    return ["--from", source, "--weights", str(weights), "--out", str(out), "--heads", "2"]


def test_a_sit_becomes_a_flow_and_never_a_noise_predictor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = sit_checkpoint(tmp_path / "0400000.pt")
    assert convert.main(new("dit", file, tmp_path / "a")) == 2
    assert "by the training options in it, it is SiT's; use --from sit" in (capsys.readouterr().err)
    assert convert.main(new("sit", file, tmp_path / "a")) == 0
    assert "SiT of 2 blocks" in capsys.readouterr().out
    run = load_export(tmp_path / "a")[1]
    assert run.objective == Flow(sit=True) and run.model == CONFIG

    torch.save(weights(), tmp_path / "SiT-XL-2-256.pt")
    assert convert.main(new("dit", tmp_path / "SiT-XL-2-256.pt", tmp_path / "b")) == 2
    assert "by its name, it is SiT's" in capsys.readouterr().err
    torch.save(weights(), tmp_path / "DiT-XL-2-256x256.pt")
    assert convert.main(new("sit", tmp_path / "DiT-XL-2-256x256.pt", tmp_path / "b")) == 2
    assert "by its name, it is DiT's; use --from dit" in capsys.readouterr().err
    odd = sit_checkpoint(tmp_path / "odd.pt", path_type="GVP")
    assert convert.main(new("sit", odd, tmp_path / "b")) == 2
    assert "trained with path_type 'GVP'; only 'Linear' is known" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_treads_checkpoint_is_an_edm_and_goes_by_its_prefix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ema = {f"model.{n}": t for n, t in weights().items()}
    model = {n: torch.zeros_like(t) for n, t in ema.items()}
    state = {"model_state_dict": model, "ema_state_dict": ema, "optimizer_state_dict": {}}
    torch.save(state | {"step": 400000}, tmp_path / "latest.pt")
    for wrong in ("dit", "sit"):
        assert convert.main(new(wrong, tmp_path / "latest.pt", tmp_path / "a")) == 2
        assert "by its names of weights, it is TREAD's; use --from tread" in capsys.readouterr().err
    assert convert.main(new("tread", tmp_path / "latest.pt", tmp_path / "a")) == 0
    assert "TREAD of 2 blocks" in capsys.readouterr().out
    network, run = load_export(tmp_path / "a")
    assert run.objective == EDM() and run.model == CONFIG and run.step == 400000
    assert torch.equal(network.blocks[1].mlp.fc1.weight, weights()["blocks.1.mlp.fc1.weight"])

    torch.save(weights(), tmp_path / "DiT-XL-2-256x256.pt")
    assert convert.main(new("tread", tmp_path / "DiT-XL-2-256x256.pt", tmp_path / "b")) == 2
    assert "do not begin with 'model.'" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_dims_weights_know_their_times_and_sample(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shapes = dim_layout(dim=32, depth=3, side=4, classes=3)
    torch.save({n: 0.1 * torch.randn(s) for n, s in shapes.items()}, tmp_path / "nnet_ema.pth")
    command = ["--weights", str(tmp_path / "nnet_ema.pth"), "--out", str(tmp_path / "a")]
    assert convert.main(["--from", "dit", *command]) == 2
    assert "by its names of weights, it is DiM's; use --from dim" in capsys.readouterr().err
    assert convert.main(["--from", "dim", *command, "--heads", "2"]) == 2
    assert "a DiM has no attention heads" in capsys.readouterr().err
    assert convert.main(["--from", "dim", *command, "--step", "425000"]) == 0
    assert "DiM of 3 blocks, 32 channels, patch 2; 8 x 8 x 4, 3" in capsys.readouterr().out
    network, run = load_export(tmp_path / "a")
    assert run.objective == NoisePrediction(first=1) and run.step == 425000
    labels = torch.tensor([0, 2])
    recipe = replace(run.sample.recipe, steps=3)
    images = generate_all(
        network, run, recipe, labels, seed=0, decode=lambda x: to_uint8(x, run.values)
    )
    assert images.shape == (2, 8, 8, 3)


def test_what_is_no_dit_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.pt"
    new = ["--from", "dit", "--weights", str(bad), "--out", str(tmp_path / "new")]
    for text in ("no weights", "", "elf"):
        bad.write_text(text)
        assert convert.main(new) == 2
        assert "no .pt file of tensors" in capsys.readouterr().err
    torch.save({"epoch": 3}, bad)
    assert convert.main(new) == 2
    assert "it holds no state dict" in capsys.readouterr().err
    config = DiMConfig(image_size=8, channels=4, n_classes=3, dim=32, depth=3, pads=1)
    description = replace(load_export(folder)[1], model=config)
    (tmp_path / "dim").mkdir()
    export(tmp_path / "dim", config.build().state_dict(), description)
    dim = ["--to", "dit", "--run", str(tmp_path / "dim"), "--out", str(tmp_path / "x.pt")]
    assert convert.main(dim) == 2
    assert "holds a dim; this layout is DiT's alone" in capsys.readouterr().err


def test_a_thousand_classes_are_named_apart_as_imagenet_does() -> None:
    names = convert._class_names(1000)
    assert len(set(names)) == 1000
    assert (names[0], names[207], names[134]) == ("tench", "golden retriever", "crane 134")
