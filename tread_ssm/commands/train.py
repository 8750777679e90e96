"""Train a model.

    tread-ssm train --config quickstart
Any key can be overridden: train.batch_size=512 routing.routes.0.drop=0.4. Rerun the command to
resume from the newest checkpoint. Exit codes: 0 done (or saved after SIGTERM), 1 training failed
or another process was lost, 2 the configuration cannot be used, 130 saved after Ctrl-C.
"""

from __future__ import annotations

import argparse
import signal
from collections.abc import Sequence
from contextlib import nullcontext

from tread_ssm import command
from tread_ssm.command import say
from tread_ssm.config.check import check, check_memory_for
from tread_ssm.config.run import RunConfig, load_with_notes
from tread_ssm.config.strict import dump
from tread_ssm.data import Data, MissingDataError
from tread_ssm.errors import ConfigError
from tread_ssm.processes import is_main
from tread_ssm.report.plan import plan_text
from tread_ssm.training.checkpoints.resume import check_folder
from tread_ssm.training.logs.console import console_log


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = command.parser("train", __doc__)
    parser.add_argument("--config", required=True, help="a YAML file, or a name, such as dim_l")
    parser.add_argument("--dry-run", action="store_true", help="describe the run and stop")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    command.add_processes(parser)
    args = parser.parse_intermixed_args(argv)
    return command.run_on(args.processes, "train", argv, lambda: _run_alike(args))


def _run_alike(args: argparse.Namespace) -> int:
    """Run, where all processes meet an error of the configuration alike: one says it."""
    try:
        return _run(args)
    except ConfigError as error:
        say(f"error: {error}", error=True)
        return 2
    except KeyboardInterrupt:
        say("Interrupted; rerun the command to resume.", error=True)
        return 130


def _run(args: argparse.Namespace) -> int:
    config, notes = load_with_notes(args.config, args.overrides)
    for note in notes:
        say(f"note: {note}", error=True)
    if args.dry_run:
        return _describe(config)
    data = check(config)
    check_memory_for(config, data)
    _check_sampling(config)
    notes = (*data.notes, *check_folder(config, data))
    with console_log(config.folder.console) if is_main() else nullcontext():
        for note in notes:
            say(f"note: {note}", error=True)
        _say_initial(config)
        return _train(config, data)


def _describe(config: RunConfig) -> int:
    try:
        check(config)
    except MissingDataError as error:
        say(f"note: training cannot start yet: {error}", error=True)
    _check_sampling(config)
    _say_initial(config)
    say(f"{dump(config)}\n{plan_text(config)}")
    return 0


def _check_sampling(config: RunConfig) -> None:
    """Raises ConfigError where the image grids cannot be guided as the configuration says."""
    from tread_ssm.sampling.guidance import check_guidance

    try:
        check_guidance(config.sample, config.model, config.objective, config.plan)
    except ValueError as error:
        raise ConfigError(f"sample: {error}") from None


def _say_initial(config: RunConfig) -> None:
    """Say what weights the run starts with. Raises ConfigError where they cannot be had."""
    if config.train.init_from is None:
        return
    from tread_ssm.training.checkpoints.initial import initial_weights

    found = initial_weights(config)
    if found is not None:
        say(f"note: {found}", error=True)


def _train(config: RunConfig, data: Data) -> int:
    # Only now what takes seconds to import.
    from tread_ssm.training.logs.log import TrainingError
    from tread_ssm.training.loop import is_finished, train

    if is_finished(config):
        say(
            f"{config.folder.path} is finished ({config.train.steps} steps); raise train.steps to "
            f"train longer, or choose another name."
        )
        if not config.folder.report.is_file():
            _report(config)
        return 0
    try:
        stopped = train(config, data)
    except TrainingError as error:  # all processes meet it alike
        say(f"error: {error}", error=True)
        return 1
    except (ConfigError, OSError) as error:  # perhaps one alone: a damaged image, a full disk
        command.fail(error)
        return 1
    if stopped is not None:
        say(f"Saved after {signal.Signals(stopped).name}; rerun the command to resume.")
        return 130 if stopped == signal.SIGINT else 0
    _report(config)
    say(f"Done: {config.folder.path}")
    return 0


def _report(config: RunConfig) -> None:
    """What people read of a finished run: its model card, and its report where it asks for one."""
    if not is_main():
        return
    from tread_ssm.report.card import write_card

    write_card(config.folder)
    if config.train.report:
        from tread_ssm.report.report import write_report

        say(f"Report: {write_report(config.folder.path)}")
