"""Published weights to a folder that can be sampled and evaluated, and back.

From facebookresearch/DiT's layout, whether published or trained with that code (its averaged
weights are taken):
    tread-ssm convert --from dit --weights DiT-XL-2-256x256.pt --out runs/dit
    tread-ssm sample --run runs/dit --class "golden retriever"
SiT's files have the same layout, and so have TREAD's but for a prefix. Their objectives differ, so
say whose they are:
    tread-ssm convert --from sit --weights SiT-XL-2-256.pt --out runs/sit
    tread-ssm convert --from tread --weights step_400000.pt --out runs/tread
DiM's:
    tread-ssm convert --from dim --weights nnet_ema.pth --out runs/dim_h
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
from tread_ssm.diffusion import EDM, Flow, NoisePrediction, Objective
from tread_ssm.errors import ConfigError
from tread_ssm.files import replacing
from tread_ssm.models import DiMConfig, DiTConfig, convert_dim
from tread_ssm.models.convert import from_published, to_published
from tread_ssm.pretrained import Description, export, load_export

_NAMES = {"dit": "DiT", "sit": "SiT", "tread": "TREAD", "dim": "DiM"}
_OBJECTIVES: dict[str, Objective] = {
    # DDPM's chain, with the learned variance left aside; see NoisePrediction.denoiser.
    "dit": NoisePrediction(betas="linear", beta_start=1e-4, beta_end=0.02),
    "sit": Flow(sit=True),
    "tread": EDM(),
    "dim": NoisePrediction(first=1),
}
# DiM's figures: 50 steps of the singlestep solver, and cond + 0.4 * (cond - uncond).
_SAMPLED = {"dim": SampleConfig(every=0, steps=50, guidance=1.4, sampler="dpm_solver_singlestep")}
# Options of SiT's training script that DiT's has not, and the ones that `Flow` stands for.
_SITS = {"path_type": "Linear", "prediction": "velocity"}
_WRAPPER = "model."  # TREAD trains the network inside EDM's preconditioning, and saves both


class _Held(NamedTuple):
    """What a .pt file holds.

    Attributes:
        weights: The tensors by their names, averaged ones where there are any.
        options: Of the training script's command line. None: there is none.
        step: Training steps behind the weights. None: it does not say.
    """

    weights: Mapping[str, Tensor]
    options: Mapping[str, Any] | None
    step: int | None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = _parser().parse_args(argv)
    return run(lambda: _export(args) if args.source is None else _import(args))


def _parser() -> argparse.ArgumentParser:
    read = parser("convert", __doc__)
    way = read.add_mutually_exclusive_group(required=True)
    way.add_argument("--from", dest="source", choices=list(_NAMES), help="whose --weights are")
    way.add_argument("--to", dest="target", choices=["dit"], help="layout of --out")
    add = read.add_argument
    add("--weights", type=Path, metavar="FILE", help="the .pt file to read, for --from")
    add("--run", type=Path, metavar="FOLDER", help="the run to read, for --to")
    add("--out", type=Path, required=True, help="folder (--from) or .pt file (--to) to write")
    add("--heads", type=int, help="attention heads (default: those of the published width)")
    add("--step", type=int, help="training steps behind the weights, for the record")
    return read


def _import(args: argparse.Namespace) -> None:
    if args.weights is None or args.run is not None:
        raise ConfigError("--from takes --weights FILE and --out FOLDER.")
    if (args.out / "ema.safetensors").exists():
        raise ConfigError(f"--out: {args.out} holds weights already; name another folder.")
    try:
        held = _read(args.weights)
        _check_project(args.source, args.weights, held)
        config, weights = _converted(args.source, held.weights, args.heads)
    except ValueError as error:
        raise ConfigError(f"--weights: {args.weights}: {error}") from None
    description = Description(
        step=(held.step or 0) if args.step is None else args.step,
        model=config,
        objective=_OBJECTIVES[args.source],
        class_names=_class_names(config.n_classes),
        values=LatentValues(scale=0.18215, vae="stabilityai/sd-vae-ft-ema"),
        routes=(),
        sample=_SAMPLED.get(args.source, SampleConfig(every=0)),
    )
    args.out.mkdir(parents=True, exist_ok=True)
    export(args.out, weights, description)
    print(
        f"{args.out}: {_NAMES[args.source]} of {config.depth} blocks, {config.dim} channels, "
        f"{_heads(config)}patch {config.patch}; {config.image_size} x {config.image_size} x "
        f"{config.channels}, {config.n_classes} classes"
    )


def _heads(config: DiTConfig | DiMConfig) -> str:
    return f"{config.heads} heads, " if isinstance(config, DiTConfig) else ""


def _converted(
    source: str, weights: Mapping[str, Tensor], heads: int | None
) -> tuple[DiTConfig | DiMConfig, dict[str, Tensor]]:
    """The network of these weights, and its state dict. Raises ValueError."""
    if source == "dim":
        if heads is not None:
            raise ValueError("a DiM has no attention heads; leave --heads out.")
        return convert_dim.from_published(weights)
    return from_published({n.removeprefix(_WRAPPER): t for n, t in weights.items()}, heads)


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
    """Refuse a file of another project, whose network would make noise of it.

    The layouts of DiT, SiT and TREAD are the same but for TREAD's prefix. Training checkpoints of
    the first two tell by the options that they hold, others perhaps by their name. Raises
    ConfigError.
    """
    options, found, why = held.options, source, "by its names of weights"
    if any(name.startswith(_WRAPPER) for name in held.weights):
        found = "tread"
    elif any(name.startswith("transformer_blocks.") for name in held.weights):
        found = "dim"
    elif source == "tread":
        raise ConfigError(
            f"its names do not begin with {_WRAPPER!r}, as those of TREAD's checkpoints do; use "
            f"--from dit or --from sit."
        )
    elif options is not None:
        found, why = "sit" if "path_type" in options else "dit", "by the training options in it"
    elif source in ("dit", "sit"):
        other = {"dit": "sit", "sit": "dit"}[source]
        words = re.split(r"[^a-z]+", path.stem.lower())
        found, why = other if other in words and source not in words else source, "by its name"
    if found != source:
        raise ConfigError(
            f"{why}, it is {_NAMES[found]}'s; use --from {found}. Its network predicts something "
            f"else than {_NAMES[source]}'s."
        )
    for option, known in _SITS.items():
        got = (options or {}).get(option, known)
        if got != known:
            raise ConfigError(f"it was trained with {option} {got!r}; only {known!r} is known.")


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
    held = found if isinstance(found, Mapping) else {}
    options, step = held.get("args"), held.get("step")
    for key in ("ema", "model", "ema_state_dict", "model_state_dict"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(isinstance(t, Tensor) for t in found.values()):
        raise ConfigError("it holds no state dict, which is a dict of tensors by their names.")
    known = vars(options) if isinstance(options, argparse.Namespace) else None
    return _Held(found, known, step if isinstance(step, int) else None)


def _class_names(n_classes: int) -> tuple[str, ...]:
    """ImageNet's for 1000 classes, with their numbers where two share a name; else the numbers."""
    if n_classes != 1000:
        return tuple(map(str, range(n_classes)))
    from timm.data import ImageNetInfo

    names = [text.split(",")[0] for text in ImageNetInfo("imagenet-1k").label_descriptions()]
    times = Counter(names)
    return tuple(n if times[n] == 1 else f"{n} {i}" for i, n in enumerate(names))
