"""One exit code for several processes, and nothing but their own words on the screen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tread_ssm.errors import ConfigError
from tread_ssm.launcher import must_launch

ROOT = Path(__file__).parents[1]
TINY = """
name: tiny
data: {kind: emoji, size: 8}
model: {kind: dim, image_size: 8, channels: 3, n_classes: 9, dim: 16, depth: 3, pads: 1}
objective: {kind: flow}
train: {steps: 100000, batch_size: 4, log_every: 1, save_every: 100000}
sample: {every: 0}
"""


def start(folder: Path, arguments: Sequence[str], program: Sequence[str]) -> subprocess.Popen[str]:
    (folder / "tiny.yaml").write_text(TINY)
    return subprocess.Popen(
        [sys.executable, *program, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def train(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    line = ("train", "--config", "tiny.yaml", "--processes", "2", *arguments)
    return start(folder, line, ("-m", "tread_ssm"))


def test_a_refused_configuration_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    process = train(tmp_path, "model.image_size=16")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert out == ""
    (line,) = err.strip().splitlines()  # of one process, and of no launcher
    assert line.startswith("error: model.image_size is 16, but the data is 8 x 8")


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_two_processes_save_on_a_signal_to_the_first_command(
    tmp_path: Path, sent: signal.Signals, code: int
) -> None:
    process = train(tmp_path)
    metrics = tmp_path / "runs" / "tiny" / "metrics.jsonl"
    end = time.monotonic() + 120
    while not (metrics.is_file() and metrics.read_text().count("\n") >= 3):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(sent)
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert f"Saved after {sent.name}; rerun the command to resume." in out
    assert "Traceback" not in err
    assert list((tmp_path / "runs" / "tiny" / "checkpoints").glob("step-*"))


def test_the_option_agrees_with_the_launcher_that_started_a_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not must_launch(None) and not must_launch(1) and must_launch(2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not must_launch(None) and not must_launch(2)
    with pytest.raises(ConfigError, match="--processes 3: a launcher has started 2"):
        must_launch(3)
