"""From a folder of images to a table: the README's four commands as they stand there, made small.

Each command is taken from the README; its paths are exchanged for small real parts, and what is
appended only makes things smaller.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.networks import save_autoencoder
from tread_ssm.data import load_emoji
from tread_ssm.training.logs.metrics import read_metrics

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PER_CLASS, CLASSES, DRAWN = 24, 3, 72
TINY_MODEL = (
    f"model.image_size=16 model.n_classes={CLASSES} model.dim=32 model.depth=9 model.pads=1 "
    "train.steps=6 train.batch_size=8 train.warmup=0 train.precision=fp32 train.threads=1 "
    "sample.every=0 sample.steps=2 eval.every=6 eval.num=16 eval.extractor=emoji eval.metrics=[kid]"
)
SMALLER = {
    "prepare": "--resolution 32 --batch 8 --shard-size 20 --precision fp32",
    "train": TINY_MODEL,
    "sample": f"--num {DRAWN} --batch 24",
    "evaluate": "--extractor emoji --metrics fid,precision,recall,kid",
}


def readme_commands() -> dict[str, str]:
    """The block that begins with `tread-ssm prepare`: name of the command -> command."""
    (block,) = [
        b
        for b in re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
        if re.search("^tread-ssm prepare", b, flags=re.MULTILINE)
    ]
    lines = [line for line in block.splitlines() if line.startswith("tread-ssm ")]
    return {line.split()[1]: line for line in lines}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What the README names -> what stands for it: images, an autoencoder, a reference, places."""
    folder = tmp_path_factory.mktemp("path")
    images, labels, names = load_emoji(32)
    for label in range(CLASSES):
        (folder / "train" / names[label]).mkdir(parents=True)
        for i, k in enumerate(np.flatnonzero(labels == label)[:PER_CLASS]):
            suffix = "png" if i % 2 else "jpg"
            Image.fromarray(images[k]).save(folder / "train" / names[label] / f"{i:03d}.{suffix}")
    save_autoencoder(folder / "vae")
    np.savez(folder / "reference.npz", arr_0=images[labels < CLASSES][:100])
    return {
        "ILSVRC/train": folder / "train",
        "stabilityai/sd-vae-ft-ema": folder / "vae",
        "data/imagenet256": folder / "latents",
        "runs/dim_l": folder / "runs" / "dim_l",
        "VIRTUAL_imagenet256_labeled.npz": folder / "reference.npz",
        "samples.npz": folder / "samples.npz",
    }


def run(name: str, parts: dict[str, Path]) -> str:
    command = shlex.split(readme_commands()[name])[1:]  # behind `tread-ssm`
    command = [str(parts.get(word, word)) for word in command]
    if name == "train":
        latents, folder = parts["data/imagenet256"], parts["runs/dim_l"].parent
        reference = parts["VIRTUAL_imagenet256_labeled.npz"]
        command += [f"data.path={latents}", f"out={folder}", f"eval.reference={reference}"]
    done = subprocess.run(
        [sys.executable, "-m", "tread_ssm", *command, *SMALLER[name].split()],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_readmes_four_commands_lead_from_images_to_a_table(parts: dict[str, Path]) -> None:
    assert list(readme_commands()) == list(SMALLER)
    run("prepare", parts)
    manifest = json.loads((parts["data/imagenet256"] / "manifest.json").read_text())
    assert PER_CLASS * CLASSES in manifest.values()
    run("train", parts)
    assert (parts["runs/dim_l"] / "ema.safetensors").is_file()
    (row,) = read_metrics(parts["runs/dim_l"] / "evals.jsonl")  # decoded by the autoencoder
    assert (row["step"], row["count"]) == (6, 16)
    run("sample", parts)
    with np.load(parts["samples.npz"]) as archive:
        assert archive["arr_0"].shape == (DRAWN, 32, 32, 3)
        assert archive["arr_0"].std() > 0
    table = run("evaluate", parts).splitlines()
    assert table[-3].startswith("| samples | images | FD (emoji) | precision (emoji)")
    fid = float(table[-1].split("|")[3])
    assert fid > 1  # six steps teach nothing
