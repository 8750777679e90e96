"""Golden loss curves: twenty AdamW steps of each backbone, routed, on fixed random data.

    python tests/golden/make.py [NAME ...]

writes a file NAME.json for each of CONFIGS (or the named ones) beside this file. Do it only when a
change is meant to move the curves (another initialisation, another order of random numbers), and
say so in the commit. Curves agree to 5e-6 between the CPU backends of scan and product, 1 or 2
threads, and torch's AVX-512 and baseline kernels; the test allows 1e-4. A DiM that scans every
block along the raster is 1e-2 off.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from tread_ssm.models import (
    AttentionConfig,
    DiMConfig,
    DiTConfig,
    Mamba2Config,
    Mamba3Config,
    ModelConfig,
    ZigMambaConfig,
)
from tread_ssm.routing import Route, RoutePlan

FOLDER = Path(__file__).parent
STEPS = 20
SHAPE = {"image_size": 8, "channels": 3, "n_classes": 4}
HEADS = {"d_state": 16, "head_dim": 16}
CONFIGS: dict[str, ModelConfig] = {
    "dim": DiMConfig(**SHAPE, dim=32, depth=7),
    "zigmamba": ZigMambaConfig(**SHAPE, dim=32, depth=8),
    "dit": DiTConfig(**SHAPE, dim=32, depth=6, heads=2),
    "dit_modern": DiTConfig(
        **{**SHAPE, "dim": 32, "depth": 6, "heads": 2, "norm": "rms", "mlp": "swiglu"},
        qk_norm=True,
        rope=True,
        value_residual=True,
    ),
    "dim_mamba2": DiMConfig(**SHAPE, dim=32, depth=7, mixer=Mamba2Config(**HEADS)),
    "dim_hybrid": DiMConfig(
        **{**SHAPE, "dim": 32, "depth": 7, "attention_every": 3},
        mixer=Mamba3Config(**HEADS),
        attention=AttentionConfig(head_dim=16),
    ),
    "dim_mamba3": DiMConfig(**SHAPE, dim=32, depth=7, mixer=Mamba3Config(**HEADS)),
    "zigmamba_mamba2": ZigMambaConfig(**SHAPE, dim=32, depth=8, mixer=Mamba2Config(**HEADS)),
}


def loss_curve(name: str) -> list[float]:
    """The losses before each of the steps: noise is predicted, one route from block 1 to the last
    but one drops half of the tokens."""
    torch.manual_seed(0)
    model = CONFIGS[name].build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    plan = RoutePlan((Route(1, -1),), model.depth)
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(8, 3, 8, 8, generator=generator) * 2 - 1
    labels = torch.arange(8) % 5
    t = torch.linspace(50, 950, 8)
    noise = torch.randn(images.shape, generator=generator)
    share = (t / 1000)[:, None, None, None]
    noisy = images * (1 - share) + noise * share
    losses = []
    for _ in range(STEPS):
        routing = plan.draw(8, model.grid, generator)
        loss = F.mse_loss(model(noisy, t, labels, routing=routing), noise)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


if __name__ == "__main__":
    for name in sys.argv[1:] or CONFIGS:
        curve = loss_curve(name)
        text = json.dumps({"torch": torch.__version__, "losses": curve}, indent=1)
        (FOLDER / f"{name}.json").write_text(text + "\n")
        print(f"{name}: {curve[0]:.6f} -> {curve[-1]:.6f}")
