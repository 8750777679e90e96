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
# # DiM and DiT, dense and routed
#
# The comparison that this package exists for: the state-space backbone (DiM) and the Transformer
# (DiT), each with and without a route, on the same data, at equal steps, equal FLOPs and equal
# time, over several seeds, with what did *not* work.
#
# **In short**, for 64 tokens, 2,000 steps and networks of 0.3 to 0.4 million weights, mean and
# standard deviation over three seeds (the 95 % interval of a mean is 2.5 times as wide):
#
# - At equal *steps* routing costs quality: the held-out loss rises by 2.7 ± 1.0 % (DiM) and
#   3.9 ± 1.0 % (DiT).
# - At equal *FLOPs* the routed DiM seems ahead, but the interval holds zero: loss 2.8 ± 1.2 %
#   lower, FD-emoji 9 ± 13 % lower (two seeds of three). At equal *time* 2.1 ± 1.2 % and 6 ± 13 %.
#   The routed DiT is about even in loss (-0.7 ± 1.1 %) and behind in FD-emoji (8 ± 8 % higher).
# - DiT beats DiM here, dense or routed, at equal FLOPs and at equal time.
#
# So at this size a route is at most a small gain for DiM, and none that shows for DiT. The
# published gains are of another order and were measured elsewhere: ImageNet-256, 256 tokens,
# 400,000 steps, *equal steps*, unguided FID ([TREAD](https://arxiv.org/abs/2501.04765)):
#
# | published (TREAD) | dense | routed | change |
# |---|---|---|---|
# | DiT-S, 33M | 68.40 | 47.04 | -31 % |
# | DiT-B, 130M | 43.47 | 21.34 | -51 % |
# | DiT-L, 458M | 23.33 | 9.10 | -61 % |
# | DiT-XL, 675M | 19.47 | 7.38 | -62 % |
# | SiT-S, 33M | 57.60 | 38.08 | -34 % |
# | SiT-XL, 675M | 17.20 | 4.89 | -72 % |
# | Mamba, 111M | 69.39 | 61.17 | -12 % |
# | RWKV, 210M | 59.84 | 53.79 | -10 % |
#
# There the gain grows with the network, and models with a recurrence gain least. What happens here
# says nothing about those sizes.
#
# ## Parameters
#
# By default the recorded runs in `benchmarks/results/study.jsonl` are shown, one line a run; any of
# them can be made again by `python benchmarks/study --only ARM --seeds SEED --steps STEPS`.
# `FAST = True` makes toy runs first, which only prove that the code runs.

# %%
# %matplotlib inline
import os
import subprocess
import sys
from pathlib import Path

from IPython.display import Markdown

import tread_ssm
from tread_ssm.data import load_emoji

FAST = os.environ.get("TREAD_SSM_FAST") == "1"
ROOT = Path(tread_ssm.__file__).parents[1]
sys.path.append(str(ROOT))
from benchmarks.study import curves, pace, plots, results, tables  # noqa: E402

MAIN = ["t64-dim-dense", "t64-dim-50", "t64-dit-dense", "t64-dit-50"]
TAIL = ["t64-dim-50-tail", "t64-dit-50-tail"]
SIDE = ["t64-dim-75", "t64-dim-last", "t64-dim-cells", "t64-dim-rows", "t64-dit-75"]

path = results.RESULTS
if FAST:
    path = Path("runs") / "study.jsonl"
    script = [sys.executable, ROOT / "benchmarks" / "study", "--toy", "--workers", "1"]
    command = [*script, "--results", path, "--seeds", "0", "--only", *MAIN, *TAIL, *SIDE]
    subprocess.run(command, check=True, capture_output=True)
rows = results.read(path)
arms = curves.recorded(rows, pace.recorded())

# %% [markdown]
# ## The set-up
#
# - **Data**: the package's emoji at 16 x 16 pixels, patches of 2, so 64 tokens. 512 images are held
#   out; the other 1,394 are trained on.
# - **Networks**: 7 blocks each; widths are chosen so that a dense step of 16 images takes the same
#   FLOPs (DiM: 64 channels and no padding tokens, DiT: 56 channels). The route spans blocks 2 to 5
#   and drops half of the tokens.
# - **Training**: as `configs/quickstart.yaml` (flow matching, AdamW), but with a constant learning
#   rate after 100 steps of warm-up and averaged weights (decay 0.995), so that every checkpoint is
#   a fair end of a shorter run. All arms of a seed see the same batches and noise.
# - **Held-out loss**: the dense network with averaged weights, on one fixed (image, noise, t)
#   for each of the 512 images; the same for every arm, seed and step.
# - **FD-emoji**: 512 unguided samples with the labels of the held-out images, 10 steps of
#   DPM-Solver++, against the training images. Noise has 91.6, the held-out images have 0.5.
# - **Time**: steps times an arm's time of a step, measured once with one thread.
#
# The learning rate was tuned on the dense networks, equally for both, and taken over for the routed
# ones. The losing settings:

# %%
Markdown(tables.rates_table(rows, ["t64-dim-dense", "t64-dit-dense"], 400))

# %%
Markdown(tables.cost_table(arms, MAIN + TAIL + SIDE))

# %% [markdown]
# ## Loss and FD-emoji over steps, FLOPs and seconds
#
# Colour is the backbone; dashed with open dots is dense, solid is routed. A star marks a routed run
# whose last 250 steps went without routes. Bands reach from the best to the worst seed.

# %%
plots.plot_curves(arms, MAIN + TAIL)

# %% [markdown]
# ## What a route changes, at equal cost
#
# Each routed arm against its dense partner, seed by seed, where the cheaper one of the two ends.

# %%
PAIRS = [("t64-dim-dense", "t64-dim-50"), ("t64-dit-dense", "t64-dit-50")]
TAILS = [(arms[n].arm.partner, n) for n in TAIL]
plots.plot_changes(arms, PAIRS + TAILS)

# %%
ACROSS = [("t64-dit-dense", "t64-dim-dense"), ("t64-dit-50", "t64-dim-50")]
Markdown(tables.matched_table(arms, [*PAIRS, *TAILS, *ACROSS], "loss"))

# %%
Markdown(tables.matched_table(arms, [*PAIRS, *TAILS, *ACROSS], "distance"))

# %% [markdown]
# ## Samples
#
# Seed 0, guidance 2, one column a class, the same noise everywhere. Dense and routed are hard to
# tell apart by eye.

# %%
plots.plot_samples(arms, MAIN, results.PICTURES, load_emoji(16)[2])

# %% [markdown]
# ## Do not judge by the training loss
#
# A routed network is trained with tokens missing, so the loss that training logs is that of a
# harder task (left). What counts is the dense network that one samples from (right).

# %%
plots.plot_training_loss(arms, MAIN)

# %% [markdown]
# ## What did not work, and what else was tried
#
# Dots are seeds; arms with one dot were run once, with seed 0, and say little.
#
# - **A dense tail** (the last 250 of 2,000 steps without routes) gained nothing here, over three
#   seeds and for both backbones: loss 0.258 against 0.259 for DiM, FD-emoji rather worse. The
#   learning rate was constant; with one that decays the tail may do more.
# - **A route that ends in the last block** is the worst arm of all, cheap as it is: FD-emoji 8.1
#   where DiM's other arms reach about 6. TREAD found the same.
# - **Dropping 0.75** costs little beyond dropping half (DiM: loss 0.2645 against 0.2616 with the
#   same seed) and is cheaper, so it is ahead at equal FLOPs in the table below; one seed only.
# - **2 x 2 cells and whole rows** are no better than random tokens: the differences are smaller
#   than those between seeds.
# - **DiT** gains nothing that three seeds could show.

# %%
plots.plot_ends(arms, MAIN + TAIL + SIDE)

# %%
SIDES = [(arms[n].arm.partner, n) for n in SIDE]
Markdown(tables.matched_table(arms, SIDES, "loss"))

# %%
Markdown(tables.matched_table(arms, SIDES, "distance"))

# %% [markdown]
# ## 256 tokens
#
# DiM at 32 x 32 pixels, 1,200 steps. ± is half the 95 % interval over the seeds. The page
# "Does it pay?" of the documentation goes on from here.

# %%
LARGER = [n for n in ("dim-50", "dim-75") if n in arms]
Markdown(tables.answer_table(arms, LARGER))
