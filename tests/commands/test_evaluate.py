"""The evaluation's command line: files, two processes, and sweeps over a run really trained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from tests.app.runs import write_run
from tests.commands.runs import trained
from tread_ssm.data import load_emoji
from tread_ssm.evaluation import METRICS, EmojiFeatures, feature_moments, frechet_distance
from tread_ssm.pretrained import export, load_export
from tread_ssm.training.averages.power_ema import PosthocEma

ROOT = Path(__file__).parents[2]
Main = Callable[..., int]


def load(script: str) -> Callable[[list[str]], int]:
    return import_module(f"tread_ssm.commands.{script}").main  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with reference.npz (700 emoji), samples.npz (260 others) and few.npz (40)."""
    folder = tmp_path_factory.mktemp("files")
    pixels = load_emoji(8)[0]
    pixels = pixels[np.random.default_rng(0).permutation(len(pixels))]
    np.savez(folder / "reference.npz", arr_0=pixels[:700])
    np.savez(folder / "samples.npz", arr_0=pixels[700:960])
    np.savez(folder / "few.npz", arr_0=pixels[700:740])
    return folder


@pytest.fixture(scope="module")
def main() -> Main:
    script = load("evaluate")

    def main(*arguments: str | Path) -> int:
        return script([*map(str, arguments), "--extractor", "emoji", "--device", "cpu"])

    return main


LAUNCHER = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", "--"]


def on_two(*arguments: str | Path) -> str:
    """The output of the command on two gloo processes."""
    common = ["--extractor", "emoji", "--device", "cpu"]
    command = [sys.executable, *LAUNCHER, str(ROOT / "scripts" / "evaluate.py"), *common]
    done = subprocess.run(
        [*command, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())  # type: ignore[no-any-return]


def sets(folder: Path, samples: str = "samples.npz") -> list[str]:
    return ["--samples", str(folder / samples), "--reference", str(folder / "reference.npz")]


def test_a_table_and_a_json_hold_all_metrics(
    main: Main, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "result.json"
    assert main(*sets(files), "--out", out) == 0
    head, rule, row = capsys.readouterr().out.splitlines()
    assert head.startswith("| samples | images | FD (emoji) | sFD (emoji) | IS (emoji) |")
    assert row.startswith("| samples.npz | 260 | ")
    assert head.count("|") == rule.count("|") == row.count("|") == 9
    result = read(out)
    assert list(result["metrics"]) == list(METRICS)
    assert result["count"] == 260 and result["shape"] == [260, 8, 8, 3]
    assert result["extractor"] == "emoji" and result["versions"]["torch"]
    assert result["reference_count"] == 700 and result["sampled"] is None
    moments = [
        feature_moments(EmojiFeatures(), torch.tensor(np.load(f)["arr_0"]).permute(0, 3, 1, 2))
        for f in (files / "samples.npz", files / "reference.npz")
    ]
    assert result["metrics"]["fid"] == pytest.approx(frechet_distance(*moments), rel=1e-4)


def test_two_processes_find_what_one_finds(main: Main, files: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    arguments = [*sets(files), "--batch", "48"]
    table = on_two(*arguments, "--out", two, "--save-reference", tmp_path / "kept.npz")
    assert table.count("samples.npz") == 1
    assert main(*arguments, "--out", one) == 0
    assert read(two)["count"] == 260
    assert read(two)["metrics"] == pytest.approx(read(one)["metrics"], rel=1e-6)
    # The reference's statistics were merged before they were kept.
    again = tmp_path / "again.json"
    kept = ["--samples", str(files / "samples.npz"), "--reference", str(tmp_path / "kept.npz")]
    assert main(*kept, "--batch", "48", "--out", again) == 0
    assert read(again)["metrics"] == pytest.approx(read(one)["metrics"], rel=1e-6)


def test_a_process_without_images_takes_part(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "two.json"
    on_two(*sets(files), "--batch", "1000", "--metrics", "fid,is", "--out", out)
    assert read(out)["count"] == 260


def test_folders_of_images_and_some_metrics(main: Main, files: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for i, image in enumerate(np.load(files / "samples.npz")["arr_0"]):
        Image.fromarray(image).save(folder / f"{i:06d}.png")
    reference = ["--reference", files / "reference.npz"]
    assert main("--samples", folder, *reference, "--metrics", "kid,fid") == 0
    result = read(tmp_path / "set.metrics.json")
    assert list(result["metrics"]) == ["kid", "fid"]
    assert main("--samples", folder, "--metrics", "is", "--out", tmp_path / "is.json") == 0
    assert read(tmp_path / "is.json")["metrics"]["is"] > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--samples", "few.npz", "--reference", "reference.npz"], "fid needs at least 65 images"),
        (["--samples", "gone.npz", "--reference", "reference.npz"], "gone.npz is not there"),
        (["--samples", "samples.npz", "--reference", "gone.npz"], "--reference: gone.npz is not"),
        (["--samples", "samples.npz"], "--reference is missing"),
        (["--samples", "samples.npz", "--metrics", "fids"], "'fids'; there are fid, sfid"),
        (["--samples", "samples.npz", "--metrics", "is", "--save-reference", "a"], "give both"),
        (["--samples", "samples.npz", "--sweep", "steps=1"], "--sweep and --num sample from a run"),
        (["--samples", "samples.npz", "--run", "run"], "either --samples"),
        (["--run", "run", "--sweep", "steps=1"], "--run needs --num"),
        (["--samples", "samples.npz", "--batch", "0"], "--batch is 0"),
        (["--samples", "samples.npz", "--metrics", "is", "--out", "t.md"], "not end in .json"),
        (["--run", ".", "--sweep", "seed=1", "--num", "9", "--metrics", "is"], "'seed' cannot be"),
        (["--run", ".", "--sweep", "steps=1.5", "--num", "9", "--metrics", "is"], "no list of num"),
        (["--run", ".", "--sweep", "steps=1", "--num", "9", "--metrics", "is"], "no config.json"),
    ],
)
def test_what_cannot_be_used_is_one_sentence_and_exit_code_2(
    main: Main,
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(files)
    assert main(*arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert not list(files.glob("*.json"))


def test_missing_weights_say_where_they_are_looked_for(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch_fidelity")
    weights = tmp_path / "weights.pth"
    assert load("evaluate")([*sets(files), "--weights", str(weights)]) == 2
    assert f"not at {weights}. Download https://" in capsys.readouterr().err


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(
        tmp_path_factory.mktemp("runs"), sampling_steps=3, posthoc_ema=PosthocEma(every=6)
    )


SWEEP = ["--num", "70", "--batch", "16", "--metrics", "fid,recall,kid", "--seed", "3"]


def test_a_sweep_draws_what_sample_draws_and_writes_a_table_and_a_plot(
    main: Main, run: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, reference = tmp_path / "sweep.json", ["--reference", files / "reference.npz"]
    sweep = ["--run", run, *SWEEP, *reference, "--out", out]
    assert main(*sweep, "--sweep", "guidance=2.5,1") == 0
    rows = dict(read(out)["rows"])
    assert list(rows) == [1.0, 2.5] and rows[1.0] != rows[2.5]
    table = (tmp_path / "sweep.md").read_text()
    assert table.startswith("| guidance | FD (emoji) | recall (emoji) | KID (emoji) |\n")
    assert table in capsys.readouterr().out and table.count("\n") == 4
    picture = np.asarray(Image.open(tmp_path / "sweep.png").convert("RGB"))
    assert picture.shape[1] > 800 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 20

    # On two processes, with a value more: those that are there are not drawn again.
    two = tmp_path / "two.json"
    two.write_text(out.read_text().replace(f"{rows[1.0]['fid']!r}", "123.5"))
    on_two(*sweep[:-1], two, "--sweep", "guidance=1,1.7,2.5")
    more = dict(read(two)["rows"])
    assert list(more) == [1.0, 1.7, 2.5] and more[1.0]["fid"] == 123.5
    assert main(*sweep, "--sweep", "guidance=1.7") == 0
    assert dict(read(out)["rows"])[1.7] == pytest.approx(more[1.7], rel=1e-5)

    drawn, result = tmp_path / "drawn.npz", tmp_path / "result.json"
    command = ["--run", run, "--device", "cpu", "--npz", drawn, "--guidance", "2.5"]
    assert load("sample")([*map(str, command), *SWEEP[:4], *SWEEP[6:]]) == 0
    AcceleratorState._reset_state(reset_partial_state=True)
    assert main("--samples", drawn, *reference, *SWEEP[2:6], "--out", result) == 0
    assert read(result)["metrics"] == pytest.approx(rows[2.5], rel=1e-5)
    drawn_by = read(result)["sampled"]
    assert drawn_by["seed"] == 3 and drawn_by["recipe"]["guidance"] == 2.5

    # What an earlier sweep cost is not thrown away by one with other settings.
    written = out.read_bytes()
    assert main(*sweep, "--sweep", "guidance=2.5", "--num", "80") == 2
    assert "made with other settings for num (num: 70, now 80)" in capsys.readouterr().err
    assert main(*sweep[:-1], result, "--sweep", "guidance=2.5") == 2
    assert "is there already and holds something else" in capsys.readouterr().err
    assert out.read_bytes() == written


def test_a_run_is_measured_without_a_sweep(
    main: Main, run: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--run", run, *SWEEP, "--reference", files / "reference.npz"]
    assert main(*common) == 0
    ((point, row),) = read(run / "evaluation.json")["rows"]
    assert point == [] and list(row) == ["fid", "recall", "kid"]
    table = capsys.readouterr().out
    assert table.startswith("| run | images | FD (emoji) | recall (emoji) | KID (emoji) |\n")
    assert f"| run | 70 | {row['fid']:.4g} |" in table
    out = tmp_path / "sweep.json"
    assert main(*common, "--sweep", "guidance=1.5", "--out", out) == 0  # the run's own
    assert dict(read(out)["rows"])[1.5] == row
    assert main(*common) == 0  # read again, not sampled
    assert main(*common, "--steps", "1") == 2
    assert "holds results that were made with other settings" in capsys.readouterr().err


@pytest.mark.parametrize("sweep", ["weak-drop=0.3,0.7", "steps=2,4"])
def test_other_options_can_be_swept(
    main: Main, run: Path, files: Path, tmp_path: Path, sweep: str
) -> None:
    out = tmp_path / "sweep.json"
    common = ["--run", run, *SWEEP, "--reference", files / "reference.npz", "--out", out]
    assert main(*common, "--sweep", sweep, "--checkpoint", "20") == 0
    first, second = (row for _, row in read(out)["rows"])
    assert first["fid"] != second["fid"]
    record = read(out)["record"]
    assert record["step"] == 20 and record["recipe"]["guidance"] == 1.5


def test_two_options_are_swept_together(
    main: Main, run: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, reference = tmp_path / "pair.json", ["--reference", files / "reference.npz"]
    common = ["--run", run, *SWEEP, *reference, "--steps", "1"]
    both = ["--sweep", "guidance=1,2", "--sweep", "width=0.2,0.05"]
    assert main(*common, *both, "--out", out) == 0
    rows = {tuple(point): row for point, row in read(out)["rows"]}
    assert list(rows) == [(0.05, 1.0), (0.05, 2.0), (0.2, 1.0), (0.2, 2.0)]
    assert len({row["fid"] for row in rows.values()}) == 4
    assert (tmp_path / "pair.md").read_text().startswith("| width | guidance | FD (emoji) |")
    assert (tmp_path / "pair.png").is_file()
    written = out.read_bytes()
    capsys.readouterr()
    assert main(*common, *both, "--out", out) == 0  # nothing is sampled again
    assert out.read_bytes() == written and "guidance=" not in capsys.readouterr().err

    # A width alone, of a checkpoint's step, and what the command average makes of it, agree.
    alone = tmp_path / "alone.json"
    assert main(*common, "--guidance", "2", "--sweep", "width=0.2", "--out", alone) == 0
    assert read(alone)["rows"] == [[0.2, pytest.approx(rows[0.2, 2.0])]]
    assert load("average")(["--run", str(run), "--width", "0.2", "--out", str(tmp_path / "w")]) == 0
    averaged = ["--run", tmp_path / "w", *common[2:], "--sweep", "guidance=2", "--out"]
    assert main(*averaged, tmp_path / "again.json") == 0
    assert read(tmp_path / "again.json")["rows"] == [[2.0, pytest.approx(rows[0.2, 2.0])]]

    for wrong, text in (
        (["--sweep", "width=0.4"], "width is 0.4; it must satisfy 0 < width <= 0.28"),
        (["--sweep", "steps=1", "--sweep", "steps=2"], "one option, or two different ones"),
        (["--sweep", "width=0.1", "--checkpoint", "20"], "no snapshot of step 20; there are 6, 12"),
    ):
        assert main(*common, *wrong, "--out", tmp_path / "no.json") == 2
        assert text in capsys.readouterr().err


def test_a_sweep_is_refused_before_it_draws(
    main: Main, run: Path, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--run", run, "--reference", files / "reference.npz", "--sweep", "guidance=1,2"]
    assert main(*common, "--num", "50") == 2
    assert "the sample set has 50: add 15" in capsys.readouterr().err
    assert main(*common, "--num", "200", "--checkpoint", "7") == 2
    assert "has no checkpoint of step 7; there are 20, 30" in capsys.readouterr().err
    common = [*common[:-1], "weak-drop=0.2,0.5", "--num", "200"]
    assert main(*common, "--guidance", "1") == 2
    assert "weak_drop is without effect at guidance 1" in capsys.readouterr().err
    assert main(*common, "--strong-drop", "0.3") == 2
    assert "weak_drop goes from --strong-drop to below 1" in capsys.readouterr().err


def test_a_run_without_classes_is_swept_by_path_and_by_another_run(
    main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, weak = (write_run(tmp_path / name, classes=()) for name in ("run", "weak"))
    common = ["--run", folder, "--sweep", "guidance=1,3", "--num", "9", "--metrics", "is"]
    common += ["--steps", "1"]
    assert main(*common) == 2
    assert "guidance is without effect on a run without classes" in capsys.readouterr().err
    by_path = tmp_path / "path.json"
    assert main(*common, "--guided-by", "path", "--out", by_path) == 0
    rows = dict(read(by_path)["rows"])
    assert list(rows) == [1.0, 3.0] and rows[1.0] != rows[3.0]

    by_model = [*common, "--guided-by", "model", "--weak-run", weak, "--out", tmp_path / "m.json"]
    assert main(*by_model) == 0
    # Rows of a weak run that was trained anew are not those of the one before.
    model, described = load_export(weak)
    export(weak, {name: 0.9 * w for name, w in model.state_dict().items()}, described)
    assert main(*by_model) == 2
    assert "made with other settings for weak_weights" in capsys.readouterr().err


def test_a_black_set_is_refused(
    main: Main, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "black.npz", arr_0=np.zeros((120, 8, 8, 3), dtype=np.uint8))
    reference = ["--reference", files / "reference.npz"]
    for metrics in ("fid,sfid,kid", "is", "precision"):
        out = tmp_path / "out.json"
        command = ["--samples", tmp_path / "black.npz", *reference, "--metrics", metrics]
        assert main(*command, "--out", out) == 2
        assert "All 120 images look alike to the extractor" in capsys.readouterr().err
        assert not out.exists()
