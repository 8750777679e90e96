"""What the study trains: settings, arms and the order of the runs, as data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tread_ssm.config.run import RunConfig, load_config

BASE = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


@dataclass(frozen=True)
class Setting:
    """What the arms of a group share. The base is `configs/quickstart.yaml`.

    Attributes:
        image_size: Side of the emoji, in pixels.
        steps: Training steps; None: each arm says its own.
        points: Evaluated checkpoints of a run, evenly spaced: held-out loss.
        distances: How many of them, the last ones, are measured by FD-emoji as well.
        held: Images held out of training: for the loss, and as many samples for FD-emoji.
        sample_steps: Steps of DPM-Solver++.
        overrides: Keys of the configuration; arms may change them.
        last: Keys that no arm changes.
    """

    image_size: int
    steps: int | None
    points: int
    distances: int
    held: int
    sample_steps: int
    overrides: tuple[str, ...] = ()
    last: tuple[str, ...] = ()


# A constant rate and averaged weights make each checkpoint a fair end of a shorter run.
_EVEN = ("train.schedule=constant", "train.ema_decay=0.995", "routing.schedule.dense_tail=0")
SETTINGS = {
    "tokens256": Setting(32, 1200, 4, 3, 512, 10, _EVEN),
    "rates": Setting(32, 300, 1, 0, 512, 10, _EVEN),
    "quickstart": Setting(16, None, 2, 1, 512, 16),
}


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: Of its rows in the results.
        label: Of its lines in tables and plots.
        setting: Key of SETTINGS.
        overrides: What it changes of the setting's configuration.
        partner: The arm that it is compared with; None: it is one itself.
        steps: Where the setting leaves them to the arm.
        trunk: Start from the checkpoint of this arm where the dense tail begins, with the same
            seed, instead of training the same steps again.
    """

    name: str
    label: str
    setting: str
    overrides: tuple[str, ...] = ()
    partner: str | None = None
    steps: int | None = None
    trunk: str | None = None

    @property
    def backbone(self) -> Literal["dim", "dit"]:
        """Which colour it has in plots."""
        return "dit" if self.name.startswith("dit") else "dim"


def _routes(drop: float, more: str = "") -> str:
    return f"routing.routes=[{{start: 2, stop: 6, drop: {drop}{more}}}]"


def _family(name: str, label: str, *model: str) -> list[Arm]:
    """The dense arm of a network, and its routed ones."""

    def arm(suffix: str, what: str, *overrides: str, trunk: str | None = None) -> Arm:
        partner = None if suffix == "dense" else f"{name}-dense"
        settings = (*model, *overrides)
        full = f"{name}-{suffix}"
        return Arm(full, f"{label}, {what}", "tokens256", settings, partner, trunk=trunk)

    tail = "routing.schedule.dense_tail=0.25"
    return [
        arm("dense", "dense", "routing.routes=[]"),
        arm("50", "drop 0.5", _routes(0.5)),
        arm("75", "drop 0.75", _routes(0.75)),
        arm("50-tail", "drop 0.5, dense tail", _routes(0.5), tail, trunk=f"{name}-50"),
    ]


_MAMBA2 = "model.mixer={kind: mamba2, d_state: 64, head_dim: 32}"
_MAMBA3 = "model.mixer={kind: mamba3, d_state: 32, head_dim: 32}"
_HYBRID = ("model.attention_every=4", "model.attention={head_dim: 16}")
_SHAPE = "image_size: 32, channels: 3, n_classes: 9"
# 1.5 times the FLOPs of the DiM of 64 channels: more width would be out of reach, less a straw man.
_DIT = f"model={{kind: dit, depth: 7, heads: 4, dim: 56, {_SHAPE}}}"
_RATE, _DIT_RATE = "train.optimizer.lr=2e-3", "train.optimizer.lr=2e-3"


def _select(kind: str) -> tuple[str, str]:
    return _RATE, _routes(0.5, f", select: {{{kind}}}")


ARMS = (
    *_family("dim", "DiM", _RATE),
    *_family("dit", "DiT", _DIT, _DIT_RATE),
    *_family("dim2", "DiM, Mamba-2", _RATE, _MAMBA2),
    *_family("dim3", "DiM, Mamba-3", _RATE, _MAMBA3),
    *_family("hybrid", "DiM, Mamba-2 and attention", _RATE, _MAMBA2, *_HYBRID),
    Arm("dim-rows", "DiM, whole rows", "tokens256", _select("kind: rows"), "dim-dense"),
    Arm("dim-cells", "DiM, 2 x 2 cells", "tokens256", _select("kind: cells, size: 2"), "dim-dense"),
    # The mixer of the quickstart: a quarter of its steps with Mamba-1, for the others what their
    # steps (60.8, 75.5, 98.6 and 73.5 ms of CPU time, interleaved) leave of the same time.
    Arm("quick-mamba1", "Mamba-1", "quickstart", steps=1000),
    Arm("quick-mamba2", "Mamba-2", "quickstart", (_MAMBA2,), "quick-mamba1", steps=810),
    Arm("quick-mamba3", "Mamba-3", "quickstart", (_MAMBA3,), "quick-mamba1", steps=620),
    Arm("quick-hybrid", "hybrid", "quickstart", (_MAMBA2, *_HYBRID), "quick-mamba1", steps=830),
)


def rate_arms() -> list[Arm]:
    """Short runs at several learning rates, dense and routed apart."""
    found = []
    for arm in ARMS:
        if arm.name in ("dim-dense", "dim-50", "dit-dense", "dit-50"):
            for rate in ("1e-3", "2e-3", "4e-3"):
                more = (*arm.overrides, f"train.optimizer.lr={rate}")
                short = replace(arm, name=f"{arm.name}-lr{rate}", setting="rates", overrides=more)
                found.append(replace(short, label=f"{arm.label}, lr {rate}", partner=None))
    return found


def arm_of(name: str) -> Arm:
    """An arm by its name.

    Raises:
        ValueError: There is none.
    """
    known = {arm.name: arm for arm in (*ARMS, *rate_arms())}
    if name not in known:
        raise ValueError(f"{name} is no arm of the study; use one of {', '.join(known)}.")
    return known[name]


# Each line is finished, seed by seed, before the next begins; so the seeds of what is done balance.
_ORDER: tuple[tuple[tuple[int, ...], tuple[str, ...]], ...] = (
    ((0,), ("quick-mamba1", "quick-mamba2", "quick-hybrid", "quick-mamba3")),
    ((9,), ("dim-dense-lr2e-3", "dim-50-lr2e-3", "dim-dense-lr4e-3", "dim-50-lr4e-3")),
    ((0,), ("dim-dense", "dim-50", "dim-75")),
    ((1,), ("quick-mamba1", "quick-mamba2", "quick-hybrid", "quick-mamba3")),
    ((1, 2), ("dim-dense", "dim-50", "dim-75")),
    ((9,), ("dit-dense-lr2e-3", "dit-50-lr2e-3", "dit-dense-lr4e-3", "dit-50-lr4e-3")),
    ((0, 1), ("dit-dense", "dit-50")),
    ((0, 1, 2), ("dim-50-tail",)),
    ((0, 1), ("dim2-dense", "dim2-50")),
    ((2,), ("dit-dense", "dit-50", "dim2-dense", "dim2-50")),
    ((2,), ("quick-mamba1", "quick-mamba2", "quick-hybrid", "quick-mamba3")),
    ((9,), ("dim-dense-lr1e-3", "dim-50-lr1e-3")),
    ((0,), ("hybrid-dense", "hybrid-50", "dim-rows", "dim-cells", "dim3-dense", "dim3-50")),
)


def jobs() -> list[tuple[Arm, int]]:
    """Every run of the study, an arm and its seed, in the order in which they are made."""
    return [(arm_of(n), seed) for seeds, names in _ORDER for seed in seeds for n in names]


def toy(setting: Setting) -> Setting:
    """The same at a size that only shows that it works."""
    small = ("model.dim=16", "train.log_every=2", "train.warmup=2")
    smaller = replace(setting, image_size=16, steps=8, points=4, distances=2, last=small)
    return replace(smaller, held=72, sample_steps=2)


def configure(work: Path, setting: Setting, arm: Arm, seed: int) -> RunConfig:
    """The configuration of a run whose folder is made in `work`.

    Raises:
        ValueError: Neither the setting nor the arm says how many steps to train.
    """
    steps = setting.steps or arm.steps
    if steps is None:
        raise ValueError(f"{arm.name} says no steps, and its setting {arm.setting} says none.")
    size = setting.image_size
    given = [
        f"name={arm.name}-{seed}",
        f"out={work}",
        f"seed={seed}",
        f"data={{kind: array, path: {work / f'training_images_{size}.npz'}}}",
        f"train.steps={steps}",
        f"train.save_every={steps // setting.points}",
        f"train.retain={steps}",
        "train.threads=1",
        "train.report=false",
        "sample.every=0",
    ]
    last = [f"model.image_size={size}", *setting.last]
    return load_config(BASE, [*given, *setting.overrides, *arm.overrides, *last])
