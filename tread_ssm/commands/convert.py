"""Published weights to a folder that can be sampled and evaluated, and back.

From facebookresearch/DiT's layout, whether published or trained with that code (its averaged
weights are taken):
    tread-ssm convert --from dit --weights DiT-XL-2-256x256.pt --out runs/dit
    tread-ssm sample --run runs/dit --class "golden retriever"
SiT's files have the same layout, but another objective; say which it is:
    tread-ssm convert --from sit --weights SiT-XL-2-256.pt --out runs/sit
And back, from any DiT of ours:
    tread-ssm convert --to dit --run runs/dit --out dit.pt

The numbers stay as they are, bit for bit. Exit code 2 where something does not fit.
"""

from __future__ import annotations

import argparse
import pickle
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tread_ssm.command import parser, run
from tread_ssm.config.run import SampleConfig
from tread_ssm.config.run_folder import RunFolder
from tread_ssm.data import LatentValues
from tread_ssm.diffusion import Flow, NoisePrediction, Objective
from tread_ssm.errors import ConfigError
from tread_ssm.files import replacing
from tread_ssm.models import DiTConfig
from tread_ssm.models.convert import from_published, to_published
from tread_ssm.pretrained import Export, export, load_export

_NAMES = {"dit": "DiT", "sit": "SiT"}
_OBJECTIVES: dict[str, Objective] = {
    # DDPM's chain, with the learned variance left aside; see NoisePrediction.denoiser.
    "dit": NoisePrediction(betas="linear", beta_start=1e-4, beta_end=0.02),
    "sit": Flow(sit=True),
}
# Options of SiT's training script that DiT's has not, and the ones that `Flow` stands for.
_SITS = {"path_type": "Linear", "prediction": "velocity"}


class _Held(NamedTuple):
    """What a .pt file holds.

    Attributes:
        weights: The tensors by their names, averaged ones where there are any.
        options: Of the training script's command line. None: not a training checkpoint.
    """

    weights: Mapping[str, Tensor]
    options: Mapping[str, Any] | None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = _parser().parse_args(argv)
    return run(lambda: _export(args) if args.source is None else _import(args))


def _parser() -> argparse.ArgumentParser:
    read = parser("convert", __doc__)
    way = read.add_mutually_exclusive_group(required=True)
    way.add_argument("--from", dest="source", choices=["dit", "sit"], help="whose --weights are")
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
        held = _read(args.weights)
        _check_project(args.source, args.weights, held)
        config, weights = from_published(held.weights, args.heads)
    except ValueError as error:
        raise ConfigError(f"--weights: {args.weights}: {error}") from None
    description = Export(
        step=args.step,
        model=config,
        objective=_OBJECTIVES[args.source],
        class_names=_class_names(config.n_classes),
        values=LatentValues(scale=0.18215, vae="stabilityai/sd-vae-ft-ema"),
        routes=(),
        sample=SampleConfig(every=0),
    )
    args.out.mkdir(parents=True, exist_ok=True)
    export(args.out, weights, description)
    print(
        f"{args.out}: {_NAMES[args.source]} of {config.depth} blocks, {config.dim} channels, "
        f"{config.heads} heads, patch {config.patch}; {config.image_size} x {config.image_size} x "
        f"{config.channels}, {config.n_classes} classes"
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


def _check_project(source: str, path: Path, held: _Held) -> None:
    """Refuse a file of the other project, whose network would make noise of it.

    The two layouts are the same. Training checkpoints tell by the options that they hold, others
    perhaps by their name. Raises ConfigError.
    """
    other, options = {"dit": "sit", "sit": "dit"}[source], held.options
    if options is None:
        words = re.split(r"[^a-z]+", path.stem.lower())
        wrong, why = other in words and source not in words, "by its name"
    else:
        wrong = ("path_type" in options) != (source == "sit")
        why = "by the training options in it"
    if wrong:
        raise ConfigError(
            f"{why}, it is {_NAMES[other]}'s; use --from {other}. Names and shapes are the same, "
            f"but not what the network predicts."
        )
    for option, known in _SITS.items():
        found = (options or {}).get(option, known)
        if found != known:
            raise ConfigError(f"it was trained with {option} {found!r}; only {known!r} is known.")


def _read(path: Path) -> _Held:
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
    options = found.get("args") if isinstance(found, Mapping) else None
    for key in ("ema", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(isinstance(t, Tensor) for t in found.values()):
        raise ConfigError("it holds no state dict, which is a dict of tensors by their names.")
    return _Held(found, None if options is None else vars(options))


def _class_names(n_classes: int) -> tuple[str, ...]:
    """ImageNet's for 1000 classes, with their numbers where two share a name; else the numbers."""
    if n_classes != 1000:
        return tuple(map(str, range(n_classes)))
    from timm.data import ImageNetInfo

    names = [text.split(",")[0] for text in ImageNetInfo("imagenet-1k").label_descriptions()]
    times = Counter(names)
    return tuple(n if times[n] == 1 else f"{n} {i}" for i, n in enumerate(names))
