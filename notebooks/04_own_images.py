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
# From a folder of images to a routed network, its dense partner, samples, and a page that compares
# both, with a few commands and no file to edit. The images here are letters, drawn with the fonts
# that come with matplotlib. Put the path of your own folder in their place.

# %%
# %matplotlib inline
import io
import os
import shlex
import tempfile
from contextlib import redirect_stderr
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image as Picture
from IPython.display import Markdown, display
from PIL import Image, ImageDraw, ImageFont

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
fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
fonts = [p for p in sorted(fonts.glob("*.ttf")) if p.stem.startswith(("DejaVu", "STIXGeneral"))]
fonts = [p for p in fonts if "Display" not in p.stem]
INKS = ["#1c3c6e", "#962832", "#1e6e50", "#e6a028", "#6e4696", "#282828"]


def letter(name):
    """A letter on white, 96 x 72 pixels."""
    image = Image.new("RGB", (96, 72), "white")
    font = ImageFont.truetype(str(rng.choice(fonts)), int(rng.integers(68, 78)))
    place = (48 + rng.uniform(-3, 3), 36 + rng.uniform(-2, 2))
    ImageDraw.Draw(image).text(place, name, font=font, anchor="mm", fill=str(rng.choice(INKS)))
    return image


folder = Path("letters")
for name in "ABCD":
    (folder / name).mkdir(parents=True, exist_ok=True)
    for i in range(20 if FAST else 125):
        letter(name).save(folder / name / f"{i:03d}.png")
(folder / "notes.txt").write_text("no image")

_, axes = plt.subplots(2, 10, figsize=(10, 1.7))
for axis, path in zip(axes.flat, sorted(folder.rglob("*.png"))[:: 4 if FAST else 25], strict=False):
    axis.imshow(Image.open(path))
    axis.axis("off")

# %% [markdown]
# ## Two runs
#
# The configuration `folder` is a small routed DiM. Classes come from the images, and the notes say
# which. Here the images are scaled to 16 x 16 pixels, 16 tokens, so that a run takes a minute or
# two on one core. For a result, leave out `data.size` and `train.steps`: up to 64 x 64 pixels and
# 4,000 steps. Letters must not be mirrored: `data.flip=false`. The second run differs in its routes
# alone.
#
# `eval.every` measures the distance of samples to the images as training goes on. It needs
# features. Those of `emoji` come with the package, take up to 32 pixels, and tell noise from
# letters, but little more. With the network at hand, `timm:vit_small_patch14_dinov2.lvd142m` takes
# DINOv2's.

# %%
options = "data.path=letters data.size=16 data.flip=false train.threads=1 "
if FAST:
    options += "model.dim=16 train.steps=6 train.save_every=3 sample.every=3 sample.steps=2 "
    options += "train.validate_every=3 eval.every=3 eval.num=70 eval.extractor=emoji"
else:
    options += "train.steps=1000 sample.every=250 train.validate_every=250 "
    options += "eval.every=250 eval.num=400 eval.extractor=emoji"
tread_ssm(f"train --config folder name=letters {options}")

# %%
tread_ssm(f"train --config folder name=letters_dense routing.routes=[] {options}")

# %% [markdown]
# Each run has left its samples, its weights and a report, `runs/letters/report.html`. Here are the
# samples of the routed run after the first quarter of its steps and at the end, and, beside some of
# them, the training images that are nearest. A sample that equals its neighbour was learned by
# heart.

# %%
grids = sorted(Path("runs/letters/samples").glob("*.png"))
display(Picture(grids[0]), Picture(grids[-1]), Picture("runs/letters/report/neighbours.png"))

# %% [markdown]
# ## The comparison
#
# `runs/comparison/comparison.html` is one file that holds its pictures, with a slider over the
# stages of training. Here are its table, its curves, and samples of both runs from the same noise.

# %%
tread_ssm("compare runs/letters runs/letters_dense")
text = Path("runs/comparison/comparison.md").read_text()
display(Markdown("\n".join(line for line in text.splitlines() if line.startswith("|"))))
display(Picture("runs/comparison/curves.png"), Picture("runs/comparison/samples.png"))

# %% [markdown]
# One seed says little about which of the two is better. Repeat both with `seed=1` and `seed=2`,
# give each a name of its own, and compare all six. The seconds are those of a machine that was
# shared with other work.
#
# ## Images, and their distance to yours
#
# `sample` draws as many images as you like, and `evaluate` measures them against a reference file,
# which can be used again for every run.

# %%
measured = "--metrics fid,kid --extractor emoji --device cpu"
number = 70 if FAST else 500
tread_ssm(f"reference --run runs/letters --out letters.npz {measured}")
tread_ssm(f"sample --run runs/letters --num {number} --npz samples.npz --device cpu")
tread_ssm(f"evaluate --samples samples.npz --reference letters.npz {measured}")

# %% [markdown]
# From Python, a run samples in two lines:

# %%
model, run = from_pretrained("runs/letters")
images = sample_images(model, run, "B", n=8, guidance=3)
row = np.concatenate([np.asarray(image) for image in images], axis=1)
Image.fromarray(row).resize((row.shape[1] * 6, row.shape[0] * 6), Image.Resampling.NEAREST)
