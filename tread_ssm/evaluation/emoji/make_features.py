"""Train the network behind FD-emoji: `python -m tread_ssm.evaluation.emoji.make_features`.

It learns two things from the embedded emoji: the class of an image (9), and whether and how it
was damaged (intact, noise, blur, shuffled pixels). Deterministic for a given machine, torch
version and number of threads (2 are set); about two minutes. Every seventh image is held out;
the accuracies on those are printed and stored in the file's metadata.

Shape legend: B batch, H rows, W columns.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors.torch import save_file
from torch import Tensor

from tread_ssm.data import load_emoji
from tread_ssm.evaluation.emoji.network import WEIGHTS, EmojiNet, network_input
from tread_ssm.evaluation.images import to_batch

DAMAGES = ("intact", "noise", "blur", "shuffle")
EPOCHS, BATCH, PEAK_LR = 36, 96, 4e-3


def damage(images_BCHW: Tensor, kind_B: Tensor, rng: torch.Generator) -> Tensor:
    """uint8 images (B, 3, H, W), each damaged in its way (an index into DAMAGES), more or less.

    noise: a mixture with Gaussian noise, as in diffusion. blur: smaller and back. shuffle: pixels
    take the place of a neighbour.
    """
    n, _, side, _ = images_BCHW.shape
    x = images_BCHW.float()
    share = torch.rand(n, 1, 1, 1, generator=rng) * 0.95 + 0.05
    noise = 127.5 + 127.5 * torch.randn(x.shape, generator=rng)
    noisy = (1 - share) * x + share * noise
    factor = 1.5 + 2.5 * float(torch.rand((), generator=rng))
    small = F.interpolate(x, (round(side / factor),) * 2, mode="bilinear", antialias=True)
    blurred = F.interpolate(small, (side, side), mode="bilinear")
    reach = 0.5 + 2.5 * torch.rand(n, 1, 1, generator=rng)
    shuffled = _displaced(x, reach, rng)
    options = torch.stack([x, noisy, blurred, shuffled])
    return options[kind_B, torch.arange(n)].round().clamp(0, 255).to(torch.uint8)


def train(epochs: int, seed: int = 0) -> tuple[EmojiNet, dict[str, float]]:
    """The trained network and its accuracies on the images held out."""
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    images, labels, names = load_emoji(32)
    held = held_out(images)
    x = to_batch(images)
    y = torch.from_numpy(labels)
    weight = 1 / torch.bincount(y, minlength=len(names)).float().sqrt()
    weight = weight / weight[y].mean()
    net = EmojiNet(len(names), len(DAMAGES)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), lr=PEAK_LR, weight_decay=0.05)
    own = torch.from_numpy(np.flatnonzero(~held))
    steps = epochs * (len(own) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, total_steps=steps)
    for epoch in range(epochs):
        order = own[torch.randperm(len(own), generator=rng)]
        for index in order[: len(own) // BATCH * BATCH].split(BATCH):
            loss = _loss(net, _shifted(x[index], rng), y[index], weight, rng)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}/{epochs}  loss {loss.item():.3f}", flush=True)
    net.eval()
    return net, accuracies(net, x[held], y[held], rng)


@torch.inference_mode()
def accuracies(net: EmojiNet, x: Tensor, y: Tensor, rng: torch.Generator) -> dict[str, float]:
    """Shares of images whose class (at 32 and at 16 pixels) and whose damage are recognised."""
    small = F.avg_pool2d(x.float(), 2).round().to(torch.uint8)
    kind = torch.arange(len(x)) % len(DAMAGES)
    results = {
        "class_32": net.classify(net(network_input(x))).argmax(1) == y,
        "class_16": net.classify(net(network_input(small))).argmax(1) == y,
        "damage_32": net.damage(net(network_input(damage(x, kind, rng)))).argmax(1) == kind,
    }
    return {name: float(right.float().mean()) for name, right in results.items()}


def held_out(images: np.ndarray) -> np.ndarray:
    """(n,) bool: every seventh distinct image; copies of one image are on one side."""
    _, group = np.unique(images.reshape(len(images), -1), axis=0, return_inverse=True)
    order = np.random.default_rng(0).permutation(int(group.max()) + 1)
    return order[group.reshape(-1)] % 7 == 0


def _loss(net: EmojiNet, images: Tensor, y: Tensor, weight: Tensor, rng: torch.Generator) -> Tensor:
    """Class loss on intact images, damage loss on images half of which are damaged.

    Half of the batches are seen at 16 pixels, for runs on small emoji.
    """
    n = len(images)
    if bool(torch.rand((), generator=rng) < 0.5):
        images = F.avg_pool2d(images.float(), 2).round().to(torch.uint8)
    kind = torch.randint(1, len(DAMAGES), (n,), generator=rng)
    kind[: n // 2] = 0
    features = net(network_input(damage(images, kind, rng)))
    classes = F.cross_entropy(
        net.classify(features[: n // 2]), y[: n // 2], weight, label_smoothing=0.05
    )
    return classes + 0.3 * F.cross_entropy(net.damage(features), kind)


def _shifted(x_BCHW: Tensor, rng: torch.Generator) -> Tensor:
    """Each image moved by up to two pixels; what comes in is white."""
    n, _, side, _ = x_BCHW.shape
    padded = F.pad(x_BCHW, (2, 2, 2, 2), value=255)
    shift = torch.randint(0, 5, (2, n, 1), generator=rng)
    rows, columns = (torch.arange(side) + s for s in shift)
    return _looked_up(padded, rows[:, :, None], columns[:, None, :])


def _displaced(x_BCHW: Tensor, reach_B: Tensor, rng: torch.Generator) -> Tensor:
    """Each pixel read from a random place within about `reach` pixels of its own."""
    n, _, side, _ = x_BCHW.shape
    at = torch.arange(side).float()
    rows = at[None, :, None] + reach_B * torch.randn(n, side, side, generator=rng)
    columns = at[None, None, :] + reach_B * torch.randn(n, side, side, generator=rng)
    rows, columns = (p.round().clamp(0, side - 1).long() for p in (rows, columns))
    return _looked_up(x_BCHW, rows, columns)


def _looked_up(x_BCHW: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The pixels at these places of each image, (B, H, W) together."""
    sample = torch.arange(len(x_BCHW))[:, None, None]
    picked = rearrange(x_BCHW, "b c h w -> b h w c")[sample, rows, columns]
    return rearrange(picked, "b h w c -> b c h w")


def main() -> None:
    """Train, print the accuracies, write the weights as float16."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(__file__).with_name(WEIGHTS)
    parser.add_argument("--out", type=Path, default=default)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    options = parser.parse_args()
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    start = time.perf_counter()
    net, reached = train(options.epochs)
    weights = {
        name: tensor.half().contiguous()
        for name, tensor in net.state_dict().items()
        if tensor.is_floating_point()
    }
    save_file(weights, str(options.out), metadata={k: f"{v:.4f}" for k, v in reached.items()})
    print(", ".join(f"{k} {v:.3f}" for k, v in reached.items()), "on images held out")
    size = options.out.stat().st_size / 1024
    print(f"{options.out}: {size:.0f} KiB, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
