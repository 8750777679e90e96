"""The training loop: batches in; weights, logs, grids and checkpoints out."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from torch import nn

from tread_ssm.config.run import RunConfig
from tread_ssm.config.strict import plain
from tread_ssm.data import Data
from tread_ssm.diffusion import Network
from tread_ssm.pretrained import Export, export, exported_step
from tread_ssm.training import checkpoint
from tread_ssm.training.batch import Batch, BatchMaker, ahead
from tread_ssm.training.checkpoint import Progress, Trained
from tread_ssm.training.ema import Ema
from tread_ssm.training.evaluation import Evaluation
from tread_ssm.training.log import Log
from tread_ssm.training.optimizer import make_optimizer
from tread_ssm.training.peers import Peers
from tread_ssm.training.preview import Preview
from tread_ssm.training.schedule import learning_rate
from tread_ssm.training.sharding import fsdp_plugin, prepare
from tread_ssm.training.signals import StopSignals
from tread_ssm.training.step import Stepper


def train(config: RunConfig, data: Data) -> int | None:
    """Train from the newest checkpoint, or from the start, to the last step.

    Returns the signal that asked for an early stop (everything is saved), None at the end.
    Raises TrainingError where the loss is no longer finite.
    """
    options, sample = config.train, config.sample
    accelerator = _accelerator(config)
    torch.manual_seed(config.seed)
    model = config.model.build().to(accelerator.device)
    optimizer: torch.optim.Optimizer = make_optimizer(
        model, lr=options.lr, betas=options.betas, weight_decay=options.weight_decay
    )
    module, optimizer = prepare(accelerator, model, optimizer)
    ema = Ema(model, options.ema_decay)
    trained = Trained(accelerator, model, optimizer, ema)
    found = config.folder.checkpoints()
    start = Progress(step=0, seconds=0.0, window=[])
    if found:
        start = checkpoint.load(found[max(found)], trained)
    if options.compile:
        module.compile()
    stepper = _stepper(config, accelerator, module, optimizer)
    preview = Preview(config, data, accelerator.device)
    evaluation = None
    if config.eval.every:
        evaluation = Evaluation(config, data, accelerator.device, start.step)
    log = Log(config, accelerator, start)
    stopped = None
    with Peers(accelerator, config.folder), StopSignals(accelerator, start.step) as signals:
        for done, lr, batch in _batches(config, data, accelerator, start.step):
            log.add(stepper.step(batch, lr))
            ema.update(done - 1)
            last = done == options.steps
            if done % options.log_every == 0 or last:
                log.write(done, lr)
            if sample.every and (done % sample.every == 0 or last):
                log.checked(done)
                with log.paused(), ema.applied():
                    preview.write(model, done, write=accelerator.is_main_process)
            if evaluation is not None and (done % config.eval.every == 0 or last):
                log.checked(done)
                with log.paused(), ema.applied():
                    metrics = evaluation.measure(model, _describe(config, data, done))
                accelerator.log({f"eval/{k}": v for k, v in metrics.items()}, step=done)
            stopped = None if last else signals.stop(done)
            if done % options.save_every == 0 or last or stopped:
                progress = log.progress(done)
                with log.paused():
                    checkpoint.save(config, progress, trained, _describe(config, data, done))
            if stopped:
                break
    log.close()
    if stopped is None:
        weights = ema.state(model, keep=accelerator.is_main_process)
        if accelerator.is_main_process:
            # Fewer steps may be asked for now than are done.
            step = max(start.step, options.steps)
            export(config.folder.path, weights, _describe(config, data, step))
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
    )
    if options.trackers:
        accelerator.init_trackers(
            "tread_ssm",
            config={k: str(v) for k, v in plain(config).items()},
            init_kwargs={"wandb": {"name": config.name}, "trackio": {"name": config.name}},
        )
    return accelerator


def _set_threads(threads: int | None) -> None:
    # `accelerate launch` without a config file sets OMP_NUM_THREADS=1, also on CPUs.
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ
    if threads is None and launched and not torch.cuda.is_available():
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        threads = max(1, (cores or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if threads is not None:
        torch.set_num_threads(threads)


def _stepper(
    config: RunConfig,
    accelerator: Accelerator,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> Stepper:
    network: Network = module
    if config.train.checkpoint_gradients:
        network = functools.partial(module, checkpoint=True)
    return Stepper(
        accelerator=accelerator,
        module=module,
        network=network,
        optimizer=optimizer,
        objective=config.objective,
        loss=config.routing.loss,
        patch=config.model.patch,
        micro_batch=config.train.micro_batch,
        clip=config.train.clip,
    )


def _batches(
    config: RunConfig, data: Data, accelerator: Accelerator, start: int
) -> Iterator[tuple[int, float, Batch]]:
    """For each step from `start`: steps done after it, its learning rate, this process's batch."""
    options, routing = config.train, config.routing
    maker = BatchMaker(
        data=data,
        objective=config.objective,
        grid=config.grid,
        seed=config.seed,
        size=options.batch_size,
        null_label=config.model.n_classes,
        label_dropout=options.label_dropout,
    )
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
            peak=options.lr,
            warmup=options.warmup,
            shape=options.schedule,
        )
        yield step + 1, lr, batch.to(accelerator.device)


def _describe(config: RunConfig, data: Data, step: int) -> Export:
    return Export(
        step=step,
        model=config.model,
        objective=config.objective,
        class_names=data.class_names,
        values=data.values,
        routes=config.routing.routes,
        sample=config.sample,
    )
