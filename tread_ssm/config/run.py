"""What a run is: one frozen dataclass per section of its YAML file, and the checks across them."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from tread_ssm.config.run_folder import RunFolder
from tread_ssm.config.strict import build, plain, read
from tread_ssm.data import Data, DataConfig, Pixels
from tread_ssm.diffusion import AllTokens, Objective, PerRoute
from tread_ssm.diffusion.sampler import SAMPLERS, check_sampler
from tread_ssm.errors import ConfigError
from tread_ssm.evaluation.metrics import check_metrics
from tread_ssm.models import DiTConfig, ModelConfig
from tread_ssm.routing import Route, RoutePlan, RouteSchedule
from tread_ssm.training.schedule import Shape

Tracker = Literal["tensorboard", "wandb", "trackio"]


@dataclass(frozen=True)
class RoutingConfig:
    """The routes, the loss that accounts for them, and how they change over training."""

    routes: tuple[Route, ...] = ()
    loss: AllTokens | PerRoute = field(default_factory=AllTokens)
    schedule: RouteSchedule = field(default_factory=RouteSchedule)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Optimisation and bookkeeping.

    batch_size:    global, over all processes and accumulated micro-batches.
    micro_batch:   largest batch that one process runs at once; null: its whole part.
    clip:          largest norm of the gradient; null: no limit.
    compile:       torch.compile the model.
    checkpoint_gradients: recompute blocks in the backward pass to save memory.
    label_dropout: share of labels replaced by the null class, for classifier-free guidance.
    save_every:    steps between checkpoints; the newest `keep` stay.
    report:        write report.md into the run folder at the end.
    threads:       CPU threads per process; null: all cores where `accelerate launch` started
                   the run (it sets one otherwise), else torch's own choice.
    """

    steps: int
    batch_size: int
    micro_batch: int | None = None
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    warmup: int = 0
    schedule: Shape = "constant"
    clip: float | None = 1.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    checkpoint_gradients: bool = False
    ema_decay: float = 0.9999
    label_dropout: float = 0.1
    log_every: int = 50
    save_every: int = 1000
    keep: int = 2
    report: bool = False
    threads: int | None = None
    trackers: tuple[Tracker, ...] = ()

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "micro_batch", "log_every", "save_every", "keep"):
            _at_least(name, getattr(self, name), 1)
        _at_least("threads", self.threads, 1)
        _at_least("warmup", self.warmup, 0)
        for name in ("lr", "clip"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} is {value}; it must be greater than 0.")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay is {self.weight_decay}; it must be at least 0.")
        for name, value in zip(
            ("betas.0", "betas.1", "ema_decay"), (*self.betas, self.ema_decay), strict=True
        ):
            if not 0 <= value < 1:
                raise ValueError(f"{name} is {value}; it must satisfy 0 <= {name} < 1.")
        if not 0 <= self.label_dropout <= 1:
            raise ValueError(f"label_dropout is {self.label_dropout}; it must lie in 0..1.")


@dataclass(frozen=True)
class SampleConfig:
    """The grids that are drawn while training goes on, from the averaged weights.

    every:     steps between grids; 0: none. The last step draws one besides.
    classes:   rows at most, one class each, spread evenly over the classes.
    per_class: images a row.
    sampler:   null: heun for EDM and flow, dpm_solver_pp for noise prediction.
    """

    every: int = 1000
    classes: int = 10
    per_class: int = 8
    steps: int = 40
    guidance: float = 1.5
    sampler: str | None = None

    def __post_init__(self) -> None:
        _at_least("every", self.every, 0)
        for name in ("classes", "per_class", "steps"):
            _at_least(name, getattr(self, name), 1)
        _finite("guidance", self.guidance)
        if self.sampler is not None and self.sampler not in SAMPLERS:
            raise ValueError(f"sampler is {self.sampler!r}; use one of {', '.join(SAMPLERS)}.")


@dataclass(frozen=True)
class EvalConfig:
    """How the averaged weights are measured while training goes on; see scripts/evaluate.py.

    every:     steps between evaluations; 0: none. The last step is evaluated besides.
    num:       images drawn, always from the same noise and classes, shared by the processes.
    batch:     images a process draws at once.
    extractor: "emoji" needs no weights and gives no FID.
    weights:   file of Inception's weights; null: where torch.hub keeps its files.
    reference: .npz or folder of real images, or of their statistics; null: the training data,
               where that is an array of images.
    steps, guidance: of sampling; null: those of the section `sample`.
    """

    every: int = 0
    num: int = 10_000
    batch: int = 64
    metrics: tuple[str, ...] = ("fid",)
    extractor: Literal["inception", "emoji"] = "inception"
    weights: str | None = None
    reference: str | None = None
    steps: int | None = None
    guidance: float | None = None

    def __post_init__(self) -> None:
        _at_least("every", self.every, 0)
        for name in ("num", "batch", "steps"):
            _at_least(name, getattr(self, name), 1)
        _finite("guidance", self.guidance)
        check_metrics(self.metrics)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run; its results go to the folder `out`/`name`."""

    name: str
    out: str = "runs"
    seed: int = 0
    data: DataConfig
    model: ModelConfig
    objective: Objective
    routing: RoutingConfig = field(default_factory=RoutingConfig)
    train: TrainConfig
    sample: SampleConfig = field(default_factory=SampleConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    @property
    def folder(self) -> RunFolder:
        """Where the run's results go."""
        return RunFolder(Path(self.out) / self.name)

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of the model's image tokens."""
        return self.model.grid

    @property
    def plan(self) -> RoutePlan:
        """The routes, checked against the model's depth. Raises ValueError."""
        return RoutePlan(self.routing.routes, self.model.depth)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run's YAML file with `section.key=value` overrides. Raises ConfigError."""
    source = read(path, overrides)
    config = build(RunConfig, source)
    if not config.name or Path(config.name).name != config.name:
        raise ConfigError(
            f"{source.at('name')}: name is {config.name!r}; it becomes the name of a folder."
        )
    return config


def check(config: RunConfig) -> Data:
    """Everything that can be known before any weight exists. Raises ConfigError.

    Returns the opened data. Cheap: nothing is read but labels and headers of arrays.
    """
    _check_routes(config)
    _check_machine(config)
    try:
        check_sampler(config.sample.sampler, config.objective)
    except ValueError as error:
        raise ConfigError(f"sample.sampler: {error}") from None
    data = config.data.open()
    model = config.model
    channels, height, width = data.shape
    if (height, width) != (model.image_size, model.image_size):
        raise ConfigError(
            f"model.image_size is {model.image_size}, but the data is {height} x {width}; "
            f"they must agree."
        )
    if channels != model.channels:
        raise ConfigError(
            f"model.channels is {model.channels}, but the data has {channels}; they must agree."
        )
    if isinstance(model, DiTConfig) and model.out_channels not in (None, model.channels):
        raise ConfigError(
            f"model.out_channels is {model.out_channels}, model.channels {model.channels}; a "
            f"learned variance is sampled from, but not trained here: leave out_channels out."
        )
    if model.n_classes not in (0, len(data.class_names)):
        raise ConfigError(
            f"model.n_classes is {model.n_classes}, but the data has {len(data.class_names)} "
            f"classes; they must agree (0 trains without labels)."
        )
    _check_evaluation(config.eval, data)
    return data


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """The keys in which two configurations (or their parts) differ."""
    old, new = plain(old), plain(new)
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        old, new = (dict(enumerate(v)) for v in (old, new))
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [path] if old != new else []
    keys = list(dict.fromkeys([*old, *new]))
    return [
        d
        for k in keys
        for d in differences(old.get(k), new.get(k), f"{path}.{k}" if path else str(k))
    ]


def _check_routes(config: RunConfig) -> None:
    try:
        plan = config.plan
        plan.draw(1, config.grid)
        kept = plan.n_kept(config.grid)
    except ValueError as error:
        raise ConfigError(f"routing.routes: {error}") from None
    rows, columns = config.grid
    for route, k in zip(plan.routes, kept, strict=True):
        if route.drop > 0 and k == rows * columns:
            raise ConfigError(
                f"routing.routes: drop {route.drop} of the route over blocks {route.start} to "
                f"{route.stop - 1} drops nothing, because {route.select} goes by larger units on "
                f"{rows} x {columns} tokens; raise drop, use smaller units, or set drop to 0."
            )


def _check_machine(config: RunConfig) -> None:
    train = config.train
    if train.precision == "fp16" and not torch.cuda.is_available():
        raise ConfigError("train.precision is fp16, which needs a GPU; use bf16 or fp32.")
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if train.batch_size % processes:
        raise ConfigError(
            f"train.batch_size is {train.batch_size}, which {processes} processes cannot share "
            f"evenly; use a multiple of {processes}."
        )
    for tracker in train.trackers:
        if importlib.util.find_spec(tracker) is None:
            raise ConfigError(f"train.trackers names {tracker}; `pip install {tracker}` first.")


def _check_evaluation(options: EvalConfig, data: Data) -> None:
    if options.every == 0:
        return
    for name in ("reference", "weights"):
        path = getattr(options, name)
        if path is not None and not Path(path).exists():
            raise ConfigError(f"eval.{name}: {path} does not exist.")
    compared = set(options.metrics) != {"is"}
    if compared and options.reference is None and not isinstance(data, Pixels):
        raise ConfigError(
            "eval.reference is missing: the real images to compare with cannot be had from this "
            "data; name a file such as VIRTUAL_imagenet256_labeled.npz, or set eval.every to 0."
        )


def _finite(name: str, value: float | None) -> None:
    if value is not None and not math.isfinite(value):
        raise ValueError(f"{name} is {value}; it must be finite (1 is none).")


def _at_least(name: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise ValueError(f"{name} is {value}; it must be at least {least}.")
