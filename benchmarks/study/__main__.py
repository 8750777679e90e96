"""Does routing pay on state-space models? Every run is recorded when it ends.

    python benchmarks/study                          # make the runs that are missing, in order
    python benchmarks/study --only dim-50 --seeds 3 --steps 600  # one row
    python benchmarks/study --table                  # what is recorded
    python benchmarks/study --pictures dim-50        # samples of checkpoints made here
    python benchmarks/study --guidance dim-50        # and their FD-emoji with guidance
    python benchmarks/study --pace dim-dense dim-50  # seconds of a step, on a quiet machine

One thread a run. A run is trained, measured on held-out images and appended to the results as one
line; runs of more steps go on from it, and an interrupted one resumes from its checkpoint. Seconds
are CPU time of the training process, which other work on the machine changes little.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.study import guidance, pace, results
from benchmarks.study.arms import arm_of
from benchmarks.study.jobs import TOY_STEPS, Job, missing, wanted
from benchmarks.study.run import picture, prepare, run
from benchmarks.study.tables import table
from tread_ssm.training.checkpoints.resume import check_folder


def make(todo: list[Job], work: Path, out: Path, workers: int, small: bool) -> None:
    """Make the runs, `workers` at a time, and record each when it ends."""
    context: Any = multiprocessing.get_context("spawn")
    waiting = list(todo)
    for job in todo:  # an arm that cannot be trained is refused before any is
        if job.arm.trunk is None:
            _, config, data = prepare(work, job, small)
            check_folder(config, data)
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        running: dict[Future[dict[str, Any]], Job] = {}
        while waiting or running:
            for job in list(waiting):
                if len(running) < workers and not _blocked(job, running.values()):
                    waiting.remove(job)
                    running[pool.submit(run, work, job, small)] = job
            for ended in wait(running, return_when=FIRST_COMPLETED).done:
                del running[ended]
                row = ended.result()
                results.append(out, row)
                what = f"{row['arm']}, seed {row['seed']}, {row['steps']} steps"
                figures = f"loss {row['loss']:.4f}, FD-emoji {row['distance']}"
                print(f"{what}: {figures}, {row['cpu_seconds']} CPU s", flush=True)


def _blocked(job: Job, running: Iterable[Job]) -> bool:
    """Whether the run waits for its own checkpoint of fewer steps, or for its trunk's."""
    names = (job.arm.name, job.arm.trunk)
    return any(other.seed == job.seed and other.arm.name in names for other in running)


def _guide(
    names: list[str], rows: list[dict[str, Any]], work: Path, out: Path, small: bool
) -> None:
    """Measure the last row of every seed of these arms with guidance, and print the table."""
    out = out.with_name(f"{out.stem}_guidance.jsonl")
    last = {(r["arm"], r["seed"]): r for r in sorted(rows, key=lambda r: r["steps"])}
    for (name, _), row in last.items():
        if name in names:
            for found in guidance.guided(row, work, small, results.read(out)):
                results.append(out, found)
    print(guidance.table(results.read(out)))


def main(argv: Sequence[str] | None = None) -> None:
    """Parse arguments; make runs, or print what is recorded."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="ARM", help="these arms alone")
    parser.add_argument("--seeds", nargs="+", type=int, default=[], help="these seeds alone")
    parser.add_argument("--steps", type=int, help="this number of steps alone")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time")
    parser.add_argument("--table", action="store_true", help="print what is recorded")
    parser.add_argument(
        "--pictures", nargs="+", metavar="ARM", help="sample these arms' first seed"
    )
    parser.add_argument("--guidance", nargs="+", metavar="ARM", help="measure guided samples")
    parser.add_argument("--pace", nargs="+", metavar="ARM", help="time a step of each in turns")
    parser.add_argument("--repeats", type=int, default=25, help="turns of --pace (25)")
    parser.add_argument("--results", type=Path, default=results.RESULTS)
    parser.add_argument("--work", type=Path, default=Path("runs/study"), help="the run folders")
    parser.add_argument("--toy", action="store_true", help="tiny runs, to see that it works")
    options = parser.parse_args(argv)
    rows, work = results.read(options.results), options.work.resolve()
    if options.pictures:
        for name in options.pictures:
            points = sorted({r["steps"] for r in rows if r["arm"] == name and r["seed"] == 0})
            picture(work, arm_of(name), points, options.toy, options.results.with_suffix(""))
        return
    if options.pace:
        pace.record(pace.measure([*options.pace], work, options.repeats))
        return
    if options.guidance:
        _guide(options.guidance, rows, work, options.results, options.toy)
        return
    if not options.table:
        chosen = wanted(options.only, options.seeds, options.steps)
        if options.toy:
            chosen = list(dict.fromkeys(replace(job, steps=TOY_STEPS) for job in chosen))
        todo = missing(chosen, rows)
        make(todo, work, options.results, options.workers, options.toy)
    print(table(results.read(options.results)))


if __name__ == "__main__":
    main()
