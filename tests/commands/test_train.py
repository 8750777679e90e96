"""The training command: real processes on a tiny configuration."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.commands.runs import TINY
from tread_ssm.commands import train
from tread_ssm.training.logs.metrics import read_metrics

ROOT = Path(__file__).parents[2]
CONFIG = f"""{TINY}
train:
  steps: 120
  batch_size: 4
  optimizer: {{kind: adamw, lr: 1e-3}}
  log_every: 3
  save_every: 10
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(CONFIG)
    return path


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def start(config: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), "--config", str(config)]
    return subprocess.Popen(
        [*command, f"out={config.parent / 'runs'}", *arguments],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def wait_for(process: subprocess.Popen[str], reached: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not reached():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.005)


def last_step(run: Path) -> int:
    rows = read_metrics(run / "metrics.jsonl")
    return int(rows[-1]["step"]) if rows else 0


def comparable(run: Path) -> list[dict[str, float]]:
    timed = ("images_per_second", "seconds")
    rows = read_metrics(run / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in timed} for row in rows]


def test_killed_and_stopped_runs_end_bit_for_bit_like_an_uninterrupted_one(config: Path) -> None:
    whole, broken = (config.parent / "runs" / name for name in ("whole", "broken"))
    uninterrupted = start(config, "name=whole")

    process = start(config, "name=broken")
    wait_for(process, lambda: last_step(broken) >= 33)
    process.kill()
    process.communicate()

    process = start(config, "name=broken")
    wait_for(process, lambda: last_step(broken) >= 75)
    process.send_signal(signal.SIGTERM)
    code, out, err = finish(process)
    assert code == 0, err
    assert "SIGTERM" in out
    stopped_at = max(int(p.name.split("-")[1]) for p in (broken / "checkpoints").iterdir())
    assert 75 <= stopped_at < 120

    code, out, err = finish(start(config, "name=broken"))
    assert code == 0, err
    code, out, err = finish(uninterrupted)
    assert code == 0, err

    assert comparable(broken) == comparable(whole)
    assert [row["step"] for row in comparable(whole)] == list(range(3, 121, 3))
    for file in ("ema.safetensors", "checkpoints/step-0000120/model.safetensors"):
        a, b = load_file(whole / file), load_file(broken / file)
        assert a.keys() == b.keys()
        for name in a:
            assert a[name].numpy().tobytes() == b[name].numpy().tobytes(), name
    names = sorted(p.name for p in (whole / "checkpoints").iterdir())
    assert names == ["step-0000110", "step-0000120"]

    code, out, err = finish(start(config, "name=broken"))
    assert code == 0
    assert "is finished (120 steps)" in out


def test_two_processes_and_micro_batches_give_the_run_of_one_process(config: Path) -> None:
    common = ["train.steps=8", "train.log_every=1", "train.label_dropout=0.5"]
    one = start(config, "name=one", *common)
    parts = start(config, "name=parts", "train.micro_batch=3", *common)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    launcher += ["--master_port", "0", "--standalone"]
    arguments = [str(ROOT / "scripts" / "train.py"), "--config", str(config)]
    arguments.append(f"out={config.parent / 'runs'}")
    two = subprocess.Popen(
        [*launcher, *arguments, "name=two", *common],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for process in (one, parts, two):
        code, _, err = finish(process)
        assert code == 0, err
    expected = comparable(config.parent / "runs" / "one")
    assert len(expected) == 8
    for name in ("parts", "two"):
        for a, b in zip(expected, comparable(config.parent / "runs" / name), strict=True):
            assert b == pytest.approx(a, rel=1e-4)


def test_accelerate_launch_trains_and_leaves_what_is_promised(config: Path) -> None:
    command = [sys.executable, "-m", "accelerate.commands.launch", "scripts/train.py"]
    command += ["--config", str(config), f"out={config.parent / 'runs'}"]
    command += ["train.steps=6", "sample.every=3", "sample.per_class=2", "sample.steps=3"]
    command += ["train.threads=1"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    run = config.parent / "runs" / "tiny"
    for name in ("config.yaml", "metrics.jsonl", "ema.safetensors", "config.json"):
        assert (run / name).is_file()
    assert sorted(p.name for p in (run / "samples").iterdir()) == [
        "step-0000003.png",
        "step-0000006.png",
    ]
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step-0000006"]
    description = json.loads((run / "config.json").read_text())
    assert description["class_names"][2] == "Flags"
    assert "kept=" in done.stderr
    assert "UserWarning" not in done.stderr.replace("tread_ssm scans on cpu", "")


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_a_launcher_that_is_stopped_alone_leaves_no_training_behind(config: Path) -> None:
    run = config.parent / "runs" / "tiny"
    command = [sys.executable, "-m", "accelerate.commands.launch", "scripts/train.py"]
    command += ["--config", str(config), f"out={config.parent / 'runs'}", "train.steps=100000"]
    launcher = subprocess.Popen(
        command, cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL, text=True
    )
    wait_for(launcher, lambda: last_step(run) >= 6)
    trainer = int((run / "run.holder").read_text().split()[1])
    assert trainer != launcher.pid
    launcher.terminate()
    launcher.wait()
    end = time.monotonic() + 60
    while (run / "run.holder").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    # What was done is saved, and another run has the folder at once.
    saved = max(int(p.name.split("-")[1]) for p in (run / "checkpoints").glob("step-*"))
    assert saved >= last_step(run) >= 6
    code, _, err = finish(start(config, f"train.steps={saved + 3}"))
    assert code == 0, err
    assert last_step(run) == saved + 3


def test_a_second_run_in_the_folder_is_refused_with_the_holders_name(config: Path) -> None:
    run = config.parent / "runs" / "tiny"
    first = start(config, "train.steps=100000")
    wait_for(first, lambda: last_step(run) >= 3)
    code, _, err = finish(start(config, "train.steps=100000"))
    assert code == 1
    assert f"is being trained by process {first.pid} on " in err
    assert "Traceback" not in err
    first.send_signal(signal.SIGTERM)
    code, _, err = finish(first)
    assert code == 0, err
    rows = [r["step"] for r in read_metrics(run / "metrics.jsonl")]
    assert rows == sorted(set(rows))


@pytest.fixture
def main(config: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    monkeypatch.chdir(config.parent)
    yield lambda *arguments: train.main(["--config", str(config), *arguments])


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("train.batchsize=8", ["train.batchsize", "'batch_size'"]),
        ("train.optimizer.lr=fast", ["train.optimizer.lr is 'fast'", "number"]),
        ("train.steps=0", ["train: steps is 0"]),
        ("model.n_classes=10", ["model.n_classes is 10", "9 classes"]),
        ("model.image_size=16", ["model.image_size is 16", "8 x 8"]),
        ("model.channels=1", ["model.channels is 1", "has 3"]),
        ("model.patch=3", ["image_size 8 is not a multiple of patch 3"]),
        ("model.depth=4", ["depth is 4", "odd"]),
        ("routing.routes.0.stop=4", ["stop=4", "depth is 3", "at most 3"]),
        ("routing.routes.0.drop=1.0", ["drop is 1.0"]),
        (
            "routing.routes=[{start: 1, stop: 2, drop: 0.2, select: {kind: rows}}]",
            ["drop 0.2", "drops nothing", "4 x 4"],
        ),
        ("routing.routes.0.keep=[20]", ["keep names position 20", "16 tokens"]),
        ("data={kind: latents, path: gone}", ["gone does not exist"]),
        ("objective.kind=edn", ["objective.kind 'edn'", "'edm'"]),
        ("train.precision=fp61", ["train.precision", "'fp16'"]),
        pytest.param(
            "train.trackers=[trackio]",
            ["pip install trackio"],
            marks=pytest.mark.skipif(
                importlib.util.find_spec("trackio") is not None, reason="trackio is installed"
            ),
        ),
        ("train.batch_size=9", ["2 processes", "multiple of 2"]),
        ("name=a/b", ["a/b", "folder"]),
        ("sample.guided_by=pth", ["sample.guided_by is 'pth'", "'path'"]),
        ("sample.guided_by=routes", ["sample: guided_by is 'routes'", "needs weak_drop"]),
        ("sample.interval=[0.9, 0.1]", ["sample: guidance: interval is (0.9, 0.1)"]),
        ("sample.weak_drop=1.0", ["sample: guidance by routes: weak_drop is 1.0"]),
        ("sample.guidance_channels=4", ["guidance_channels is 4", "has 3 channels"]),
        (
            "sample={guided_by: model, weak_run: nowhere}",
            ["sample: nowhere holds no config.json"],
        ),
    ],
)
def test_what_cannot_be_used_is_one_sentence_and_exit_code_2(
    main: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    override: str,
    parts: list[str],
) -> None:
    # Anything heavy would import the loop.
    monkeypatch.setitem(sys.modules, "tread_ssm.training.loop", None)
    if override == "train.batch_size=9":
        monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(override) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    for part in parts:
        assert part in message


def test_guidance_by_path_needs_routes(
    main: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("sample.guided_by=path", "routing.routes=[]") == 2
    assert "sample: Guidance by routes or path needs a network" in capsys.readouterr().err


def test_the_exit_code_reaches_the_shell(config: Path) -> None:
    code, out, err = finish(start(config, "train.stesp=3"))
    assert code == 2
    assert out == ""
    assert "Traceback" not in err


def test_dry_run_describes_and_leaves_nothing(
    main: Callable[..., int], config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("--dry-run", "train.optimizer.lr=3e-4") == 0
    out = capsys.readouterr().out
    for part in ("lr: 0.0003", "blocks 0 to 1: 50% dropped", "parameters", "network, forward"):
        assert part in out
    assert list(config.parent.iterdir()) == [config]


def test_dry_run_needs_no_data(
    main: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("--dry-run", "data={kind: latents, path: gone}") == 0
    streams = capsys.readouterr()
    assert "gone does not exist" in streams.err
    assert "parameters" in streams.out


def test_ctrl_c_before_the_first_step_is_a_sentence_and_exit_code_130(
    main: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt  # whatever this process does on SIGINT

    monkeypatch.setattr(train, "check", interrupted)
    assert main() == 130
    assert capsys.readouterr().err == "Interrupted; rerun the command to resume.\n"
