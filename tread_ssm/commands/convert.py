"""Published weights to a folder that can be sampled and evaluated, and back.

From facebookresearch/DiT's layout, whether published or trained with that code (its averaged
weights are taken):
    tread-ssm convert --from dit --weights DiT-XL-2-256x256.pt --out runs/dit
    tread-ssm sample --run runs/dit --class "golden retriever"
And back, from any DiT of ours:
    tread-ssm convert --to dit --run runs/dit --out dit.pt

The numbers stay as they are, bit for bit. Exit code 2 where something does not fit.
"""

from __future__ import annotations

import argparse
import pickle
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tread_ssm.command import parser, run
from tread_ssm.config.run import SampleConfig
from tread_ssm.config.run_folder import RunFolder
from tread_ssm.data import LatentValues
from tread_ssm.diffusion import NoisePrediction
from tread_ssm.errors import ConfigError
from tread_ssm.files import replacing
from tread_ssm.models import DiTConfig
from tread_ssm.models.convert import from_published, to_published
from tread_ssm.pretrained import Export, export, load_export


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = _parser().parse_args(argv)
    return run(lambda: _export(args) if args.source is None else _import(args))


def _parser() -> argparse.ArgumentParser:
    read = parser("convert", __doc__)
    way = read.add_mutually_exclusive_group(required=True)
    way.add_argument("--from", dest="source", choices=["dit"], help="layout of --weights")
    way.add_argument("--to", dest="target", choices=["dit"], help="layout of --out")
    add = read.add_argument
    add("--weights", type=Path, metavar="FILE", help="the .pt file to read, for --from")
    add("--run", type=Path, metavar="FOLDER", help="the run to read, for --to")
    add("--out", type=Path, required=True, help="folder (--from) or .pt file (--to) to write")
    add("--heads", type=int, help="attention heads (default: those of the published width)")
    add("--step", type=int, default=0, help="training steps behind the weights, for the record")
    return read


def _import(args: argparse.Namespace) -> None:
    if args.weights is None or args.run is not None:
        raise ConfigError("--from takes --weights FILE and --out FOLDER.")
    if (args.out / "ema.safetensors").exists():
        raise ConfigError(f"--out: {args.out} holds weights already; name another folder.")
    try:
        config, weights = from_published(_read(args.weights), args.heads)
    except ValueError as error:
        raise ConfigError(f"--weights: {args.weights}: {error}") from None
    description = Export(
        step=args.step,
        model=config,
        # DDPM's chain, with the learned variance left aside; see NoisePrediction.denoiser.
        objective=NoisePrediction(betas="linear", beta_start=1e-4, beta_end=0.02),
        class_names=_class_names(config.n_classes),
        values=LatentValues(scale=0.18215, vae="stabilityai/sd-vae-ft-ema"),
        routes=(),
        sample=SampleConfig(every=0),
    )
    args.out.mkdir(parents=True, exist_ok=True)
    export(args.out, weights, description)
    print(
        f"{args.out}: DiT of {config.depth} blocks, {config.dim} channels, {config.heads} heads, "
        f"patch {config.patch}; {config.image_size} x {config.image_size} x {config.channels}, "
        f"{config.n_classes} classes"
    )


def _export(args: argparse.Namespace) -> None:
    if args.run is None or args.weights is not None:
        raise ConfigError("--to takes --run FOLDER and --out FILE.")
    if args.out.exists():
        raise ConfigError(f"--out: {args.out} is there already; name another file.")
    model, description = load_export(RunFolder(args.run).weights())
    config = description.model
    if not isinstance(config, DiTConfig):
        raise ConfigError(f"--run: {args.run} holds a {config.kind}; this layout is DiT's alone.")
    with replacing(args.out) as temporary:
        torch.save(to_published(config, model.state_dict()), temporary)
    objective = description.objective
    print(f"{args.out}: averaged weights after {description.step} steps")
    if not isinstance(objective, NoisePrediction):
        print(f"note: they were trained for {objective.kind}, which the file does not tell.")


def _read(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a .pt file: a state dict, or a training checkpoint that holds one.

    Nothing but tensors and plain data is unpickled. Raises ConfigError, OSError.
    """
    try:
        # Checkpoints of DiT's own training hold their command line, too.
        with torch.serialization.safe_globals([argparse.Namespace]):
            found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"no .pt file of tensors: {reason}") from None
    for key in ("ema", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(isinstance(t, Tensor) for t in found.values()):
        raise ConfigError("it holds no state dict, which is a dict of tensors by their names.")
    return found


def _class_names(n_classes: int) -> tuple[str, ...]:
    """ImageNet's for 1000 classes, with their numbers where two share a name; else the numbers."""
    if n_classes != 1000:
        return tuple(map(str, range(n_classes)))
    from timm.data import ImageNetInfo

    names = [text.split(",")[0] for text in ImageNetInfo("imagenet-1k").label_descriptions()]
    times = Counter(names)
    return tuple(n if times[n] == 1 else f"{n} {i}" for i, n in enumerate(names))
