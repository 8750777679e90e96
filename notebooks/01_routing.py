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
# # What a route does
#
# A *route* carries some of an image's tokens, unchanged, from one block of a network to a deeper
# one. The blocks between see only the tokens that are kept, so a training step costs less. Behind
# the route every token stands at its place again. This notebook shows it in pictures: which tokens
# are kept, in which order a state-space model visits them, what each block sees, and what comes
# back at the end.

# %%
# %matplotlib inline
import torch

from tread_ssm import DiM, DiMConfig, Layout, Route, RoutePlan, run_blocks, selective_scan
from tread_ssm.data import load_emoji
from tread_ssm.plots import tokens as show
from tread_ssm.routing import Cells, RandomTokens, Rows, Segments
from tread_ssm.scan.order import rank_table

# %% [markdown]
# ## Which tokens are kept
#
# A 32 x 32 image in patches of 2 x 2 pixels is a grid of 16 x 16 tokens. A *selection* says which
# of them stay; `drop` is the share that does not. Every sample of a batch has a draw of its own,
# but the same number of kept tokens, so that tensors stay rectangular.

# %%
PARROT = 638
images, labels, names = load_emoji(32)
image, patch, grid = images[PARROT], 2, (16, 16)


def draw(route, seed=1, depth=8):
    return RoutePlan((route,), depth).draw(1, grid, torch.Generator().manual_seed(seed))


selections = {
    "RandomTokens()": RandomTokens(),
    "Rows()": Rows(),
    'Cells(2, choose="within")': Cells(2, choose="within"),
    'Cells(2, choose="whole")': Cells(2, choose="whole"),
    'Cells(4, choose="whole")': Cells(4, choose="whole"),
    'Segments(16, along="rows")': Segments(16),
    'Segments(16, along="columns")': Segments(16, along="columns"),
}
kept = {title: draw(Route(2, 6, select=s))[0][1] for title, s in selections.items()}
show.plot_kept(image, kept, grid)

# %% [markdown]
# - `RandomTokens` is TREAD's own choice and the default.
# - `Rows` keeps the grid a rectangle, for blocks that need one (a 2-D convolution, say).
# - `Cells` cuts the grid into squares. `within` keeps the same share of every square, so that no
#   region is lost; `whole` keeps or drops squares.
# - `Segments` drops runs of a scan, so that long stretches of it stay unbroken.
#
# More may be dropped, and some tokens may be kept by force:

# %%
corners = (0, 15, -16, -1)
show.plot_kept(
    image,
    {
        "drop=0.25": draw(Route(2, 6, drop=0.25))[0][1],
        "drop=0.75": draw(Route(2, 6, drop=0.75))[0][1],
        "drop=0.75, keep=corners": draw(Route(2, 6, drop=0.75, keep=corners))[0][1],
    },
    grid,
)

# %% [markdown]
# ## In which order a scan visits them
#
# Attention does not care for the order of its tokens. A state-space model does: it reads them one
# after the other. Each block of DiM scans in one of four directions; other curves are known as
# well. A line that runs from dark to bright shows the order of the visits.

# %%
orders = ["raster", "column", "raster_reversed", "column_reversed", "snake", "zigzag_3", "hilbert"]
ranks = {name: rank_table(name, grid) for name in orders}
show.plot_paths({name: show.scan_path(rank, grid) for name, rank in ranks.items()}, grid)

# %% [markdown]
# With half of the tokens dropped at random, each scan visits what is left *in its own order*:
# `argsort(rank[kept])`, one rule for every curve, dense or routed.

# %%
half = kept["RandomTokens()"]
show.plot_paths({name: show.scan_path(rank, grid, half) for name, rank in ranks.items()}, grid)

# %% [markdown]
# Why the rule matters: a router that hands over the ids as it drew them (harmless to attention)
# makes a scan jump all over the image.

# %%
drawn = half.index[0][torch.randperm(half.n_kept, generator=torch.Generator().manual_seed(0))]
show.plot_paths(
    {"ids as they were drawn": drawn, "in raster order": half.index[0]}
    | {t: show.scan_path(ranks["raster"], grid, kept[t]) for t in list(kept)[2:4]},
    grid,
)

# %% [markdown]
# ## What each block sees
#
# Twelve blocks, an image of 8 x 8 tokens behind a prefix of two (DiM's noise level and class). The
# route spans blocks 2 to 8. The stream never leaves raster order; blocks of the route work on a
# shorter one.

# %%
small, depth = (8, 8), 12
generator = torch.Generator().manual_seed(0)
one = RoutePlan((Route(2, -3),), depth).draw(1, small, generator)
show.plot_stream(one, depth, small, n_prefix=2)

# %% [markdown]
# A plan may hold several routes, one after the other (TREAD's first version), each with a draw of
# its own, so that tokens that missed one stretch may see the next:

# %%
routes = (Route(1, 5, drop=0.5), Route(6, 11, drop=0.75))
two = RoutePlan(routes, depth).draw(1, small, generator)
show.plot_stream(two, depth, small, n_prefix=2)

# %% [markdown]
# ## What rejoins
#
# At the end of a route the dropped tokens come back. With which value, `rejoin` says. To see it,
# let the tokens be patches of the image itself, and let every block be a toy that tints what it
# sees a little more blue.

# %%
blue = torch.tensor([0.10, 0.25, 0.75]).repeat(patch * patch)
x = show.cut(torch.from_numpy(image).float() / 255, patch)
seen = []


def tint(x, cond, layout):
    seen.append(x)
    return x + 0.14 * (blue - x)


def run(rejoin):
    seen.clear()
    route = draw(Route(2, 6, rejoin=rejoin))
    return run_blocks([tint] * 6, x, None, Layout(grid), route)


ends = {rejoin: run(rejoin) for rejoin in ("start", "input", "sum")}
subset = draw(Route(2, 6))[0][1]
before = tint(seen[1], None, None)
inside = subset.put(seen[4], torch.zeros_like(x))
there = subset.mask()[0].numpy()

# %%
show.plot_streams(
    {
        "the network's input": (show.joined(x, grid, patch), None),
        "at the route's start (2 blocks)": (show.joined(before, grid, patch), None),
        "inside it, after 2 more blocks": (show.joined(inside, grid, patch), there),
        'rejoin="start": the token as it left': (show.joined(ends["start"], grid, patch), None),
        'rejoin="input": the input token': (show.joined(ends["input"], grid, patch), None),
        'rejoin="sum": both, added': (show.joined(ends["sum"], grid, patch), None),
    },
    grid,
)

# %% [markdown]
# Kept tokens went through all six toy blocks and are the bluest. Dropped ones come back as they
# were: tinted twice with `"start"` (TREAD's second version, the default here), not at all with
# `"input"`, and as the sum of both, brighter than either, with `"sum"`.
#
# ## The same in a real network
#
# A small DiM: what changed between the stream at the route's start and the stream at its end? The
# dropped tokens did not change by a single bit.

# %%
torch.manual_seed(0)
config = DiMConfig(image_size=32, channels=3, n_classes=9, dim=64, depth=7, pads=0)
model = DiM(config)
stream = {}
model.blocks[1].register_forward_hook(lambda _, inputs, out: stream.update(start=out))
model.blocks[6].register_forward_pre_hook(lambda _, inputs: stream.update(stop=inputs[0]))

pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1
route = draw(Route(2, 6), depth=7)
with torch.no_grad():
    model(pixels, torch.tensor([500.0]), torch.tensor([1]), routing=route)
start, stop = (stream[k][:, model.n_prefix :] for k in ("start", "stop"))
dropped = ~route[0][1].mask()
print("dropped tokens bit-identical:", torch.equal(start[dropped], stop[dropped]))
show.plot_changes((stop - start)[0].norm(dim=-1), route[0][1], grid)

# %% [markdown]
# And the scan itself: visiting a subset is *exactly* the full scan in which the missing tokens have
# a step of zero. Nothing is approximated.

# %%
n, channels, states = 256, 8, 4
u, B, C = (torch.randn(1, n, size, dtype=torch.float64) for size in (channels, states, states))
delta = torch.rand(1, n, channels, dtype=torch.float64)
A = -torch.rand(channels, states, dtype=torch.float64)
rank = ranks["hilbert"]

subset_index = half.index[0]
among = Layout(grid, half.index, orders={"hilbert": rank}).visits("hilbert").index
part = [t[:, subset_index] for t in (u, delta, B, C)]
routed = selective_scan(*part[:2], A, *part[2:], delta_softplus=False, order=among)

silent = delta * half.mask()[:, :, None]
order = rank.argsort()
full = selective_scan(u, silent, A, B, C, delta_softplus=False, order=order)
print("largest difference:", float((routed - full[:, subset_index]).abs().max()))
