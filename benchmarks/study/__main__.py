"""Does routing pay on state-space models? Every run is recorded when it ends.

    python benchmarks/study                          # make the runs that are missing, in order
    python benchmarks/study --only dim-50 --seeds 3  # one row, again or anew
    python benchmarks/study --table                  # what is recorded

One thread a run. A run is trained, measured on held-out images and appended to the results as one
line; an interrupted one resumes from its checkpoint. Seconds are CPU time of the training process,
which other work on the machine changes little.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.study import results
from benchmarks.study.arms import Arm, arm_of, jobs
from benchmarks.study.run import run
from benchmarks.study.tables import table


def wanted(only: list[str], seeds: list[int], rows: list[dict[str, Any]]) -> list[tuple[Arm, int]]:
    """The runs that are asked for and not recorded, in the order of the study."""
    if only and seeds:
        chosen = [(arm_of(name), seed) for seed in seeds for name in only]
    else:
        known = {arm_of(name).name for name in only}  # a name that is none is refused
        chosen = [job for job in jobs() if not only or job[0].name in known]
        chosen = [job for job in chosen if not seeds or job[1] in seeds]
    done = {(row["arm"], row["seed"]) for row in rows}
    return [(arm, seed) for arm, seed in chosen if (arm.name, seed) not in done]


def make(todo: list[tuple[Arm, int]], work: Path, out: Path, workers: int, small: bool) -> None:
    """Make the runs, `workers` at a time, each in a process of its own."""
    # A fresh process a run: its CPU time, its memory and its threads are its own.
    context: Any = multiprocessing.get_context("spawn")
    waiting = list(todo)
    with ProcessPoolExecutor(workers, mp_context=context, max_tasks_per_child=1) as pool:
        running: dict[Future[dict[str, Any]], str] = {}
        while waiting or running:
            while waiting and len(running) < workers:
                arm, seed = waiting.pop(0)
                print(f"{arm.name}, seed {seed}: begins", flush=True)
                running[pool.submit(run, work, arm, seed, small)] = f"{arm.name}, seed {seed}"
            for ended in wait(running, return_when=FIRST_COMPLETED).done:
                row = ended.result()
                results.append(out, row)
                figures = f"loss {row['loss'][-1]:.4f}, FD-emoji {row['distance'][-1:]}"
                print(f"{running.pop(ended)}: {figures}, {row['cpu_seconds']} s", flush=True)


def main() -> None:
    """Parse arguments; make runs, or print what is recorded."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="ARM", help="these arms alone")
    parser.add_argument("--seeds", nargs="+", type=int, default=[], help="these seeds alone")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time")
    parser.add_argument("--table", action="store_true", help="print what is recorded")
    parser.add_argument("--results", type=Path, default=results.RESULTS)
    parser.add_argument("--work", type=Path, default=Path("runs/study"), help="the run folders")
    parser.add_argument("--toy", action="store_true", help="tiny runs, to see that it works")
    options = parser.parse_args()
    if not options.table:
        todo = wanted(options.only, options.seeds, results.read(options.results))
        make(todo, options.work.resolve(), options.results, options.workers, options.toy)
    print(table(results.read(options.results)))


if __name__ == "__main__":
    main()
