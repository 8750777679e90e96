"""What a run is: one frozen dataclass per section of its YAML file, with its checks."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

from tread_ssm.config.infer import infer
from tread_ssm.config.run_folder import RunFolder
from tread_ssm.config.shipped import find
from tread_ssm.config.strict import build, read
from tread_ssm.data import DataConfig
from tread_ssm.diffusion import AllTokens, Auxiliary, Objective, PerRoute
from tread_ssm.diffusion.sampler import SAMPLERS
from tread_ssm.evaluation.metrics import check_extractor, check_metrics
from tread_ssm.models import ModelConfig
from tread_ssm.routing import Route, RoutePlan, RouteSchedule
from tread_ssm.sampling.recipe import Recipe
from tread_ssm.training.averages.power_ema import PosthocEma
from tread_ssm.training.learning_rate import LRSchedule
from tread_ssm.training.optimizer import AdamWConfig, OptimizerConfig

Tracker = Literal["tensorboard", "wandb", "trackio"]

_MOST_THREADS = 1024  # far more crash the interpreter
_NAME = r"\w[\w.+=,@ -]{0,99}"


@dataclass(frozen=True)
class RoutingConfig:
    """Token routing.

    Attributes:
        routes: Which blocks which share of the tokens skips; empty: the dense network.
        loss: How kept and routed tokens weigh in the loss.
        schedule: How the routes change over training.
    """

    routes: tuple[Route, ...] = ()
    loss: AllTokens | PerRoute = field(default_factory=AllTokens)
    schedule: RouteSchedule = field(default_factory=RouteSchedule)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Optimisation and bookkeeping.

    Attributes:
        steps: Optimisation steps of the whole run.
        batch_size: Images of a step, over all processes and accumulated micro-batches.
        micro_batch: Largest batch that one process runs at once; null: its whole part.
        optimizer: The optimiser, with its peak learning rate.
        warmup: Steps over which the learning rate climbs evenly to its peak.
        schedule: The learning rate after the warm-up: it stays ("constant"), or falls along half a
            cosine to 0 after the last step ("cosine").
        clip: Largest norm of the gradient; null: no limit.
        precision: What the network computes in, by autocast. Weights are float32.
        compile: torch.compile the model.
        checkpoint_gradients: Recompute blocks in the backward pass to save memory.
        ema_decay: Decay of the moving average of the weights, which samples come from.
        posthoc_ema: Averages for a width that is chosen after training; null: none.
        label_dropout: Share of labels replaced by the null class, for classifier-free guidance.
        log_every: Steps between lines of metrics.jsonl.
        validate_every: Steps between validations, where `data.validation` holds samples out. The
            last step is validated besides.
        save_every: Steps between checkpoints. The last step, and a stop by a signal, save besides.
        retain: Newest checkpoints that stay; older ones are removed.
        report: Write report.md and report.html into the run folder at the end.
        threads: CPU threads per process; null: all cores where `accelerate launch` started the
            run (it sets one otherwise), else torch's own choice.
        trackers: Services that get the logged numbers as well; tensorboard and wandb get image
            grids and histograms of the averaged weights, too.
        start_from: Checkpoint of another run, a folder, to start from: weights, averages, the
            optimiser's state and the steps done. null: start anew.
        init_from: Weights of another network to start with, at step 0 and with a fresh optimiser:
            the folder of a run, of one of its checkpoints or of converted weights (the average is
            taken), or a file of tensors. What fits by name and shape is taken; the rest is listed.
    """

    steps: int
    batch_size: int
    micro_batch: int | None = None
    optimizer: OptimizerConfig = field(default_factory=AdamWConfig)
    warmup: int = 0
    schedule: LRSchedule = "constant"
    clip: float | None = 1.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    checkpoint_gradients: bool = False
    ema_decay: float = 0.9999
    posthoc_ema: PosthocEma | None = None
    label_dropout: float = 0.1
    log_every: int = 50
    validate_every: int = 500
    save_every: int = 1000
    retain: int = 2
    report: bool = False
    threads: int | None = None
    trackers: tuple[Tracker, ...] = ()
    start_from: str | None = None
    init_from: str | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "micro_batch", "retain"):
            _at_least(name, getattr(self, name), 1)
        for name in ("log_every", "validate_every", "save_every"):
            _at_least(name, getattr(self, name), 1)
        _at_least("warmup", self.warmup, 0)
        if self.threads is not None and not 1 <= self.threads <= _MOST_THREADS:
            raise ValueError(f"threads is {self.threads}; it must lie in 1..{_MOST_THREADS}.")
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise ValueError(f"clip is {self.clip}; it must be greater than 0.")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}; it must satisfy 0 <= ema_decay < 1.")
        if self.start_from is not None and self.init_from is not None:
            raise ValueError(
                "init_from and start_from are both set; start_from resumes another run, init_from "
                "begins a new one with its weights."
            )
        if not 0 <= self.label_dropout <= 1:
            raise ValueError(f"label_dropout is {self.label_dropout}; it must lie in 0..1.")


@dataclass(frozen=True, kw_only=True)
class SampleConfig(Recipe):
    """How images are sampled: the image grids of training, and later commands by default.

    Images come from the averaged weights. The section is exported with them.

    Attributes:
        every: Steps between image grids; 0: none. The last step has one besides.
        classes: Rows at most, one class each, spread evenly over the classes.
        per_class: Images a row.
    """

    steps: int = 40
    guidance: float = 1.5
    every: int = 1000
    classes: int = 10
    per_class: int = 8

    def __post_init__(self) -> None:
        _at_least("every", self.every, 0)
        for name in ("classes", "per_class", "steps"):
            _at_least(name, getattr(self, name), 1)
        super().__post_init__()
        if self.sampler is not None and self.sampler not in SAMPLERS:
            raise ValueError(f"sampler is {self.sampler!r}; use one of {', '.join(SAMPLERS)}.")

    @property
    def recipe(self) -> Recipe:
        """How the image grids are sampled, without when and how many."""
        return Recipe(**{f.name: getattr(self, f.name) for f in fields(Recipe)})


@dataclass(frozen=True)
class EvalConfig:
    """How the averaged weights are measured during training.

    Attributes:
        every: Steps between evaluations; 0: none. The last step is evaluated besides.
        num: Images sampled, always from the same noise and classes, shared by the processes.
        batch: Images a process samples at once.
        metrics: Some of fid, sfid, is, precision, recall, kid.
        extractor: Whose features are compared: inception; emoji, which needs no weights, gives no
            FID and ends at 32 pixels; timm:MODEL, transformers:MODEL or module:function.
        weights: File of weights, of Inception (null: where torch.hub keeps its files) or of a model
            of timm (null: from the Hugging Face Hub).
        reference: .npz or folder of real images, or of their statistics; null: the training data,
            where that is images. Images of a folder are cut and scaled as in training.
        steps: Sampling steps; null: those of the section `sample`.
        guidance: Scale of the guidance; null: that of the section `sample`.
    """

    every: int = 0
    num: int = 10_000
    batch: int = 64
    metrics: tuple[str, ...] = ("fid",)
    extractor: str = "inception"
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
        check_extractor(self.extractor)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run; its results go to the folder `out`/`name`.

    Attributes:
        name: Name of the run and of its folder.
        out: Folder of all runs.
        seed: Of the first weights, the order of the data, and everything random in a step.
        data: What to train on.
        model: The network.
        objective: What the network learns to predict, and along which noise schedule.
        auxiliary: Losses beside the objective's, each kind at most once.
        routing: Token routing.
        train: Optimisation and bookkeeping.
        sample: Image grids during training.
        eval: Evaluations during training.
    """

    name: str
    out: str = "runs"
    seed: int = 0
    data: DataConfig
    model: ModelConfig
    objective: Objective
    auxiliary: tuple[Auxiliary, ...] = ()
    routing: RoutingConfig = field(default_factory=RoutingConfig)
    train: TrainConfig
    sample: SampleConfig = field(default_factory=SampleConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        if not re.fullmatch(_NAME, self.name):
            raise ValueError(
                f"name is {self.name!r}; it becomes the name of a folder: at most 100 letters, "
                f"digits, spaces and . _ - + = , @, the first one a letter, digit or _."
            )
        object.__setattr__(self, "model", self._with_fused_routes())

    def _with_fused_routes(self) -> ModelConfig:
        """The network with a map for each route that rejoins with "fuse"."""
        routes = [r for r in self.routing.routes if r.rejoin == "fuse"]
        spans = {(r.start, r.stop) for r in RoutePlan(routes, self.model.depth).routes}
        return replace(self.model, fuse=tuple(spans | set(self.model.fuse)))

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
        """The routes.

        Raises:
            ValueError: They do not fit the model's depth.
        """
        return RoutePlan(self.routing.routes, self.model.depth)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run's YAML file with `section.key=value` overrides.

    Args:
        path: The file, or the name of a configuration that comes with the package ("dim_l").
        overrides: What replaces values of the file.

    Raises:
        ConfigError: The file cannot be read, or a key or value cannot be used.
    """
    return load_with_notes(path, overrides)[0]


def load_with_notes(
    path: str | Path, overrides: Sequence[str] = ()
) -> tuple[RunConfig, tuple[str, ...]]:
    """As `load_config`, and what the user should know: what was inferred or left out."""
    source = read(find(path), overrides)
    infer(source)
    config = build(RunConfig, source)
    return config, tuple(source.notes)


def _finite(name: str, value: float | None) -> None:
    if value is not None and not math.isfinite(value):
        raise ValueError(f"{name} is {value}; it must be finite (1 is none).")


def _at_least(name: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise ValueError(f"{name} is {value}; it must be at least {least}.")
