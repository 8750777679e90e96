"""The mixer, and a whole routed DiM, against loops over single tokens in Python (float64).

Nothing here takes, puts, permutes or pads with the package's own code: tokens live in lists by
their place in the padded grid, and are visited along a path that is written out.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tread_ssm.models import DiM, DiMConfig
from tread_ssm.models.mixers import Mamba1, Mamba1Config
from tread_ssm.routing import Draw, Layout, Route, RoutePlan, TokenSubset
from tread_ssm.scan.order import ORDER_NAMES, rank_table

Tokens = dict[int, Tensor]  # by place in the full grid; prefix tokens have the places -P .. -1


def mixer_by_hand(mixer: Mamba1, tokens: Tokens, path: list[int]) -> Tokens:
    """One sample; `path` lists all places of the full grid in visiting order."""
    n_prefix = -min(0, *tokens)
    full = [*range(-n_prefix, 0), *path]
    inner = {p: (mixer.in_proj.weight @ t).chunk(2) for p, t in tokens.items()}
    nothing = torch.zeros_like(mixer.D)
    taps, bias = mixer.conv1d.weight[:, 0].unbind(1)[::-1], mixer.conv1d.bias
    present = [p for p in full if p in tokens]
    h = torch.zeros_like(mixer.A_log)
    missing, out = 0, {}
    for time, place in enumerate(full):
        if place not in tokens:
            missing += 1
            continue
        # the convolution reads back along the whole path, or along the tokens that are there
        along_all = mixer.config.true_distance_conv
        line, at = (full, time) if along_all else (present, present.index(place))
        u = bias.clone()
        for back, tap in enumerate(taps):
            source = line[at - back] if at >= back else None
            u = u + tap * (inner[source][0] if source in tokens else nothing)
        u = F.silu(u)
        states = mixer.config.d_state
        dt, B, C = (mixer.x_proj.weight @ u).split([mixer.dt_rank, states, states])
        dt = F.softplus(mixer.dt_proj.weight @ dt + mixer.dt_proj.bias)
        # the state decays over missing tokens, and nothing comes in
        for _ in range(missing if mixer.config.gap_decay else 0):
            h = torch.exp(-dt[:, None] * mixer.A_log.exp()) * h
        h = torch.exp(-dt[:, None] * mixer.A_log.exp()) * h + torch.outer(dt * u, B)
        y = (h @ C + mixer.D * u) * F.silu(inner[place][1])
        out[place] = mixer.out_proj.weight @ y
        missing = 0
    return out


def path_of(order: str, rows: int, columns: int) -> list[int]:
    """DiM's four orders, written out; the others from their tables."""
    if order.startswith("raster"):
        path = list(range(rows * columns))
    elif order.startswith("column"):
        path = [r * columns + c for c in range(columns) for r in range(rows)]
    else:
        return rank_table(order, (rows, columns)).argsort().tolist()
    return path[::-1] if order.endswith("reversed") else path


@pytest.mark.parametrize("order", ORDER_NAMES)
@pytest.mark.parametrize(
    "options",
    [{}, {"true_distance_conv": True}, {"gap_decay": True}],
    ids=lambda o: next(iter(o), "plain"),
)
def test_a_mixer_over_a_subset_equals_the_walk_along_the_full_path(
    order: str, options: dict[str, bool]
) -> None:
    torch.manual_seed(0)
    grid, n_prefix, batch = (3, 5), 2, 2
    mixer = Mamba1Config(d_state=3, **options).build(8, order)
    mixer.init_weights()
    mixer.double()
    index = torch.stack([torch.randperm(15)[:7].sort().values for _ in range(batch)])
    x = torch.randn(batch, n_prefix + 7, 8, dtype=torch.float64)
    out = mixer(x, Layout(grid, index, n_prefix, {order: rank_table(order, grid)}))
    for b in range(batch):
        places = [*range(-n_prefix, 0), *index[b].tolist()]
        tokens = dict(zip(places, x[b], strict=True))
        expected = mixer_by_hand(mixer, tokens, path_of(order, *grid))
        torch.testing.assert_close(
            out[b], torch.stack([expected[p] for p in places]), rtol=1e-9, atol=1e-11
        )


@pytest.mark.parametrize("order", ORDER_NAMES)
def test_a_scan_over_a_subset_is_the_full_scan_with_no_step_at_the_dropped(order: str) -> None:
    """With taps of the convolution that reach back cut off, a dropped token is a dt of 0."""
    torch.manual_seed(0)
    grid = (4, 3)
    mixer = Mamba1Config(d_state=3).build(8, order)
    mixer.init_weights()
    mixer.double()
    with torch.no_grad():
        mixer.conv1d.weight[..., :-1] = 0
        mixer.conv1d.bias.zero_()
    subset = TokenSubset(torch.stack([torch.randperm(12)[:5].sort().values for _ in range(2)]), 12)
    x = torch.randn(2, 12, 8, dtype=torch.float64)
    layout = Layout(grid, orders={order: rank_table(order, grid)})
    routed = mixer(subset.take(x), layout.take(subset))

    u, z = (x @ mixer.in_proj.weight.T).chunk(2, dim=-1)
    u = F.silu(u * mixer.conv1d.weight[:, 0, -1])
    dt, B, C = (u @ mixer.x_proj.weight.T).split([mixer.dt_rank, 3, 3], dim=-1)
    dt = F.softplus(mixer.dt_proj(dt)) * subset.mask()[..., None]  # 0 at the dropped
    h, ys = torch.zeros(2, 16, 3, dtype=torch.float64), {}
    for p in path_of(order, *grid):
        h = torch.exp(-dt[:, p, :, None] * mixer.A_log.exp()) * h
        h = h + (dt * u)[:, p, :, None] * B[:, p, None]
        ys[p] = (h * C[:, p, None]).sum(-1) + mixer.D * u[:, p]
    y = torch.stack([ys[p] for p in range(12)], dim=1) * F.silu(z)
    torch.testing.assert_close(routed, subset.take(y @ mixer.out_proj.weight.T), rtol=0, atol=1e-12)


# A whole DiM -----------------------------------------------------------------------------------


def waves(t: Tensor, dim: int) -> Tensor:
    angles = [t * 10000 ** (-i / (dim // 2)) for i in range(dim // 2)]
    return torch.stack([*(a.cos() for a in angles), *(a.sin() for a in angles)])


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean() + 1e-5).sqrt() * weight


def depthwise(conv: torch.nn.Conv2d, image: Tokens, rows: int, columns: int) -> Tokens:
    """3 x 3, zeros outside, over tokens by (row * columns + column)."""
    out = {}
    for r in range(rows):
        for c in range(columns):
            out[r * columns + c] = conv.bias + sum(
                conv.weight[:, 0, i, j] * image[(r + i - 1) * columns + c + j - 1]
                for i in range(3)
                for j in range(3)
                if 0 <= r + i - 1 < rows and 0 <= c + j - 1 < columns
            )
    return out


def embed_by_hand(model: DiM, x: Tensor, prefix: tuple[Tensor, Tensor]) -> Tokens:
    """The stream of one sample; x (C, H, W)."""
    (rows, columns), n = model.grid, model.config.pads
    weight, bias = model.patches.projection.weight, model.patches.projection.bias
    image = {
        r * columns + c: (weight * x[:, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2]).sum((1, 2, 3))
        + bias
        + model.position[2 + r * columns + c]
        for r in range(rows)
        for c in range(columns)
    }
    image = depthwise(model.conv_in, image, rows, columns)
    line = [prefix[0] + model.position[0], prefix[1] + model.position[1]]
    line += list(model.separators) if n else []
    tokens = {i - len(line): token for i, token in enumerate(line)}
    for r in range(rows):
        for c in range(columns):
            tokens[r * (columns + n) + c] = image[r * columns + c]
        for j in range(n):
            tokens[r * (columns + n) + columns + j] = model.pads[j]
    for j in range(n):
        for c in range(columns + n):
            tokens[(rows + j) * (columns + n) + c] = model.pads[j]
    return tokens


def kept_places(model: DiM, subset: TokenSubset, b: int, tokens: Tokens) -> list[int]:
    """Places in the padded grid that stay in a route."""
    rows, columns = model.grid
    wide = columns + model.config.pads
    image = {r * wide + c: r * columns + c for r in range(rows) for c in range(columns)}
    kept = set(subset.index[b].tolist())
    pads_stay = model.config.pads_in_route == "kept"
    return [p for p in tokens if p < 0 or (image[p] in kept if p in image else pads_stay)]


def block_by_hand(
    model: DiM, i: int, cond: Tensor, tokens: Tokens, skip: Tokens | None, order: str
) -> Tokens:
    block = model.blocks[i]
    if skip is not None:
        joint = block.skip.joint
        tokens = {p: joint.weight @ torch.cat([t, skip[p]]) + joint.bias for p, t in tokens.items()}
    shift, scale, gate = (cond[k] + block.table[k] for k in range(3))
    normed = {p: rms_norm(t, block.norm.weight) * (1 + scale) + shift for p, t in tokens.items()}
    rows, columns = (side + model.config.pads for side in model.grid)
    mixed = mixer_by_hand(block.mixer, normed, path_of(order, rows, columns))
    return {p: t + (1 + gate) * mixed[p] for p, t in tokens.items()}


def dim_by_hand(
    model: DiM, x: Tensor, t: Tensor, label: int, routing: Draw, b: int, orders: list[str]
) -> Tensor:
    """Sample b of a batch: x (C, H, W) -> (C, H, W)."""
    dim = model.config.dim
    prefix = (waves(t, dim), model.label_token.weight[label])
    hidden = model.t_cond.hidden.weight @ waves(t, 256) + model.t_cond.hidden.bias
    cond = model.t_cond.out.weight @ F.silu(hidden) + model.t_cond.out.bias
    cond = F.silu(cond + model.label_cond.weight[label])
    cond = (model.modulation.weight @ cond + model.modulation.bias).view(3, dim)

    whole = embed_by_hand(model, x, prefix)
    first, present, start = dict(whole), list(whole), dict(whole)
    saved: dict[int, Tokens] = {}
    for i in range(model.depth):
        for route, subset in routing:
            if route.start == i:
                present, start = kept_places(model, subset, b, whole), dict(whole)
        tokens = {p: whole[p] for p in present}
        skip = {p: saved[i][p] for p in present} if i in saved else None
        whole.update(block_by_hand(model, i, cond, tokens, skip, orders[i]))
        if 1 <= i <= (model.depth - 1) // 2:
            saved[model.depth - i] = dict(whole)  # dropped places hold the route's start
        for route, _ in routing:
            if route.stop == i + 1:
                for p in set(whole) - set(present):
                    at_stop = {"start": start[p], "input": first[p], "sum": start[p] + first[p]}
                    whole[p] = at_stop[route.rejoin]
                present = list(whole)

    (rows, columns), wide = model.grid, model.grid[1] + model.config.pads
    image = {r * columns + c: whole[r * wide + c] for r in range(rows) for c in range(columns)}
    image = depthwise(model.conv_out, image, rows, columns)
    pooled = model.head.modulation.weight @ F.silu(prefix[0] + prefix[1])
    shift, scale = (pooled + model.head.modulation.bias).chunk(2)
    out = torch.empty_like(x)
    for p, token in image.items():
        token = rms_norm(token, model.head.norm.weight) * (1 + scale) + shift
        values = model.head.linear.weight @ token + model.head.linear.bias
        r, c = divmod(p, columns)
        out[:, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2] = values.view(2, 2, -1).permute(2, 0, 1)
    return out


SEVEN = ["raster", "raster_reversed", "column", "column_reversed"]
SEVEN = [*SEVEN, "column", "raster_reversed", "raster"]

ROUTES = {
    "dense": (),
    "around the middle": (Route(1, 6),),
    "everything": (Route(0, 7),),
    "skips leave": (Route(0, 3),),
    "skips enter": (Route(4, 7),),
    "asymmetric": (Route(2, 6, drop=0.4),),
    "two": (Route(1, 3, rejoin="sum"), Route(4, 7, drop=0.7, rejoin="input")),
    "one token": (Route(1, 6, drop=0.9),),
}


def live_dim(**options: object) -> DiM:
    """A small DiM in float64 with no parameter at zero."""
    torch.manual_seed(0)
    shape = {"image_size": 6, "channels": 2, "n_classes": 3, "dim": 8, "depth": 7}
    pads = {k: options.pop(k) for k in ("pads", "pads_in_route") if k in options}
    model = DiM(DiMConfig(**shape, **pads, mixer=Mamba1Config(d_state=3, **options))).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def compare(model: DiM, *routes: Route) -> None:
    batch = 2
    x = torch.randn(batch, 2, 6, 6, dtype=torch.float64)
    t = torch.tensor([3.0, 700.0], dtype=torch.float64)
    labels = torch.tensor([1, 3])
    generator = torch.Generator().manual_seed(1)
    routing = RoutePlan(routes, 7).draw(batch, model.grid, generator)
    with torch.no_grad():
        out = model(x, t, labels, routing=routing)
        for b in range(batch):
            expected = dim_by_hand(model, x[b], t[b], int(labels[b]), routing, b, SEVEN)
            torch.testing.assert_close(out[b], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ROUTES)
def test_dim_equals_the_loop_by_hand(name: str) -> None:
    compare(live_dim(), *ROUTES[name])


@pytest.mark.parametrize(
    "options",
    [
        {"pads": 0},
        {"pads": 1},
        {"pads": 1, "pads_in_route": "routed"},
        {"pads_in_route": "routed"},
        {"gap_decay": True},
        {"true_distance_conv": True},
        {"true_distance_conv": True, "gap_decay": True, "pads_in_route": "routed"},
    ],
    ids=lambda o: ",".join(f"{k}={v}" for k, v in o.items()),
)
def test_dim_with_options_equals_the_loop_by_hand(options: dict[str, object]) -> None:
    compare(live_dim(**options), Route(1, 5))
