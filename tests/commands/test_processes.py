"""The training command in several processes: started, killed, stopped, resumed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.commands.runs import TINY
from tread_ssm.training.logs.metrics import read_metrics

ROOT = Path(__file__).parents[2]
CONFIG = f"""{TINY}
train:
  {{steps: 60, batch_size: 4, micro_batch: 1, optimizer: {{kind: adamw, lr: 1e-3}}, warmup: 20,
   schedule: cosine, log_every: 3, save_every: 5}}
"""
TORCHRUN = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone")
LAUNCH = ("-m", "accelerate.commands.launch", "--num_processes", "2", "--config_file")
DDP = (*LAUNCH, "configs/accelerate/ddp.yaml")
FSDP2 = (*LAUNCH, "configs/accelerate/fsdp2.yaml")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(CONFIG)
    return path


def start(config: Path, *arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    command = [sys.executable, *launcher, "scripts/train.py", "--config", str(config)]
    return subprocess.Popen(
        [*command, f"out={config.parent}", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=100)
    return process.returncode, out, err


def last_step(run: Path) -> int:
    rows = read_metrics(run / "metrics.jsonl")
    return int(rows[-1]["step"]) if rows else 0


def wait_for(process: subprocess.Popen[str], reached: Callable[[], bool]) -> None:
    end = time.monotonic() + 100
    while not reached():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.005)


def process_of(launcher: subprocess.Popen[str], rank: int) -> int:
    """The id of the process that a launcher started for a rank (Linux)."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    wanted = f"RANK={rank}".encode()
    found = [c for c in children if wanted in Path(f"/proc/{c}/environ").read_bytes().split(b"\0")]
    return int(found[0])


def newest(run: Path) -> int:
    return max(int(p.name.split("-")[1]) for p in (run / "checkpoints").glob("step-*"))


needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")


@needs_proc
def test_a_run_survives_a_killed_process_and_changes_of_their_number(config: Path) -> None:
    whole, chain = (config.parent / name for name in ("whole", "chain"))
    uninterrupted = start(config, "name=whole")

    # Two processes; one is killed: the other says so and ends at once.
    process = start(config, "name=chain", launcher=DDP)
    wait_for(process, lambda: last_step(chain) >= 9)
    killed_at = time.monotonic()
    os.kill(process_of(process, 1), signal.SIGKILL)
    code, _, err = finish(process)
    assert time.monotonic() - killed_at < 15
    assert code != 0
    (message,) = re.findall("^error: .*", err, re.MULTILINE)
    assert "process 1 of this run ended" in message
    assert message.endswith(f"Rerun the command to resume from step {newest(chain)}.")

    # One process resumes.
    process = start(config, "name=chain")
    wait_for(process, lambda: last_step(chain) >= 18)
    process.send_signal(signal.SIGTERM)
    code, out, err = finish(process)
    assert code == 0, err
    assert "SIGTERM" in out
    single = newest(chain)
    assert single >= 18

    # Two again (without a GPU this launch file gives plain data parallelism), stopped by Ctrl-C,
    # which the launcher hands on once more.
    process = start(config, "name=chain", launcher=FSDP2)
    wait_for(process, lambda: last_step(chain) >= single + 6)
    os.killpg(process.pid, signal.SIGINT)
    code, out, err = finish(process)
    assert "Saved after SIGINT" in out, err
    assert "KeyboardInterrupt" not in err
    assert newest(chain) >= single + 6

    # And one to the end.
    code, out, err = finish(start(config, "name=chain"))
    assert code == 0, err
    assert "Done: " in out
    code, _, err = finish(uninterrupted)
    assert code == 0, err

    rows = [read_metrics(run / "metrics.jsonl") for run in (whole, chain)]
    assert [r["step"] for r in rows[1]] == list(range(3, 61, 3))
    for a, b in zip(*rows, strict=True):
        for key in ("lr", "loss", "kept_loss", "routed_loss", "grad_norm"):
            assert b[key] == pytest.approx(a[key], rel=1e-3), (key, a["step"])
    weights = [load_file(run / "ema.safetensors") for run in (whole, chain)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=1e-3, atol=1e-3)


STUCK = """
import ctypes, os, signal, sys
from pathlib import Path

from accelerate import Accelerator

from tread_ssm.config.run_folder import RunFolder
from tread_ssm.training.peers import Peers
from tread_ssm.training.signals import StopSignals

accelerator = Accelerator(cpu=True)
with StopSignals(accelerator), Peers(accelerator, RunFolder(Path(sys.argv[1]))):
    accelerator.wait_for_everyone()
    if accelerator.process_index == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    # As a process that waits for a GPU that waits for another: in C, deaf to signals.
    mutex = ctypes.create_string_buffer(256)
    libc = ctypes.CDLL(None)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)
"""


@needs_proc
def test_a_process_stuck_in_a_library_ends_too(tmp_path: Path) -> None:
    script = tmp_path / "stuck.py"
    script.write_text(STUCK)
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, *TORCHRUN, str(script), str(tmp_path / "run")],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode != 0
    assert done.stderr.count("process 1 of this run ended") == 1, done.stderr
    assert "Rerun the command to start anew." in done.stderr
    # The launcher itself would have waited for half a minute, then killed it.
    assert "forcefully exiting" not in done.stderr
    assert time.monotonic() - began < 28
