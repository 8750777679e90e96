"""What a configuration would need on several A100s: memory by count, speed by published figures.

    python benchmarks/estimate.py configs/dim_l.yaml configs/dim_h.yaml

An ESTIMATE: nothing here was measured on a GPU. Memory of weights, gradients, AdamW and average is
exact; activations are the bytes that autograd keeps for one block on the CPU under bf16 autocast,
times tokens, blocks and images. Not counted: the network's two ends, temporary buffers of kernels,
the allocator, NCCL; so no more than 85 % of the memory are handed out.

Images/s are FLOPs (recomputation included) over an assumed share of the GPU's bf16 peak:

* DiT-XL/2 took 240 A100-hours for 400,000 steps of 256 images (read off the figure in TREAD,
  arXiv 2501.04765): 118.5 images/s a GPU. Its FLOPs by this package's count give DiT's share.
* DiM-H reaches 25.1 images/s where DiT-XL/2 reaches 76.9 (inference, one A100, fp32, batch 64,
  256 px; second-hand). The ratio of their FLOPs/s scales the share for Mamba. It was measured in
  fp32; in bf16 matrix products gain more than scans do, so Mamba's figures are rather too high.

DiT-XL/2's share came without routes. Shorter sequences use a GPU less well.
"""

from __future__ import annotations

import argparse
import functools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from tread_ssm.config.run import RunConfig, load_config
from tread_ssm.models import ModelConfig
from tread_ssm.models.cost import backbone_cost
from tread_ssm.routing import RoutePlan

CONFIGS = Path(__file__).parents[1] / "configs"
A100_FLOPS, A100_BYTES = 312e12, 80e9
DIT_XL_IMAGES = 400_000 * 256 / (240 * 3600)
USABLE = 0.85


def block_bytes(model: ModelConfig) -> dict[bool, tuple[float, float]]:
    """By whether a block has a long skip: bytes kept for backward per image, and besides.

    What does not grow with the batch are the half-precision copies of weights.
    """
    small = replace(model, depth=3)
    one, two = (_kept(small, batch) for batch in (1, 2))
    return {skip: (two[skip] - one[skip], 2 * one[skip] - two[skip]) for skip in one}


def _kept(model: ModelConfig, batch: int) -> dict[bool, float]:
    network = model.build()
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    seen: dict[int, Tensor] = {}  # held, so that no address is used twice
    counts: defaultdict[bool, float] = defaultdict(float)
    inside: list[bool] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if inside and storage.data_ptr() not in own | seen.keys():
            seen[storage.data_ptr()] = tensor
            counts[inside[-1]] += storage.nbytes()
        return tensor

    skips = {target for _, target in getattr(network, "skips", ())}
    # The first block of its kind: block 0, and the one at the end of the long skip.
    for i in {0, *skips}:
        block: nn.Module = network.blocks[i]
        block.register_forward_pre_hook(lambda *_, skip=i in skips: inside.append(skip))
        block.register_forward_hook(lambda *_: inside.clear())
    x = torch.randn(batch, model.channels, model.image_size, model.image_size)
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t)
    with torch.autocast("cpu", torch.bfloat16), hooks:
        network(x, torch.rand(batch), torch.zeros(batch, dtype=torch.int64))
    return dict(counts)


@functools.cache
def shares() -> dict[str, float]:
    """The assumed share of an A100's bf16 peak, for attention and for Mamba."""
    dit, dim = (
        backbone_cost(m, RoutePlan((), m.depth)).dense
        for m in (load_config(CONFIGS / f"{n}.yaml").model for n in ("dit_xl", "dim_h"))
    )
    attention = DIT_XL_IMAGES * dit.training / A100_FLOPS
    return {"dit": attention, "mamba": attention * (25.1 * dim.forward) / (76.9 * dit.forward)}


def estimate(config: RunConfig, gpus: int) -> list[str]:
    """Lines of text about one configuration."""
    model, options = config.model, config.train
    with torch.device("meta"):
        network = model.build()
    parameters = sum(p.numel() for p in network.parameters())
    cost = backbone_cost(model, config.plan).routed
    per_block, dense = block_bytes(model), max(cost.tokens)
    skips = {target for _, target in getattr(network, "skips", ())}
    image = [per_block[i in skips][0] * n / dense for i, n in enumerate(cost.tokens)]
    fixed = [per_block[i in skips][1] for i in range(model.depth)]
    # With recomputation: a stream per block, and one block at a time.
    ways = {True: (4 * model.dim * sum(cost.tokens) + max(image), max(fixed))}
    ways[False] = (sum(image), sum(fixed))
    kept, copies = ways[options.checkpoint_gradients]
    flops = cost.training + (cost.forward if options.checkpoint_gradients else 0)
    share = shares()["dit" if model.kind == "dit" else "mamba"]
    speed = gpus * A100_FLOPS * share / flops

    lines = [
        f"{config.name}: {parameters / 1e6:.1f}M parameters, {gpus} A100 of 80 GB, bf16, "
        f"recomputation {'on' if options.checkpoint_gradients else 'off'}",
        f"  activations {ways[True][0] / 1e6:.0f} MB an image with recomputation, "
        f"{ways[False][0] / 1e6:.0f} MB and {ways[False][1] / 1e9:.1f} GB besides without",
    ]
    # float32: weights, gradients, AdamW's two moments, the average; DDP's buckets hold the
    # gradients once more. FSDP2 has a block (and the next) whole, and its gradient.
    block = 4 * max(sum(p.numel() for p in b.parameters()) for b in network.blocks)
    for name, state in (("ddp", 24 * parameters), ("fsdp2", 20 * parameters / gpus + 3 * block)):
        rows = options.batch_size // gpus
        most = int((USABLE * A100_BYTES - state - copies) / kept)
        total = state + copies + min(rows, most) * kept
        lines.append(
            f"  {name:6}{state / 1e9:.1f} GB state; at most {most} of {rows} images a GPU at once"
            f"{'' if most >= rows else ' (set train.micro_batch)'}, then {total / 1e9:.0f} GB"
        )
    days = options.steps * options.batch_size / speed / 86400
    lines.append(
        f"  speed {speed:.0f} images/s ({share:.0%} of peak, {flops / 1e12:.2f} TFLOPs an image), "
        f"{options.steps:,} steps of {options.batch_size} in {days:.1f} days"
    )
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="+")
    parser.add_argument("--gpus", type=int, default=8)
    args = parser.parse_args(argv)
    for path in args.configs:
        print("\n".join(estimate(load_config(path), args.gpus)), flush=True)


if __name__ == "__main__":
    main()
