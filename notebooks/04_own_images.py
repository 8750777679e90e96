# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own images
#
# From a folder of images to a routed network, its dense partner, a page that compares them,
# samples, and a distance to the images, with a few commands and no file to edit. The images here
# are shapes that this notebook draws. Put the path of your own folder in their place.

# %%
# %matplotlib inline
import io
import os
import shlex
import tempfile
from contextlib import redirect_stderr
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image as Picture
from IPython.display import Markdown, display
from PIL import Image, ImageDraw

from tread_ssm import from_pretrained, sample_images
from tread_ssm.__main__ import main

FAST = os.environ.get("TREAD_SSM_FAST") == "1"
os.chdir(tempfile.mkdtemp())  # without this line, everything goes to the folder you are in


def tread_ssm(line):
    """What a terminal does with the line; of its messages the notes are shown."""
    print("$ tread-ssm", line)
    with redirect_stderr(io.StringIO()) as messages:
        code = main(shlex.split(line))
    said = messages.getvalue().splitlines()
    print(*(text for text in said if text.startswith(("note:", "error:"))), sep="\n")
    assert code == 0, said


# %% [markdown]
# ## A folder
#
# One sub-folder for each class, or images alone. Sizes may differ, and files that are not images do
# no harm.

# %%
rng = np.random.default_rng(0)


def corners(n, inner, turn):
    """Points of a polygon, every second one at the distance `inner` from the middle."""
    angle = turn + 2 * np.pi * np.arange(n) / n
    reach = np.where(np.arange(n) % 2 == 0, 1, inner)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1) * reach[:, None]


SHAPES = {"disc": (40, 1), "triangle": (3, 1), "square": (4, 1), "star": (10, 0.45)}


def photograph(name):
    """A shape on a darker ground, 48 x 36 pixels."""
    ground, paint = rng.integers(0, 110, 3), rng.integers(130, 256, 3)
    canvas = Image.new("RGB", (192, 144), tuple(map(int, ground)))
    n, inner = SHAPES[name]
    turn = 0 if name == "disc" else rng.uniform(-0.3, 0.3) - np.pi / 2
    turn += np.pi / 4 if name == "square" else 0
    middle = np.array((96, 72)) + rng.uniform(-14, 14, 2)
    points = middle + rng.uniform(36, 54) * corners(n if n % 2 == 0 else 2 * n, inner, turn)
    points = points if n % 2 == 0 else points[::2]
    ImageDraw.Draw(canvas).polygon([tuple(p) for p in points], fill=tuple(map(int, paint)))
    return canvas.resize((48, 36), Image.Resampling.LANCZOS)


folder = Path("photos")
for name in SHAPES:
    (folder / name).mkdir(parents=True, exist_ok=True)
    for i in range(20 if FAST else 125):
        photograph(name).save(folder / name / f"{i:03d}.png")
(folder / "notes.txt").write_text("no image")

_, axes = plt.subplots(2, 8, figsize=(10, 2.4))
for axis, path in zip(axes.flat, sorted(folder.rglob("*.png"))[:: 5 if FAST else 31], strict=False):
    axis.imshow(Image.open(path))
    axis.set_title(path.parent.name, fontsize=8)
    axis.axis("off")

# %% [markdown]
# ## Two runs
#
# The configuration `folder` is a small routed DiM. Sizes and classes come from the images, and the
# notes say which. The second run differs in its routes alone.

# %%
size = "model.dim=16 model.depth=3 routing.routes.0.start=1 routing.routes.0.stop=2 train.steps=6 "
size += "train.save_every=3 sample.every=3 sample.steps=2"
options = f"data.size=24 train.threads=1 {size if FAST else 'train.steps=700'}"
tread_ssm(f"train --config folder data.path=photos name=shapes {options}")

# %%
tread_ssm(
    f"train --config folder data.path=photos name=shapes_dense routing.routes=[] "
    f"{options.replace('routing.routes.0.start=1 routing.routes.0.stop=2 ', '')}"
)

# %% [markdown]
# Each run has left a report, `runs/shapes/report.html`. It shows samples (on the left) beside the
# training images that are nearest to them.

# %%
display(Picture("runs/shapes/report/neighbours.png"))

# %% [markdown]
# ## The comparison
#
# `runs/comparison/comparison.html` is one file that holds its pictures, with a slider over the
# stages of training. Here are its table, its curves, and samples of both runs from the same noise.

# %%
tread_ssm("compare runs/shapes runs/shapes_dense")
text = Path("runs/comparison/comparison.md").read_text()
display(Markdown("\n".join(line for line in text.splitlines() if line.startswith("|"))))
display(Picture("runs/comparison/curves.png"), Picture("runs/comparison/samples.png"))

# %% [markdown]
# One seed says little about which of the two is better. Repeat both with `seed=1` and `seed=2`,
# give each a name of its own, and compare all six. The seconds here are those of a busy machine.
# After so few steps the samples have colours and blobs, and hardly a shape; the configuration's own
# `train.steps` are 4,000.
#
# ## Samples, and a distance to the images
#
# Features of any function serve. This one takes the mean colour of each place on a grid of 3 x 3: a
# crude measure, but it needs no download. With a network at hand, write
# `--extractor timm:vit_small_patch14_dinov2.lvd142m`, which takes DINOv2's features.

# %%
Path("own_features.py").write_text(
    """import torch.nn.functional as F

def colours(images):  # uint8 (B, 3, H, W) -> (B, 27)
    return F.adaptive_avg_pool2d(images.float() / 255, 3).flatten(1)
"""
)
measured = "--metrics fid,kid --extractor own_features:colours --device cpu"
tread_ssm(f"reference --run runs/shapes --out shapes.npz {measured}")
for name in ("shapes", "shapes_dense"):
    number = 40 if FAST else 400
    tread_ssm(f"sample --run runs/{name} --num {number} --npz {name}_samples.npz --device cpu")
    tread_ssm(f"evaluate --samples {name}_samples.npz --reference shapes.npz {measured}")

# %% [markdown]
# From Python, a run samples in two lines:

# %%
model, run = from_pretrained("runs/shapes")
stars = sample_images(model, run, "star", n=8, guidance=2)
row = np.concatenate([np.asarray(star) for star in stars], axis=1)
Image.fromarray(row).resize((row.shape[1] * 4, row.shape[0] * 4), Image.Resampling.NEAREST)
