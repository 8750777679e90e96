"""One's own images, with and without classes, from the real commands: train, report, sample."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file

from tread_ssm.config.run_folder import RunFolder
from tread_ssm.data import load_emoji
from tread_ssm.data.order import batch_index
from tread_ssm.training.logs.metrics import read_metrics

ROOT = Path(__file__).parents[2]
SIZE, CLASSES, PER_CLASS = 8, 3, 6
CONFIG = f"""
name: own
model: {{kind: dit, image_size: {SIZE}, channels: 3, dim: 16, depth: 3, heads: 2,
        n_classes: {CLASSES}}}
objective: {{kind: flow}}
routing: {{routes: [{{start: 1, stop: 2}}]}}
train: {{steps: 4, batch_size: 6, log_every: 2, save_every: 2, threads: 1, report: true}}
sample: {{every: 4, per_class: 2, steps: 2}}
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures three times: a folder a class, a folder alone, an .npz without labels."""
    folder = tmp_path_factory.mktemp("own")
    images, labels, names = load_emoji(32)
    (folder / "alone").mkdir()
    for label in range(CLASSES):
        (folder / "classes" / names[label]).mkdir(parents=True)
        for i, k in enumerate(np.flatnonzero(labels == label)[:PER_CLASS]):
            picture = Image.fromarray(images[k])
            picture.save(folder / "classes" / names[label] / f"{i}.{'png' if i % 2 else 'jpg'}")
            picture.resize((20, 13)).save(folder / "alone" / f"{label}-{i}.png")
    np.savez(folder / "mine.npz", images=load_emoji(SIZE)[0][:20])
    np.savez(folder / "adm.npz", arr_0=load_emoji(SIZE)[0][:20], arr_1=labels[:20] % CLASSES)
    (folder / "own.yaml").write_text(CONFIG)
    return folder


def command(name: str, *arguments: str) -> None:
    """A script in a process of its own, as a user starts it."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def main(name: str) -> Callable[[list[str]], int]:
    """The same here, as each process takes seconds to import torch."""
    module = import_module(f"tread_ssm.commands.{name}")

    def run(arguments: list[str]) -> int:
        try:
            code: int = module.main(arguments)
            return code
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)

    return run


def training(own: Path, name: str, data: str, *arguments: str) -> list[str]:
    fixed = ["--config", str(own / "own.yaml"), f"out={own / 'runs'}", f"name={name}"]
    return [*fixed, f"data={data}", *arguments]


def test_a_folder_of_classes_trains_and_is_reported(own: Path) -> None:
    data = f"{{kind: folder, path: {own / 'classes'}, size: {SIZE}, flip: true, threads: 2}}"
    command("train", *training(own, "classes", data))
    run = own / "runs" / "classes"
    described = json.loads((run / "config.json").read_text())
    assert described["class_names"] == sorted(load_emoji(32)[2][:CLASSES])
    report = (run / "report.md").read_text()
    assert f"folder, {CLASSES * PER_CLASS} images of 8 x 8, {CLASSES} classes" in report
    assert "4 of 4 steps, 24 images seen" in report
    with Image.open(run / "samples" / "step-0000004.png") as grid:
        assert grid.height > CLASSES * SIZE


TINY = "model.dim=16 model.depth=3 model.patch=8 routing.routes.0.stop=3 train.steps=2"
TINY += " train.batch_size=4 train.threads=1 train.report=false sample.steps=1 sample.per_class=1"


def test_a_folder_needs_one_line(
    own: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(own / "classes", folder)
    for name in (".hidden/a.png", "._1.png", "notes.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("no picture")
    first = next(folder.glob("*/0.jpg"))
    first.write_bytes(first.read_bytes()[:300])
    line = ["--config", "folder", f"data.path={folder}", f"out={tmp_path}", "name=photos"]
    assert main("train")([*line, *TINY.split()]) == 0
    said = capsys.readouterr().err
    assert "18 images" in said and "scaled to 32 x 32" in said
    assert "model.n_classes 3 (" in said
    assert "1 of 19 files" in said and ": notes.txt." in said
    assert f"cannot be read: {first.relative_to(folder)}." in said
    described = json.loads((tmp_path / "photos" / "config.json").read_text())
    assert described["class_names"] == sorted(load_emoji(32)[2][:CLASSES])
    dit = [*TINY.split(), "model.kind=dit", "name=dit", "train.steps=1"]
    assert main("train")([*line, *dit]) == 0
    said = capsys.readouterr().err
    assert "model.kind=dit does not know pads" in said and "model.heads is 1" in said


def test_a_validation_split_is_in_the_log_the_report_and_the_tracker(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    data = f"{{kind: folder, path: {own / 'classes'}, size: {SIZE}, validation: 0.2}}"
    options = ["train.validate_every=2", "train.trackers=[tensorboard]"]
    assert main("train")(training(own, "validated", data, *options)) == 0
    run = RunFolder(own / "runs" / "validated")
    losses = {row["step"]: row["validation_loss"] for row in read_metrics(run.metrics)}
    assert list(losses) == [2, 4] and losses[2] != losses[4]
    assert f"{losses[4]:.4g} after step 4: dense network" in run.report.read_text()
    events = EventAccumulator(str(run.trackers / "tread_ssm"))
    events.Reload()
    logged = {event.step: event.value for event in events.Scalars("validation_loss")}
    assert logged == pytest.approx(losses)
    assert [event.step for event in events.Images("samples")] == [4]
    assert {stat.S_IMODE(os.stat(run.path / n).st_mode) for n in ("ema.safetensors", "report.md")
            } == {0o666 & ~umask()}  # fmt: skip


def umask() -> int:
    """Of this process."""
    now = os.umask(0)
    os.umask(now)
    return now


def test_a_run_goes_on_from_the_weights_of_another(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = f"{{kind: folder, path: {own / 'classes'}, size: {SIZE}}}"
    assert main("train")(training(own, "first", data)) == 0
    first = own / "runs" / "first"
    capsys.readouterr()
    other = f"{{kind: folder, path: {own / 'alone'}, size: {SIZE}}}"
    options = ["model.n_classes=0", f"train.init_from={first}", "train.optimizer.lr=1e-12"]
    assert main("train")(training(own, "tuned", other, *options)) == 0
    said = capsys.readouterr().err
    assert "left out: " in said and "4 x 16 there, 1 x 16 here" in said
    before, after = (load_file(p / "ema.safetensors") for p in (first, own / "runs" / "tuned"))
    changed = {name for name in after if not torch.allclose(after[name], before[name], atol=1e-6)}
    assert len(changed) == 1 and "label" in changed.pop()


def test_odd_images_are_seen_as_a_viewer_shows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures in odd formats have the features of the same pictures as plain PNGs."""
    x, y = np.meshgrid(np.arange(24), np.arange(24))
    values = np.stack([10 * x, 10 * y, 240 - 5 * (x + y)], axis=2).astype(np.uint8)
    picture, grey = Image.fromarray(values), values[:, :, 0]
    holed = np.dstack([values, np.where(x < 12, 0, 255)]).astype(np.uint8)
    white = np.where((x < 12)[:, :, None], 255, values).astype(np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6  # shown a quarter turn to the right
    odd: dict[str, tuple[Image.Image, Image.Image, dict[str, object]]] = {
        "16.png": (Image.fromarray(grey.astype(np.uint16) * 257), Image.fromarray(grey), {}),
        "alpha.png": (Image.fromarray(holed), Image.fromarray(white), {}),
        "palette.gif": (picture.quantize(64), picture.quantize(64).convert("RGB"), {}),
        "cmyk.tiff": (picture.convert("CMYK"), picture, {}),
        "turned.jpg": (picture, picture.transpose(Image.Transpose.ROTATE_270),
                       {"exif": turned, "quality": 100, "subsampling": 0}),
    }  # fmt: skip
    for name, (image, plain, options) in odd.items():
        for folder, kept, suffix in (("odd", image, ""), ("plain", plain, ".png")):
            (tmp_path / folder).mkdir(exist_ok=True)
            kept.save(tmp_path / folder / f"{name}{suffix}", **(options if kept is image else {}))
    code = "def pixels(x):\n    return x.float()[:, :, ::6, ::6].flatten(1)\n"
    (tmp_path / "odd_features.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "odd_features", raising=False)
    for folder in ("odd", "plain"):
        line = ["--data", folder, "--size", "24", "--out", f"{folder}.npz", "--metrics", "kid"]
        options = ["--extractor", "odd_features:pixels", "--device", "cpu"]
        assert main("reference")([*line, *options]) == 0
    found, expected = (np.load(f"{folder}.npz")["features"] for folder in ("odd", "plain"))
    assert found.shape == (len(odd), 48) and np.ptp(expected) > 200
    np.testing.assert_allclose(found, expected, atol=3)


def test_an_array_without_labels_trains_and_is_sampled(own: Path) -> None:
    data = f"{{kind: array, path: {own / 'mine.npz'}}}"
    command("train", *training(own, "array", data, "model.n_classes=0"))
    run, out = own / "runs" / "array", own / "drawn.npz"
    assert "array, 20 images of 8 x 8, 0 classes" in (run / "report.md").read_text()
    command("sample", "--run", str(run), "--num", "5", "--npz", str(out), "--batch", "3")
    with np.load(out) as archive:
        assert archive["arr_0"].shape == (5, SIZE, SIZE, 3)


def test_an_array_in_adms_layout_trains(own: Path) -> None:
    data = f"{{kind: array, path: {own / 'adm.npz'}}}"
    assert main("train")(training(own, "adm", data, "model.n_classes=null")) == 0
    described = json.loads((own / "runs" / "adm" / "config.json").read_text())
    assert described["model"]["n_classes"] == len(described["class_names"]) > 0


def test_a_folder_without_classes_trains_and_is_sampled(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = f"{{kind: folder, path: {own / 'alone'}, size: {SIZE}}}"
    assert main("train")(training(own, "alone", data, "model.n_classes=0")) == 0
    run, out = own / "runs" / "alone", own / "grid.png"
    assert json.loads((run / "config.json").read_text())["class_names"] == []
    assert "folder, 18 images of 8 x 8, 0 classes" in (run / "report.md").read_text()
    sample = ["--run", str(run), "--out", str(out), "--device", "cpu", "--per-class", "2"]
    assert main("sample")(sample) == 0
    for path in (run / "samples" / "step-0000004.png", out):
        with Image.open(path) as grid:
            assert grid.width > 1.5 * grid.height  # one row of two
    capsys.readouterr()
    assert main("sample")([*sample, "--class", "Flags"]) == 2
    assert capsys.readouterr().err == "error: --class: this run was trained without classes.\n"


def test_classes_that_the_data_lacks_are_refused_before_training(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main("train")(training(own, "refused", f"{{kind: array, path: {own / 'mine.npz'}}}")) == 2
    )
    said = capsys.readouterr().err
    assert "model.n_classes is 3, but the data has 0 classes" in said
    assert "0 trains without labels" in said
    assert not (own / "runs" / "refused").exists()


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """Eight pictures, of which 2.png is cut short."""
    images, *_ = load_emoji(32)
    for i in range(8):
        Image.fromarray(images[i]).save(tmp_path / f"{i}.png")
    whole = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "2.whole").write_bytes(whole)
    return tmp_path


SHORT = ["model.n_classes=0", "train.report=false", "sample.every=0", "train.batch_size=8"]


def test_a_damaged_image_ends_training_with_its_name_and_once_mended_the_run_goes_on(
    own: Path, damaged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = f"{{kind: folder, path: {damaged}, size: {SIZE}}}"
    arguments = training(own, "damaged", data, *SHORT)
    assert main("train")(arguments) == 1
    said = capsys.readouterr().err.split("error: ")[-1].splitlines()[0]
    assert f"{damaged / '2.png'} is no readable image" in said
    assert "Mend or" in said
    (damaged / "2.whole").rename(damaged / "2.png")
    assert main("train")(arguments) == 0


def test_a_damaged_image_is_named_whichever_process_meets_it(own: Path, damaged: Path) -> None:
    row = batch_index(8, 8, seed=0, step=0).tolist().index(2)
    data = f"{{kind: folder, path: {damaged}, size: {SIZE}}}"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"),
            *("--standalone", str(ROOT / "scripts" / "train.py")),
            *training(own, "processes", data, *SHORT),
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    who = "error" if row < 4 else "error (process 1)"
    assert f"{who}: data.path: {damaged / '2.png'} is no readable image" in done.stderr
