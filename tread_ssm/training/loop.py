"""The training loop: batches in; weights, logs, image grids and checkpoints out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration

from tread_ssm.config.run import RunConfig
from tread_ssm.config.strict import plain
from tread_ssm.data import Data
from tread_ssm.pretrained import Description, export, exported_step
from tread_ssm.processes import is_main
from tread_ssm.training.averages.ema import Ema, ramped
from tread_ssm.training.averages.power_ema import power_decay
from tread_ssm.training.batch import Batch, BatchMaker, ahead
from tread_ssm.training.checkpoints import checkpoint
from tread_ssm.training.checkpoints.checkpoint import Trained
from tread_ssm.training.checkpoints.initial import start_from_weights
from tread_ssm.training.checkpoints.lock import locked
from tread_ssm.training.checkpoints.resume import begin
from tread_ssm.training.heads import with_heads
from tread_ssm.training.learning_rate import learning_rate
from tread_ssm.training.logs.log import Log
from tread_ssm.training.monitoring.watch import Watch
from tread_ssm.training.peers import Peers
from tread_ssm.training.sharding import fsdp_plugin, prepare
from tread_ssm.training.signals import StopSignals
from tread_ssm.training.step import Stepper, logged


def train(config: RunConfig, data: Data) -> int | None:
    """Train from the newest checkpoint, or from the start, to the last step.

    Args:
        config: The run. It is written into the run folder, which no other process may train in.
        data: The training data, as `check` opens it.

    Returns:
        The signal that asked for an early stop (everything is saved), or None at the end.

    Raises:
        ConfigError: The run cannot resume in this folder, or something it needs cannot be used.
        TrainingError: The loss is no longer finite.
        OSError: A checkpoint cannot be written.
    """
    # One process is enough to keep other runs out.
    with locked(config.folder) if is_main() else nullcontext():
        if is_main():
            begin(config, data)
            checkpoint.tidy(config.folder)
        return _train(config, data)


def _train(config: RunConfig, data: Data) -> int | None:
    options = config.train
    accelerator = _accelerator(config)
    torch.manual_seed(config.seed)
    model = config.model.build().to(accelerator.device)
    start_from_weights(model, config)
    whole = with_heads(model, config.auxiliary)
    module, optimizer = prepare(accelerator, whole, options.optimizer.build(whole))
    ema = Ema(model, ramped(options.ema_decay), whole)
    posthoc = options.posthoc_ema
    widths = () if posthoc is None else posthoc.widths
    powers = {width: Ema(model, power_decay(width), whole) for width in widths}
    trained = Trained(accelerator, whole, optimizer, ema, powers)
    start_from = None if options.start_from is None else Path(options.start_from)
    start = checkpoint.resume(config.folder, start_from, trained)
    if options.compile:
        module.compile()
    stepper = Stepper.of(config, accelerator, module, optimizer)
    run = _describe(config, data)
    log = Log(options, config.folder, accelerator, start, logged(config.auxiliary))
    watch = Watch(config, run, data, trained, log, start.step)
    stopped = None
    # Peers inside: while it looks for a lost process, the launcher's SIGTERM must not be deadly.
    with StopSignals(accelerator, start.step) as signals, Peers(accelerator, config.folder):
        watch.catch_up()
        for done, lr, batch in _batches(config, data, accelerator, start.step):
            log.add(stepper.step(batch, lr))
            for average in (ema, *powers.values()):
                average.update(done - 1)
            last = done == options.steps
            measured = watch.validate(done)
            if measured or done % options.log_every == 0 or last:
                log.write(done, lr, measured)
            if posthoc is not None and (done % posthoc.every == 0 or last):
                # Before the checkpoint: a run that resumes from there does not write it again.
                log.checked(done)
                with log.paused():
                    described = replace(run, step=done)
                    checkpoint.save_snapshot(config.folder, done, trained, described)
            stopped = None if last else signals.stop(done)
            if done % options.save_every == 0 or last or stopped:
                progress = log.progress(done)
                with log.paused():
                    described = replace(run, step=done)
                    checkpoint.save(config.folder, options.retain, progress, trained, described)
            if stopped:
                break
            watch.look(done)
    log.close()
    if stopped is None:
        weights = ema.state(gather=accelerator.is_main_process)
        if accelerator.is_main_process:
            # Fewer steps may be asked for now than are done.
            described = replace(run, step=max(start.step, options.steps))
            export(config.folder.path, weights, described)
    accelerator.end_training()
    return stopped


def is_finished(config: RunConfig) -> bool:
    """Whether the run folder already holds the result of all the steps asked for."""
    newest = max(config.folder.checkpoints(), default=0)
    return newest >= config.train.steps and exported_step(config.folder.path) == newest


def _accelerator(config: RunConfig) -> Accelerator:
    options = config.train
    _set_threads(options.threads)
    accelerator = Accelerator(
        # Without being told, accelerate ignores further processes where there is no device.
        cpu=not torch.accelerator.is_available(),
        mixed_precision="no" if options.precision == "fp32" else options.precision,
        log_with=list(options.trackers) or None,
        project_config=ProjectConfiguration(str(config.folder.path), str(config.folder.trackers)),
        fsdp_plugin=fsdp_plugin(),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=_leaves_out(config))],
    )
    if options.trackers:
        accelerator.init_trackers(
            "tread_ssm",
            config={k: str(v) for k, v in plain(config).items()},
            init_kwargs={"wandb": {"name": config.name}, "trackio": {"name": config.name}},
        )
    return accelerator


def _leaves_out(config: RunConfig) -> bool:
    """Whether some steps use only a part of the parameters: none of a skipped route's blocks, or,
    where nothing is dropped, no mask token of a map."""
    return bool(config.model.fuse) or any(r.path_drop for r in config.routing.routes)


def _set_threads(threads: int | None) -> None:
    # `accelerate launch` without a config file sets OMP_NUM_THREADS=1, also on CPUs.
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ
    if threads is None and launched and not torch.cuda.is_available():
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        threads = max(1, (cores or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if threads is not None:
        torch.set_num_threads(threads)


def _batches(
    config: RunConfig, data: Data, accelerator: Accelerator, start: int
) -> Iterator[tuple[int, float, Batch]]:
    """For each step from `start`: steps done after it, its learning rate, this process's batch."""
    options, routing = config.train, config.routing
    maker = BatchMaker.of(config, data)
    share = options.batch_size // accelerator.num_processes
    rows = slice(share * accelerator.process_index, share * (accelerator.process_index + 1))

    on_gpu = accelerator.device.type == "cuda"

    def make(step: int) -> Batch:
        plan = routing.schedule.at(config.plan, step, options.steps)
        batch = maker.make(step, plan, rows)
        return batch.pinned() if on_gpu else batch

    for step, batch in ahead(make, range(start, options.steps), accelerator.device):
        lr = learning_rate(
            step,
            steps=options.steps,
            peak=options.optimizer.lr,
            warmup=options.warmup,
            schedule=options.schedule,
        )
        yield step + 1, lr, batch.to(accelerator.device)


def _describe(config: RunConfig, data: Data) -> Description:
    return Description(
        step=0,
        model=config.model,
        objective=config.objective,
        class_names=data.class_names,
        values=data.values,
        routes=config.routing.routes,
        sample=config.sample,
    )
