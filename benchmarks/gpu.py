"""Everything worth knowing from a GPU, by one command, the most valuable first.

    python benchmarks/gpu.py                  # about eight minutes; --minutes for more or fewer
    python benchmarks/gpu.py --parts scan-triton model-dim_l

First the tests that need a GPU; then the operations, forward + backward in bf16 at the shapes of
DiM-L and DiM-H; then training steps of whole models; last, how much of the loader's work a step
hides. Each part is a process of its own, so that a kernel that fails loses nothing else. Results
are written as they come, to <out>.json and <out>.md. Without a GPU it says so and exits with 0.
With --toy the same parts run at small sizes, on the CPU too: that is their test.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tread_ssm import Route, RoutePlan
from tread_ssm.config.check import check
from tread_ssm.config.run import load_config
from tread_ssm.files import replacing
from tread_ssm.scan import causal_conv, selective_scan, ssd
from tread_ssm.scan.dispatch import unavailable
from tread_ssm.scan.ops import CONV, SCAN, SSD, Operation
from tread_ssm.tables import markdown_table
from tread_ssm.timing import take_turns
from tread_ssm.training.batch import BatchMaker, ahead

ROOT = Path(__file__).parents[1]
LENGTHS = (64, 128, 183, 238, 256, 366, 512, 1230)
TOO_SLOW = ("chunked", "reference")
TESTS = (
    "tests/scan/selective/test_triton.py",
    "tests/scan/selective/test_cuda.py",
    "tests/scan/selective/test_mamba_ssm.py",
    "tests/scan/decayed",
)
MODELS = ("dim_l", "dim2_l", "dim3_l", "dim2_hybrid_l", "dit_xl")

Row = dict[str, str | float]


@dataclass(frozen=True)
class Size:
    """How large everything is.

    Attributes:
        widths: Inner channels of the operations, by the model that has them.
        lengths: Tokens.
        batch: Samples of an operation.
        model_batch: Samples of a training step.
        repeats: Timed calls, of which the median counts.
        overrides: Keys of the models' configurations that are set otherwise.
        lengthening: The loader's data set is repeated for a step of this many samples.
    """

    widths: dict[str, int]
    lengths: tuple[int, ...]
    batch: int
    model_batch: int
    repeats: int
    overrides: tuple[str, ...] = ()


FULL = Size({"DiM-L": 2048, "DiM-H": 3072}, LENGTHS, batch=64, model_batch=128, repeats=10)
TOY = Size({"toy": 128}, (5, 9), batch=2, model_batch=2, repeats=1, overrides=("model.image_size=8",
           "model.dim=64", "model.depth=5", "routing.routes=[]"))  # fmt: skip


# Parts: each yields rows of its table ------------------------------------------------------------


def tests(device: str, size: Size, path: str) -> Iterator[Row]:
    """The tests marked `gpu` of one file or folder; all of it where there is no GPU."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", path]
    command += ["-m", "gpu"] if device == "cuda" else ["-k", "says_why or length_1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    result = lines[-1] if lines else done.stderr[-300:]
    yield {"tests": path, "result": result, "failed": "; ".join(failed)[:2000]}


def scan_call(backend: str, batch: int, length: int, width: int, device: str) -> Callable[[], None]:
    """Forward and backward of one selective scan, N = 16."""
    g = torch.Generator(device).manual_seed(0)
    token = partial(torch.randn, batch, length, generator=g, device=device)
    wide = {
        "A": -torch.arange(1, 17.0, device=device).repeat(width, 1),
        "D": torch.ones(width, device=device),
        "delta_bias": torch.zeros(width, device=device),
    }
    data = {"u": token(width), "delta": token(width) - 3, "z": token(width)}
    data |= {"B": token(16), "C": token(16)}
    data = {name: x.bfloat16() for name, x in data.items()}
    order = torch.randperm(length, device=device)
    return differentiated(partial(selective_scan, order=order, backend=backend), **data, **wide)


def mamba_call(
    backend: str, batch: int, length: int, width: int, device: str
) -> Callable[[], None]:
    """Forward and backward of mamba-ssm's scan on tensors as it wants them: (B, D, L).

    It visits tokens in raster order; the rows of our backends visit them in a random one.
    """
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    channel = partial(torch.randn, batch, device=device)
    data = {"u": channel(width, length), "delta": channel(width, length) - 3}
    data |= {"z": channel(width, length), "B": channel(16, length), "C": channel(16, length)}
    data = {name: x.bfloat16() for name, x in data.items()}
    A = -torch.arange(1, 17.0, device=device).repeat(width, 1)
    wide = {"A": A, "D": torch.ones(width, device=device)}
    wide["delta_bias"] = torch.zeros(width, device=device)
    return differentiated(partial(selective_scan_fn, delta_softplus=True), **data, **wide)


def conv_call(backend: str, batch: int, length: int, width: int, device: str) -> Callable[[], None]:
    """Forward and backward of one causal convolution, W = 4."""
    x = torch.randn(batch, length, width, device=device).bfloat16()
    weight = torch.randn(width, 4, device=device)
    order = torch.randperm(length, device=device)
    return differentiated(partial(causal_conv, order=order, backend=backend), x=x, weight=weight)


def ssd_call(backend: str, batch: int, length: int, width: int, device: str) -> Callable[[], None]:
    """Forward and backward of one decayed product, N = 64, P = 64, one group."""
    token = partial(torch.randn, batch, length, device=device)
    data = {"q": token(1, 64), "k": token(1, 64), "v": token(width // 64, 64)}
    data = {name: x.bfloat16() for name, x in data.items()}
    order = torch.randperm(length, device=device)
    function = partial(ssd, order=order, backend=backend)
    return differentiated(function, **data, log_decay=-token(width // 64).exp())


def attention_call(
    backend: str, batch: int, length: int, width: int, device: str
) -> Callable[[], None]:
    """Forward and backward of torch's attention, heads of 64, half the inner width as in a DiT."""
    heads = (batch, width // 128, length, 64)
    q, k, v = (torch.randn(heads, device=device).bfloat16() for _ in range(3))
    return differentiated(F.scaled_dot_product_attention, query=q, key=k, value=v)


def differentiated(function: Callable[..., Tensor], **inputs: Tensor) -> Callable[[], None]:
    """A call of forward and backward with the gradient of every input."""
    leaves = {name: x.requires_grad_() for name, x in inputs.items()}

    def call() -> None:
        y = function(**leaves)
        torch.autograd.grad(y, list(leaves.values()), torch.ones_like(y))

    return call


class Timed(NamedTuple):
    """What is timed: a call by each backend; `operation` says whether that can run."""

    operation: Operation | None
    backends: Sequence[str]
    make: Callable[..., Callable[[], None]]


OPERATIONS = {
    "scan": Timed(SCAN, tuple(SCAN.backends), scan_call),
    "mamba": Timed(SCAN, ("mamba_ssm",), mamba_call),
    "ssd": Timed(SSD, tuple(SSD.backends), ssd_call),
    "conv": Timed(CONV, tuple(CONV.backends), conv_call),
    "attention": Timed(None, ("torch",), attention_call),
}


def operation(device: str, size: Size, name: str, backend: str) -> Iterator[Row]:
    """Milliseconds of one operation by one backend, at every width and length."""
    timed = OPERATIONS[name]
    if timed.operation is not None:
        reason = unavailable(backend, torch.device(device), torch.bfloat16, timed.operation)
        if reason:
            yield {"operation": name, "backend": backend, "shape": "", "ms": "", "note": reason}
            return
    for model, width in size.widths.items():
        for length in size.lengths:
            call = timed.make(backend, size.batch, length, width, device)
            ms = 1e3 * statistics.median(take_turns({"": call}, size.repeats)[""])
            shape = f"{model}: {size.batch} x {length} x {width}"
            yield {"operation": name, "backend": backend, "shape": shape, "ms": ms, "note": ""}


def model(device: str, size: Size, name: str) -> Iterator[Row]:
    """Images per second and peak memory of training steps, dense and routed, eager and compiled."""
    from benchmarks.models import training_step

    config = load_config(ROOT / "configs" / f"{name}.yaml", size.overrides)
    routed = config.plan if config.plan.routes else RoutePlan((Route(1, -1),), config.model.depth)
    plans = {"dense": RoutePlan((), config.model.depth), "routed": routed}
    for compiled in (False, True) if device == "cuda" else (False,):
        for kind, plan in plans.items():
            if device == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            row: Row = {"model": name, "kind": kind, "compiled": "yes" if compiled else "no"}
            try:
                step = training_step(config.model, plan, size.model_batch, compiled=compiled)
                seconds = statistics.median(take_turns({"": step}, size.repeats)[""])
            except RuntimeError as error:  # out of memory; the next may need less
                yield {**row, "note": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
                continue
            peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0
            yield {**row, "images_per_s": size.model_batch / seconds, "peak_gib": peak, "note": ""}


def overlap(device: str, size: Size) -> Iterator[Row]:
    """Seconds of a step alone, of making its batch alone, and of both as training runs them."""
    from benchmarks.models import training_step

    config = load_config(ROOT / "configs" / "quickstart.yaml")
    maker = BatchMaker(
        data=check(config), objective=config.objective, grid=config.grid, seed=0,
        size=size.model_batch, null_label=config.model.n_classes, label_dropout=0.1,
    )  # fmt: skip
    step = training_step(config.model, config.plan, size.model_batch)
    make = partial(maker.make, plan=config.plan, rows=slice(size.model_batch))
    steps = range(5 * size.repeats)

    def together() -> None:
        for _, batch in ahead(lambda i: make(i), steps, torch.device(device)):
            batch.to(torch.device(device))
            step()

    sides = {
        "step": lambda: [step() for _ in steps],
        "batch": lambda: [make(i) for i in steps],
        "both": together,
    }
    seconds = {name: t[0] / len(steps) for name, t in take_turns(sides, 1).items()}
    yield {f"{name} s": value for name, value in seconds.items()}


def parts(names: tuple[str, ...]) -> dict[str, Callable[[str, Size], Iterator[Row]]]:
    """All parts in order of their value, or those of these names."""
    found: dict[str, Callable[[str, Size], Iterator[Row]]] = {}
    for path in TESTS:
        found[f"tests-{Path(path).stem}"] = partial(tests, path=path)
    for name, timed in OPERATIONS.items():
        for backend in timed.backends:
            if backend not in TOO_SLOW:
                found[f"{name}-{backend}"] = partial(operation, name=name, backend=backend)
    for name in MODELS:
        found[f"model-{name}"] = partial(model, name=name)
    found["overlap"] = overlap
    unknown = set(names) - found.keys()
    if unknown:
        raise ValueError(f"no parts {sorted(unknown)}; there are {', '.join(found)}.")
    return {name: part for name, part in found.items() if not names or name in names}


# Running them ------------------------------------------------------------------------------------


def run_part(name: str, device: str, toy: bool, seconds: float) -> tuple[list[Row], str]:
    """The rows that a part gave before it ended, and what went wrong, or ""."""
    command = [sys.executable, __file__, "--part", name, "--device", device]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command + (["--toy"] if toy else []),
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        out, errors = process.communicate(timeout=max(seconds, 1))
        problem = ""
    except subprocess.TimeoutExpired:
        process.kill()
        out, errors = process.communicate()
        problem = f"stopped: its {seconds:.0f} s were over"
    rows = [json.loads(line) for line in out.splitlines() if line.startswith('{"')]
    if not problem and process.returncode:
        problem = f"exit {process.returncode}: {' | '.join(errors.strip().splitlines()[-3:])}"
    return rows, problem


def machine(device: str) -> Row:
    """Card, driver and versions."""
    about: Row = {"torch": torch.__version__, "cuda": str(torch.version.cuda), "device": device}
    if device == "cuda":
        about["card"] = torch.cuda.get_device_name()
    if shutil.which("nvidia-smi"):
        fields = "driver_version,power.limit,power.draw,clocks.sm"
        command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        about |= dict(zip(fields.split(","), done.stdout.strip().split(", "), strict=False))
    return about


def markdown(report: dict) -> str:
    """One table for each group of parts with equal columns."""
    lines = ["# On a GPU", "", ", ".join(f"{k} {v}" for k, v in report["machine"].items()), ""]
    tables: dict[str, list[Row]] = {}
    for name, part in report["parts"].items():
        tables.setdefault(name.partition("-")[0], []).extend(part["rows"])
    for title, rows in tables.items():
        if rows:
            head = list(dict.fromkeys(key for row in rows for key in row))
            cells = [[_cell(row.get(key, "")) for key in head] for row in rows]
            lines += [f"## {title}", "", markdown_table(head, cells), ""]
    problems = [f"- {n}: {p['problem']}" for n, p in report["parts"].items() if p["problem"]]
    return "\n".join([*lines, *(["## What went wrong", "", *problems, ""] if problems else [])])


def _cell(value: str | float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "/")


def main() -> None:
    """Run every part in its own process, or one part in this one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--parts", nargs="+", default=[], help="only these")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gpu")
    parser.add_argument("--toy", action="store_true", help="small sizes, on the CPU without a GPU")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--device", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        part = parts((options.part,))[options.part]
        for row in part(options.device, TOY if options.toy else FULL):
            print(json.dumps(row), flush=True)
        return
    if not torch.cuda.is_available() and not options.toy:
        print("There is no GPU here; nothing was measured.")
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    end = time.monotonic() + 60 * options.minutes
    report: dict = {"machine": machine(device), "parts": {}}
    for name in parts(tuple(options.parts)):
        left = end - time.monotonic()
        rows: list[Row] = []
        problem = f"left out: the {options.minutes:g} minutes were over"
        if left > 0:
            rows, problem = run_part(name, device, options.toy, left)
        report["parts"][name] = {"rows": rows, "problem": problem}
        print(f"{name}: {len(rows)} rows{'; ' + problem if problem else ''}", flush=True)
        for suffix, text in ((".json", json.dumps(report, indent=1)), (".md", markdown(report))):
            with replacing(options.out.with_suffix(suffix)) as file:
                file.write_text(text + "\n")


if __name__ == "__main__":
    main()
