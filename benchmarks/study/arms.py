"""What the study trains: settings and arms, as data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Setting:
    """What the arms of a group share. The base is `configs/quickstart.yaml`.

    Attributes:
        image_size: Side of the emoji, in pixels.
        held: Images held out of training: for the loss, and as many samples for FD-emoji.
        sample_steps: Steps of DPM-Solver++.
        distance_every: FD-emoji is measured where the steps are a multiple of this.
        save_every: Steps between checkpoints.
        overrides: Keys of the configuration; arms may change them.
        last: Keys that no arm changes.
    """

    image_size: int
    held: int
    sample_steps: int
    distance_every: int
    save_every: int
    overrides: tuple[str, ...] = ()
    last: tuple[str, ...] = ()


# A constant rate and averaged weights make each checkpoint a fair end of a shorter run.
_EVEN = ("train.schedule=constant", "train.ema_decay=0.995", "routing.schedule.dense_tail=0")
SETTINGS = {
    "tokens64": Setting(16, 512, 10, 500, 250, _EVEN),
    "tokens256": Setting(32, 512, 10, 300, 150, _EVEN),
    "quickstart": Setting(16, 512, 16, 1, 500),
}


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: Of its rows in the results.
        label: Of its lines in tables and plots.
        setting: Key of SETTINGS.
        rate: Learning rate.
        overrides: What it changes of the setting's configuration.
        partner: The arm that it is compared with; None: it is one itself.
        trunk: It starts from the checkpoint of this arm, with the same seed, where its dense tail
            begins, instead of training the same steps again.
    """

    name: str
    label: str
    setting: str
    rate: float
    overrides: tuple[str, ...] = ()
    partner: str | None = None
    trunk: str | None = None

    @property
    def backbone(self) -> Literal["dim", "dit"]:
        """Which colour it has in plots."""
        return "dit" if "dit" in self.name or "modern" in self.name else "dim"


def _routes(drop: float, more: str = "") -> str:
    return f"routing.routes=[{{start: 2, stop: 6, drop: {drop}{more}}}]"


def _family(setting: str, name: str, label: str, rate: float, *model: str) -> list[Arm]:
    """The dense arm of a network, and its routed ones."""

    def arm(suffix: str, what: str, *overrides: str, trunk: str | None = None) -> Arm:
        partner = None if suffix == "dense" else f"{name}-dense"
        full, given = f"{name}-{suffix}", (*model, *overrides)
        return Arm(full, f"{label}, {what}", setting, rate, given, partner, trunk)

    tail = f"routing.schedule.dense_tail={_TAIL[setting]}"
    return [
        arm("dense", "dense", "routing.routes=[]"),
        arm("50", "drop 0.5", _routes(0.5)),
        arm("75", "drop 0.75", _routes(0.75)),
        arm("50-tail", "drop 0.5, dense tail", _routes(0.5), tail, trunk=f"{name}-50"),
    ]


_TAIL = {"tokens64": 0.125, "tokens256": 0.25}
_MAMBA2 = "model.mixer={kind: mamba2, d_state: 64, head_dim: 32}"
_MAMBA2_SMALL = "model.mixer={kind: mamba2, d_state: 32, head_dim: 32}"
_MAMBA3 = "model.mixer={kind: mamba3, d_state: 32, head_dim: 32}"
_DISTANCE = "model.mixer={kind: mamba1, true_distance_conv: true}"
_ATTENTION = ("model.attention_every=4", "model.attention={head_dim: 16}")
_HYBRID, _HYBRID_SMALL = (_MAMBA2, *_ATTENTION), (_MAMBA2_SMALL, *_ATTENTION)
_ZIGMAMBA = "model={kind: zigmamba, depth: 7, dim: 64, image_size: 16, channels: 3, n_classes: 9}"
# Sizes within 11 % of the FLOPs of the DiM of 64 channels: at 64 tokens, and at 256.
_DIT = "model={kind: dit, depth: 7, heads: 4, dim: 56, image_size: 16, channels: 3, n_classes: 9}"
_DIT_SMALL = _DIT.replace("dim: 56", "dim: 44")
_MODERN = "mlp_ratio: 2.5, mlp: swiglu, norm: rms, qk_norm: true, rope: true, value_residual: true"
_DIT_MODERN = _DIT.replace("dim: 56", f"dim: 48, {_MODERN}")
_PADS_ROUTED = ("model.pads=3", "model.pads_in_route=routed")
_ROWS, _CELLS = ", select: {kind: rows}", ", select: {kind: cells, size: 2}"


def _alone(setting: str, prefix: str, rate: float) -> list[Arm]:
    """Other selections and another end, of DiM alone."""
    dense = f"{prefix}dim-dense"
    last = "routing.routes=[{start: 2, stop: 7, drop: 0.5}]"
    return [
        Arm(f"{prefix}dim-rows", "DiM, whole rows", setting, rate, (_routes(0.5, _ROWS),), dense),
        Arm(
            f"{prefix}dim-cells", "DiM, 2 x 2 cells", setting, rate, (_routes(0.5, _CELLS),), dense
        ),
        Arm(f"{prefix}dim-last", "DiM, route to the last block", setting, rate, (last,), dense),
    ]


def _variants() -> list[Arm]:
    """Options of a DiM that drops half of 256 tokens, each alone, and SPRINT's way."""

    def arm(name: str, label: str, *overrides: str, partner: str = "dim-50") -> Arm:
        return Arm(f"dim-{name}", f"DiM, {label}", "tokens256", 2e-3, overrides, partner)

    half, dispersive = _routes(0.5), "{kind: dispersive, block: 2, group: 16}"
    fused = _routes(0.75, ", rejoin: fuse, path_drop: 0.1")
    muon = "train.optimizer={kind: muon, lr: 2e-3}"
    tail = f"routing.schedule.dense_tail={_TAIL['tokens256']}"
    fuse = arm("fuse", "drop 0.75, fuse, path drop", fused, partner="dim-dense")
    fuse_tail = replace(fuse, name="dim-fuse-tail", label=f"{fuse.label}, dense tail")
    return [
        fuse,
        replace(fuse_tail, overrides=(fused, tail), trunk="dim-fuse"),
        arm("gap", "gap-aware decay", half, "model.mixer={kind: mamba1, gap_decay: true}"),
        arm("distance", "true-distance convolution", half, _DISTANCE),
        arm("segments", "segments", _routes(0.5, ", select: {kind: segments}")),
        arm("pads", "pads kept", half, "model.pads=3"),
        arm("pads-routed", "pads routed", half, *_PADS_ROUTED, partner="dim-pads"),
        arm("sra2", "SRA 2", half, "auxiliary=[{kind: sra2, block: 1}]"),
        arm("dispersive", "dispersive loss", half, f"auxiliary=[{dispersive}]"),
        arm("muon", "Muon", half, muon),
        arm("muon-dense", "Muon, dense", "routing.routes=[]", muon, partner="dim-dense"),
    ]


def _quick(name: str, label: str, *model: str) -> Arm:
    """The quickstart with another mixer."""
    partner = None if name == "mamba1" else "quick-mamba1"
    return Arm(f"quick-{name}", f"quickstart, {label}", "quickstart", 4e-3, model, partner)


ARMS = (
    *_family("tokens256", "dim", "DiM", 2e-3),
    *_family("tokens256", "dit", "DiT", 8e-3, _DIT_SMALL),
    # The rate is DiT's; others were not tried.
    *_family("tokens256", "modern", "DiT as of 2026", 8e-3, _DIT_MODERN),
    *_family("tokens256", "dim2", "DiM, Mamba-2", 2e-3, _MAMBA2_SMALL),
    *_family("tokens256", "dim3", "DiM, Mamba-3", 2e-3, _MAMBA3),
    *_family("tokens256", "hybrid", "DiM, Mamba-2 and attention", 2e-3, *_HYBRID_SMALL),
    *_family("tokens256", "zig", "ZigMamba", 2e-3, _ZIGMAMBA),
    *_alone("tokens256", "", 2e-3),
    *_variants(),
    *_family("tokens64", "t64-dim", "DiM", 4e-3),
    *_family("tokens64", "t64-dit", "DiT", 4e-3, _DIT),
    *_alone("tokens64", "t64-", 4e-3),
    _quick("mamba1", "Mamba-1"),
    _quick("mamba2", "Mamba-2", _MAMBA2),
    _quick("mamba3", "Mamba-3", _MAMBA3),
    _quick("hybrid", "Mamba-2 and attention", *_HYBRID),
)
RATES = (1e-3, 2e-3, 4e-3, 8e-3)
_RATED = ("dim-dense", "dim-50", "dit-dense", "dit-50", "t64-dim-dense", "t64-dit-dense")


def rate_arms(name: str | None = None) -> list[Arm]:
    """Arms at other learning rates than their own; of one arm, or of all."""
    return [
        replace(arm, name=f"{arm.name}-lr{rate:g}", label=f"{arm.label}, lr {rate:g}", rate=rate)
        for arm in ARMS
        if arm.name in _RATED and name in (None, arm.name)
        for rate in RATES
        if rate != arm.rate
    ]


def arm_of(name: str) -> Arm:
    """An arm by its name.

    Raises:
        ValueError: There is none.
    """
    known = {arm.name: arm for arm in (*ARMS, *rate_arms())}
    if name not in known:
        raise ValueError(f"{name} is no arm of the study; use one of {', '.join(known)}.")
    return known[name]
