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
# A network that nobody wrote with routes in mind gets them: first a Vision Transformer of
# [timm](https://github.com/huggingface/pytorch-image-models), then a diffusion Transformer of
# [diffusers](https://github.com/huggingface/diffusers). Nothing in either is edited.

# %%
# %matplotlib inline
import os
import statistics

import timm
import torch
from diffusers import DiTTransformer2DModel

from tread_ssm import Route, RoutePlan, attach
from tread_ssm.plots import tokens as show
from tread_ssm.plots.turns import plot_turns
from tread_ssm.routing.cost import plan_cost
from tread_ssm.timing import median_of_pairs, take_turns

FAST = os.environ.get("TREAD_SSM_FAST") == "1"
side, depth, batch, turns = (32, 6, 1, 2) if FAST else (64, 12, 2, 15)
torch.manual_seed(0)
vit = timm.create_model("vit_tiny_patch16_224", img_size=side, patch_size=4, depth=depth)
images, grid = torch.randn(batch, 3, side, side), vit.patch_embed.grid_size
dense = vit(images)

# %% [markdown]
# ## Five lines
#
# `attach` hangs hooks on the blocks. The class token is a *prefix*: it has no place in the image
# and is never dropped. The draw is made anew for each training step; outside `using` the model is
# bit for bit timm's own, and so it is after `detach()`.

# %%
plan = RoutePlan((Route(start=2, stop=-2, drop=0.5),), depth)
routing = attach(vit.blocks, n_prefix=vit.num_prefix_tokens)

draw = plan.draw(batch, grid)
with routing.using(draw):
    loss = vit(images).square().mean()
loss.backward()

print("outside `using`, bit for bit timm's own:", torch.equal(vit(images), dense))
show.plot_stream(draw, depth, grid, n_prefix=1)

# %% [markdown]
# ## What it saves
#
# A training step (forward, backward, AdamW) dense and with two routes of different size, all sides
# taking turns so that whatever else the machine does hits them alike.


# %%
def training_step(plan):
    optimizer = torch.optim.AdamW(vit.parameters(), lr=1e-4)

    def step():
        with routing.using(plan.draw(batch, grid)):
            vit(images).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


plans = {
    "dense": plan.with_drop(0),
    "drop=0.5": plan,
    "drop=0.75": plan.with_drop(0.75),
}
seconds = take_turns({name: training_step(p) for name, p in plans.items()}, turns)
plot_turns(seconds)

# %% [markdown]
# Beside the measurement, what counting FLOPs predicts before any training:


# %%
class Counted(torch.nn.Module):
    """What `plan_cost` asks for: the blocks, the grid, and a draw as an argument."""

    def __init__(self):
        super().__init__()
        self.blocks, self.grid = vit.blocks, grid

    def forward(self, images, *, routing):
        with attached.using(routing):
            return vit(images)


attached = routing
for name in list(plans)[1:]:
    measured = median_of_pairs(seconds[name], seconds["dense"])
    predicted = plan_cost(Counted(), plans[name], (images,)).step_share
    print(f"{name}: {measured:.2f} of the dense step measured, {predicted:.2f} predicted")
median, threads = statistics.median(seconds["dense"]) * 1e3, torch.get_num_threads()
print(f"{median:.0f} ms a dense step: {batch} images, {threads} thread(s)")

# %% [markdown]
# ## A diffusion Transformer of diffusers
#
# A table of presets knows what the blocks of well-known models take: the model itself is given,
# and `drop` is enough for routes that draw by themselves, in training alone. Blocks of other models
# are described, as above; what they get for each token besides the stream (rotary tables, masks) is
# *declared*, and a forgotten declaration is refused in a sentence:
#
# - `attach(model, rows=(Blocks("layers", per_token={"rope": PerToken("n d -> b 1 n d")}),))`: a
#   rotary table for the whole batch, in blocks that also take one for each sample.
# - Where blocks take one table for the whole batch (Flux), one draw does: `plan.draw(1, grid)`.
#
# `routing.verify(lambda: model(...))` checks it all against the dense model.

# %%
dit = DiTTransformer2DModel(
    num_attention_heads=4, attention_head_dim=16, in_channels=4, num_layers=8, sample_size=16
)
latents, noise_levels, classes = (
    torch.randn(2, 4, 16, 16),
    torch.tensor([20, 900]),
    torch.tensor([1, 7]),
)
dit_routing = attach(dit, drop=0.5)
dit.train()
prediction = dit(latents, timestep=noise_levels, class_labels=classes).sample
prediction.square().mean().backward()
dit_routing.step()  # behind each optimizer step
for route, subset in dit_routing.draw:
    print(f"blocks {route.start} to {route.stop - 1} saw {subset.n_kept} of {subset.length} tokens")
dit_routing.detach()
print("prediction:", tuple(prediction.shape))
