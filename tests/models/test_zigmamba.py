"""ZigMamba's block and head, written out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tread_ssm.models import ZigMamba, ZigMambaConfig
from tread_ssm.routing import Layout

SHAPE = {"image_size": 8, "channels": 2, "n_classes": 3, "dim": 12, "depth": 3}


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def test_the_network_is_the_published_one_written_out() -> None:
    torch.manual_seed(0)
    model = ZigMamba(ZigMambaConfig(**SHAPE)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    x, t = torch.randn(5, 2, 8, 8, dtype=torch.float64), torch.rand(5, dtype=torch.float64) * 1000
    labels = torch.arange(5) % 4
    stream, cond, _ = model.embed(x, t, labels)
    layout = Layout(model.grid, orders=model._ranks())
    for block in model.blocks:
        modulation = block.modulation(F.silu(cond))[:, None]
        shift, scale, gate = modulation.chunk(3, dim=2)
        y = rms(stream, block.norm.weight)
        stream = stream + y + gate * block.mixer(y * (1 + scale) + shift, layout)
    y = rms(stream, model.head.norm[0].weight)
    y = y - y.mean(-1, keepdim=True)
    y = y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    shift, scale = model.head.modulation(F.silu(cond))[:, None].chunk(2, dim=2)
    y = model.head.linear(y * (1 + scale) + shift)
    image = torch.zeros_like(x)
    for token in range(16):
        row, column = divmod(token, 4)
        patch = y[:, token].view(5, 2, 2, 2).permute(0, 3, 1, 2)  # (row, column, channel) inside
        image[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = patch
    torch.testing.assert_close(model(x, t, labels), image, rtol=1e-11, atol=1e-11)
