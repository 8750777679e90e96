"""What the study trains: settings, arms and the order of the runs, as data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tread_ssm.config.run import RunConfig, load_config
from tread_ssm.config.run_folder import RunFolder

BASE = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


@dataclass(frozen=True)
class Setting:
    """What the arms of a group share. The base is `configs/quickstart.yaml`.

    Attributes:
        image_size: Side of the emoji, in pixels.
        held: Images held out of training: for the loss, and as many samples for FD-emoji.
        sample_steps: Steps of DPM-Solver++.
        distance_from: FD-emoji is measured of runs of at least so many steps.
        save_every: Steps between checkpoints.
        overrides: Keys of the configuration; arms may change them.
        last: Keys that no arm changes.
    """

    image_size: int
    held: int
    sample_steps: int
    distance_from: int
    save_every: int
    overrides: tuple[str, ...] = ()
    last: tuple[str, ...] = ()


# A constant rate and averaged weights make each checkpoint a fair end of a shorter run.
_EVEN = ("train.schedule=constant", "train.ema_decay=0.995", "routing.schedule.dense_tail=0")
SETTINGS = {
    "tokens256": Setting(32, 512, 10, 600, 150, _EVEN),
    "quickstart": Setting(16, 512, 16, 0, 500),
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
        trunk: It starts from the checkpoint of this arm, with the same seed, where its dense tail
            begins, instead of training the same steps again.
    """

    name: str
    label: str
    setting: str
    overrides: tuple[str, ...] = ()
    partner: str | None = None
    trunk: str | None = None

    @property
    def backbone(self) -> Literal["dim", "dit"]:
        """Which colour it has in plots."""
        return "dit" if self.name.startswith("dit") else "dim"


@dataclass(frozen=True)
class Job:
    """A row to be made: an arm and a seed, trained to `steps` steps.

    With a constant rate it resumes where the row of fewer steps ended.
    """

    arm: Arm
    seed: int
    steps: int


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
    # The mixer of the quickstart.
    Arm("quick-mamba1", "quickstart, Mamba-1", "quickstart"),
    Arm("quick-mamba2", "quickstart, Mamba-2", "quickstart", (_MAMBA2,), "quick-mamba1"),
    Arm("quick-mamba3", "quickstart, Mamba-3", "quickstart", (_MAMBA3,), "quick-mamba1"),
    Arm("quick-hybrid", "quickstart, hybrid", "quickstart", (_MAMBA2, *_HYBRID), "quick-mamba1"),
)


def rate_arms() -> list[Arm]:
    """Arms at other learning rates, dense and routed apart."""
    found = []
    for arm in ARMS:
        if arm.name in ("dim-dense", "dim-50", "dit-dense", "dit-50"):
            for rate in ("1e-3", "4e-3"):
                more = (*arm.overrides, f"train.optimizer.lr={rate}")
                label = f"{arm.label}, lr {rate}"
                found.append(replace(arm, name=f"{arm.name}-lr{rate}", label=label, overrides=more))
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


# A quarter of the quickstart's steps with Mamba-1, and for the other mixers what their steps leave
# of the same time (60.8, 75.5, 98.6 and 73.5 ms of CPU time, taking turns).
_QUICK = {"quick-mamba1": 1000, "quick-mamba2": 810, "quick-mamba3": 620, "quick-hybrid": 830}
# What is done at any moment is balanced over the seeds: (arms, seeds, steps).
_ORDER: tuple[tuple[tuple[str, ...], tuple[int, ...], int], ...] = (
    (("dim-dense", "dim-50"), (0, 1, 2), 300),
    (("dim-dense", "dim-50"), (0, 1, 2), 600),
    (("dim-75",), (0, 1, 2), 300),
    (("dim-75",), (0, 1, 2), 600),
    (("dim-dense-lr4e-3", "dim-50-lr4e-3", "dim-dense-lr1e-3", "dim-50-lr1e-3"), (0,), 300),
    (("dim-50-tail",), (0, 1, 2), 600),
    (("dit-dense", "dit-50"), (0, 1), 600),
    (("dim2-dense", "dim2-50"), (0, 1), 600),
    (("dim-dense", "dim-50", "dim-75"), (0, 1, 2), 1200),
    (("dit-dense-lr4e-3", "dit-50-lr4e-3", "dit-dense-lr1e-3", "dit-50-lr1e-3"), (0,), 300),
    (("dit-dense", "dit-50", "dim2-dense", "dim2-50"), (2,), 600),
    (("dit-dense", "dit-50", "dim2-dense", "dim2-50"), (0, 1, 2), 1200),
    (("dim-50-tail", "dit-50-tail"), (0, 1, 2), 1200),
    (("hybrid-dense", "hybrid-50", "dim3-dense", "dim3-50", "dim-rows", "dim-cells"), (0,), 1200),
)


def jobs() -> list[Job]:
    """Every run of the study in the order in which they are made."""
    quick = [Job(arm_of(name), seed, n) for seed in (0, 1, 2) for name, n in _QUICK.items()]
    rest = [Job(arm_of(n), seed, steps) for a, seeds, steps in _ORDER for seed in seeds for n in a]
    return quick[:4] + rest[:6] + quick[4:8] + rest[6:18] + quick[8:] + rest[18:]


TOY_STEPS = 8


def toy(setting: Setting) -> Setting:
    """The same at a size that only shows that it works."""
    small = ("model.dim=16", "train.log_every=2", "train.warmup=2")
    smaller = replace(setting, image_size=16, held=72, sample_steps=2, distance_from=0)
    return replace(smaller, save_every=1, last=small)


def configure(work: Path, setting: Setting, job: Job) -> RunConfig:
    """The configuration of a run whose folder is made in `work`."""
    arm, size, steps = job.arm, setting.image_size, job.steps
    given = [
        f"name={arm.name}-{job.seed}",
        f"out={work}",
        f"seed={job.seed}",
        f"data={{kind: array, path: {work / f'training_images_{size}.npz'}}}",
        f"train.steps={steps}",
        f"train.save_every={setting.save_every}",
        f"train.retain={steps}",
        "train.threads=1",
        "train.report=false",
        "sample.every=0",
    ]
    last = [f"model.image_size={size}", *setting.last]
    config = load_config(BASE, [*given, *setting.overrides, *arm.overrides, *last])
    if arm.trunk is None:
        return config
    begin = steps - round(config.routing.schedule.dense_tail * steps)
    trunk = RunFolder(work / f"{arm.trunk}-{job.seed}").checkpoint(begin)
    started = replace(config.train, start_from=str(trunk))
    return replace(config, name=f"{config.name}-{steps}", train=started)
