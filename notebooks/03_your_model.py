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
# # Routes for your own model
#
# Routing needs to know nothing about a network but its stack of blocks. Here a Vision Transformer
# of [timm](https://github.com/huggingface/pytorch-image-models), which nobody wrote with routes
# in mind, gets one; then the speed is measured.

# %%
# %matplotlib inline
import os
import statistics

import timm
import torch

from tread_ssm import Layout, Route, RoutePlan, run_blocks
from tread_ssm.plots import curves
from tread_ssm.plots import tokens as show
from tread_ssm.routing.cost import plan_cost
from tread_ssm.training.timing import median_of_pairs, take_turns

FAST = os.environ.get("TREAD_SSM_FAST") == "1"
side, depth, batch, turns = (32, 6, 1, 2) if FAST else (64, 12, 2, 15)
torch.manual_seed(0)
vit = timm.create_model("vit_tiny_patch16_224", img_size=side, patch_size=4, depth=depth)

# %% [markdown]
# ## The change
#
# `run_blocks` takes the place of the loop over the blocks: that is the line with `run_blocks`, and
# the rest of `forward` is timm's own. A block is called as `block(x, cond, layout)`; a ViT's blocks
# want `x` alone. The class token is a *prefix*: it has no place in the image and is never dropped.


# %%
class RoutedViT(torch.nn.Module):
    def __init__(self, vit):
        super().__init__()
        self.vit, self.blocks, self.grid = vit, vit.blocks, vit.patch_embed.grid_size
        self.layout = Layout(self.grid, n_prefix=vit.num_prefix_tokens)

    def forward(self, images, *, routing=()):
        x = self.vit.norm_pre(self.vit._pos_embed(self.vit.patch_embed(images)))
        blocks = [lambda x, cond, layout, block=block: block(x) for block in self.blocks]
        x = run_blocks(blocks, x, None, self.layout, routing)
        return self.vit.forward_head(self.vit.norm(x))


model = RoutedViT(vit)
images = torch.randn(batch, 3, side, side)
print("without routes, bit for bit timm's own:", torch.equal(model(images), vit(images)))

# %% [markdown]
# ## A route
#
# It is drawn anew for each training step and passed in; `()` at inference is the dense network.

# %%
plan = RoutePlan((Route(start=2, stop=-2, drop=0.5),), depth)
draw = plan.draw(batch, model.grid)
loss = model(images, routing=draw).square().mean()
loss.backward()
show.show_stream(draw, depth, model.grid, n_prefix=1)

# %% [markdown]
# ## What it saves
#
# A training step (forward, backward, AdamW) dense and with two routes of different size, all sides
# taking turns so that whatever else the machine does hits them alike.


# %%
def training_step(plan):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step():
        model(images, routing=plan.draw(batch, model.grid)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


plans = {
    "dense": plan.with_drop(0),
    "drop=0.5": plan,
    "drop=0.75": plan.with_drop(0.75),
}
seconds = take_turns({name: training_step(p) for name, p in plans.items()}, turns)
curves.plot_turns(seconds)

# %% [markdown]
# Beside the measurement, what counting FLOPs predicts before any training:

# %%
for name in list(plans)[1:]:
    measured = median_of_pairs(seconds[name], seconds["dense"])
    predicted = plan_cost(model, plans[name], (images,)).step_share
    print(f"{name}: {measured:.2f} of the dense step measured, {predicted:.2f} predicted")
median, threads = statistics.median(seconds["dense"]) * 1e3, torch.get_num_threads()
print(f"{median:.0f} ms a dense step: {batch} images, {threads} thread(s)")
