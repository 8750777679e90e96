"""Whether a run can work: the checks across the sections of its configuration, data and machine."""

from __future__ import annotations

import importlib.util
import math
import os
from pathlib import Path

import torch

from tread_ssm.config.run import EvalConfig, RunConfig
from tread_ssm.data import Data, PixelValues
from tread_ssm.data.features import CachedFeatures, open_features
from tread_ssm.data.held_out import split
from tread_ssm.diffusion import Contrastive, Flow, Repa
from tread_ssm.diffusion.sampler import check_sampler
from tread_ssm.errors import ConfigError
from tread_ssm.evaluation.metrics import METRICS
from tread_ssm.files import MANIFEST
from tread_ssm.machine import check_memory
from tread_ssm.models import DiTConfig
from tread_ssm.models.cost import count_parameters
from tread_ssm.tables import short

_MOST_BLOCKS = 1000
_MOST_GIGABYTES = 64


def check(config: RunConfig) -> Data:
    """Check everything that can be known before any weight exists.

    Cheap: nothing is read but labels and headers of arrays.

    Returns:
        The opened data.

    Raises:
        ConfigError: Something cannot be used, or parts do not fit each other.
    """
    _check_places(config)
    _check_routes(config)
    _check_auxiliary(config)
    _check_machine(config)
    try:
        check_sampler(config.sample.sampler, config.objective)
    except ValueError as error:
        raise ConfigError(f"sample.sampler: {error}") from None
    data = config.data.open()
    split(len(data.labels), config.data.validation)  # says whether it can be
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
    features_of(config, data)
    _check_limits(config, data)
    _check_evaluation(config.eval, data)
    return data


def check_memory_for(config: RunConfig, data: Data) -> None:
    """Refuse a model or a batch that this machine cannot hold, by what they take at least.

    The state is weights, gradients, their average and one moment of the optimiser in float32.
    FSDP shares it among the processes.

    Raises:
        ConfigError: It cannot fit.
    """
    world, local = (int(os.environ.get(n, "1")) for n in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    parameters = count_parameters(config.model)
    state = 16 * parameters / (world if sharded else 1)
    have = None
    if torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU") != "true":
        have = torch.cuda.get_device_properties(0).total_memory
    check_memory(
        state if have else state * local,
        f"model: training its {short(parameters)} parameters",
        "Make model.dim or model.depth smaller.",
        have,
    )
    batch = config.train.batch_size
    check_memory(
        4 * batch * math.prod(data.shape) * local,
        f"train.batch_size is {batch:,}: the noise of a batch, which every process makes,",
        "Make it smaller.",
    )


def _check_places(config: RunConfig) -> None:
    folder = config.folder.path
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise ConfigError(f"out and name: {path} is a file; runs need a folder.")
    start = config.train.start_from
    if start is not None and not (Path(start) / MANIFEST).is_file():
        raise ConfigError(f"train.start_from: {start} is no checkpoint.")


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


def _check_auxiliary(config: RunConfig) -> None:
    train, depth = config.train, config.model.depth
    kinds = [loss.kind for loss in config.auxiliary]
    share = train.batch_size // int(os.environ.get("WORLD_SIZE", "1"))
    for i, loss in enumerate(config.auxiliary):
        where = f"auxiliary.{i}"
        if loss.kind in kinds[:i]:
            raise ConfigError(f"{where}: {loss.kind} stands there twice; once is enough.")
        if isinstance(loss, Contrastive) and not isinstance(config.objective, Flow):
            raise ConfigError(
                f"{where}: contrastive flow matching compares velocities, which the objective "
                f"{config.objective.kind} does not predict; use {{kind: flow}} or leave it out."
            )
        for name, size in (("train.batch_size", share), ("train.micro_batch", train.micro_batch)):
            if size is not None and size % loss.together:
                raise ConfigError(
                    f"{where}: {loss.kind} compares {loss.together} samples with one another, but "
                    f"{name} gives each process {size} at once; use a multiple of "
                    f"{loss.together}."
                )
        if loss.block is None:
            continue
        if not -depth <= loss.block < depth:
            raise ConfigError(
                f"{where}: block is {loss.block}; the model has the blocks 0 to {depth - 1}."
            )
        block = loss.block % depth
        route = next((r for r in config.plan.routes if r.start <= block < r.stop), None)
        if loss.whole_grid and route is not None:
            raise ConfigError(
                f"{where}: the {loss.kind} loss has a convolution as its head, which needs the "
                f"whole grid, but block {block} lies in the route over blocks {route.start} to "
                f"{route.stop - 1}. Use projector: mlp, or a block outside."
            )


def features_of(config: RunConfig, data: Data) -> CachedFeatures | None:
    """The cached features that a loss of the run needs. None: it needs none.

    Raises:
        ConfigError: They cannot be used, or do not fit the data or the network.
    """
    found = [loss for loss in config.auxiliary if isinstance(loss, Repa)]
    if not found:
        return None
    features = open_features(found[0].features, data.labels, config.data.flip)
    channels, *grid = features.manifest.shape
    if channels != found[0].channels or tuple(grid) != config.grid:
        raise ConfigError(
            f"auxiliary: repa has channels {found[0].channels} and the network "
            f"{config.grid[0]} x {config.grid[1]} tokens, but {found[0].features} holds features "
            f"of {channels} channels for {grid[0]} x {grid[1]} patches; set channels, or cache "
            f"them at another size."
        )
    return features


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


def _check_limits(config: RunConfig, data: Data) -> None:
    """Refuse what no machine holds, also where only the plan is looked at.

    Every process makes the noise of the global batch. `check_memory_for` asks for this machine.
    """
    if config.model.depth > _MOST_BLOCKS:
        raise ConfigError(f"model.depth is {config.model.depth:,}; use at most {_MOST_BLOCKS:,}.")
    images = config.train.batch_size
    gigabytes = images * math.prod(data.shape) * 4 / 1e9
    if gigabytes > _MOST_GIGABYTES:
        raise ConfigError(
            f"train.batch_size is {images:,}; its noise alone would take {gigabytes:,.0f} GB of "
            f"each process. Use at most {int(images * _MOST_GIGABYTES / gigabytes):,}."
        )


def _check_evaluation(options: EvalConfig, data: Data) -> None:
    if options.every == 0:
        return
    for name in ("reference", "weights"):
        path = getattr(options, name)
        if path is not None and not Path(path).exists():
            raise ConfigError(f"eval.{name}: {path} does not exist.")
    compared = any(METRICS[name].compared for name in options.metrics)
    if compared and options.reference is None and not isinstance(data.values, PixelValues):
        raise ConfigError(
            "eval.reference is missing: the real images to compare with cannot be had from this "
            "data; name a file such as VIRTUAL_imagenet256_labeled.npz, or set eval.every to 0."
        )
