"""What a run would need on several A100s: memory by count, speed by published figures.

An ESTIMATE: nothing here was measured on a GPU. Memory of weights, gradients, AdamW and average is
exact. Activations are the bytes that autograd keeps for one block on the CPU under bf16 autocast,
times tokens, blocks and images. Not counted: the network's two ends, temporary buffers of kernels,
the allocator, NCCL. So no more than 85 % of the memory is handed out.

Images per second are FLOPs (recomputation included) over an assumed share of the GPU's bf16 peak:

* DiT-XL/2 took 240 A100-hours for 400,000 steps of 256 images (read off the figure in TREAD,
  arXiv 2501.04765): 118.5 images/s a GPU. Its FLOPs by this package's count give attention's share.
* DiM-H reaches 25.1 images/s where DiT-XL/2 reaches 76.9 (inference, one A100, fp32, batch 64,
  256 px; second-hand). The ratio of their FLOPs/s scales the share for Mamba. It was measured in
  fp32. In bf16 matrix products gain more than scans do, so Mamba's figures are rather too high.

DiT-XL/2's share came without routes. Shorter sequences use a GPU less well. However small the
network, a step is taken to last a millisecond for each block, in which about a hundred kernels are
launched forward and backward.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tread_ssm.config.run import RunConfig
from tread_ssm.models import ModelConfig
from tread_ssm.models.backbone import Backbone, MixedConfig
from tread_ssm.models.mixers import Attention
from tread_ssm.routing.cost import PlanCost
from tread_ssm.tables import duration, markdown_table, short
from tread_ssm.training.cost import training_cost
from tread_ssm.training.heads import with_heads

A100_FLOPS, A100_BYTES = 312e12, 80e9
USABLE = 0.85
BLOCK_SECONDS = 1e-3
ATTENTION_SHARE, MAMBA_SHARE = 0.27035, 0.23132  # of the peak; the tests derive them


@dataclass(frozen=True)
class Memory:
    """What one GPU holds.

    Attributes:
        state: Bytes of weights, gradients, AdamW's moments and the average.
        copies: Bytes of the weights' half-precision copies.
        image: Bytes of activations for each image.
        images: Images that one GPU has of a batch.
    """

    state: float
    copies: float
    image: float
    images: int

    @property
    def fitting(self) -> int:
        """Images of the batch that fit at once."""
        free = USABLE * A100_BYTES - self.state - self.copies
        return max(0, min(self.images, int(free / self.image)))

    @property
    def total(self) -> float:
        """Bytes, with as many images as fit."""
        return self.state + self.copies + self.fitting * self.image

    def __str__(self) -> str:
        if self.fitting == 0:
            return f"not one image fits beside {short(self.state + self.copies, 'B')}"
        if self.fitting == self.images:
            return short(self.total, "B")
        return f"{short(self.total, 'B')} with {self.fitting} of {self.images} images at once"


@dataclass(frozen=True)
class Estimate:
    """Memory and speed of a run.

    Attributes:
        gpus: A100 of 80 GB.
        parameters: Of the network.
        activations: Bytes for each image, by whether blocks are recomputed.
        ddp: Memory with the whole state on each GPU.
        fsdp2: Memory with the state shared among the GPUs.
        seconds: Of the whole run.
        images_per_second: On all GPUs.
    """

    gpus: int
    parameters: int
    activations: dict[bool, float]
    ddp: Memory
    fsdp2: Memory
    seconds: float
    images_per_second: float

    def table(self) -> str:
        """As a Markdown table."""
        recomputed, kept = (short(self.activations[way], "B") for way in (True, False))
        rows = [
            ("activations an image", f"{kept}, {recomputed} with recomputation"),
            ("memory a GPU, DDP", str(self.ddp)),
            ("memory a GPU, FSDP2", str(self.fsdp2)),
            ("speed", f"{self.images_per_second:,.0f} images/s"),
            ("whole run", duration(self.seconds)),
        ]
        return markdown_table((f"{self.gpus} A100 of 80 GB, bf16", "an estimate"), rows)


def estimate(config: RunConfig, gpus: int, cost: PlanCost | None = None) -> Estimate:
    """What a run would need.

    Args:
        config: The run. `train.checkpoint_gradients` decides about recomputation.
        gpus: Number of A100 of 80 GB, at least 1.
        cost: The run's `training_cost`, which takes seconds to count. None: it is counted here.
    """
    model, options = config.model, config.train
    with torch.device("meta"):
        network = model.build()
        trained = with_heads(network, config.auxiliary)
    parameters = sum(p.numel() for p in network.parameters())
    heads = sum(p.numel() for p in trained.parameters()) - parameters
    routed = (cost or training_cost(config)).routed
    dense = max(routed.tokens)
    skips = {target for _, target in network.skips}
    per_block = [of[i in skips] for i, of in enumerate(bytes_of_blocks(model))]
    image = [kept * n / dense for (kept, _), n in zip(per_block, routed.tokens, strict=True)]
    fixed = [besides for _, besides in per_block]
    # With recomputation: a stream per block, and one block at a time.
    ways = {True: (4 * model.dim * sum(routed.tokens) + max(image), max(fixed))}
    ways[False] = (sum(image), sum(fixed))
    kept, copies = ways[options.checkpoint_gradients]
    # float32: weights, gradients, AdamW's two moments, the average (heads of losses have none).
    # DDP's buckets hold the gradients once more. FSDP2 has a block (and the next) whole, and its
    # gradient.
    block = 4 * max(sum(p.numel() for p in b.parameters()) for b in network.blocks)
    rows = -(-options.batch_size // gpus)
    flops = routed.training + (routed.forward if options.checkpoint_gradients else 0)
    share = flops_share(network, routed.block_flops)
    step = options.batch_size * flops / (gpus * A100_FLOPS * share)
    step = max(step, model.depth * BLOCK_SECONDS)
    return Estimate(
        gpus=gpus,
        parameters=parameters,
        activations={way: activations for way, (activations, _) in ways.items()},
        ddp=Memory(24 * parameters + 20 * heads, copies, kept, rows),
        fsdp2=Memory((20 * parameters + 16 * heads) / gpus + 3 * block, copies, kept, rows),
        seconds=options.steps * step,
        images_per_second=options.batch_size / step,
    )


def flops_share(network: Backbone, block_flops: tuple[int, ...]) -> float:
    """Share of the GPU's peak: attention's in blocks that attend, Mamba's in the others."""
    attends = [any(isinstance(m, Attention) for m in block.modules()) for block in network.blocks]
    attention = sum(f for f, yes in zip(block_flops, attends, strict=True) if yes)
    scans = sum(block_flops) - attention
    return sum(block_flops) / (attention / ATTENTION_SHARE + scans / MAMBA_SHARE)


def bytes_of_blocks(model: ModelConfig) -> list[dict[bool, tuple[float, float]]]:
    """block_bytes of each block; in a hybrid those with attention differ from the others."""
    if not isinstance(model, MixedConfig) or not model.attention_every:
        return [block_bytes(model)] * model.depth
    scans, attention = (block_bytes(replace(model, attention_every=n)) for n in (0, 1))
    return [attention if model.attends(i) else scans for i in range(model.depth)]


def block_bytes(model: ModelConfig) -> dict[bool, tuple[float, float]]:
    """By whether a block has a long skip: bytes kept for the backward pass per image, and besides.

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

    skips = {target for _, target in network.skips}
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
