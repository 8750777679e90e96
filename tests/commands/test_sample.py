"""The sampling command on a run that was really trained, for a few steps."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import AutoencoderKL
from PIL import Image

from tests.commands.runs import trained
from tests.networks import save_autoencoder
from tread_ssm.commands import sample
from tread_ssm.config.run import SampleConfig
from tread_ssm.config.run_folder import RunFolder
from tread_ssm.data import LatentValues, PixelValues
from tread_ssm.diffusion import EDM
from tread_ssm.models import DiTConfig
from tread_ssm.pretrained import Description, export, load_export
from tread_ssm.sampling.generate import noise_of, sample_labels

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def main() -> Callable[[list[str]], int]:
    return sample.main


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("runs"), sampling_steps=4)


Draw = Callable[..., np.ndarray]


@pytest.fixture
def draw(main: Callable[[list[str]], int], run: Path, tmp_path: Path) -> Draw:
    def draw(*arguments: str) -> np.ndarray:
        out = tmp_path / "grid.png"
        command = ["--run", str(run), "--out", str(out), "--device", "cpu", "--per-class", "2"]
        assert main([*command, *arguments]) == 0
        return np.asarray(Image.open(out)).astype(int)

    return draw


def cells(picture: np.ndarray, rows: int) -> np.ndarray:
    """(rows, 2, 8, 8, 3), the images of a grid."""
    right = picture[:, -2 * 68 :]
    tops = [4 + 68 * r for r in range(rows)]
    return np.stack([[right[t : t + 64 : 8, c : c + 64 : 8] for c in (0, 68)] for t in tops])


def test_the_same_seed_gives_the_same_grid_and_another_one_another(draw: Draw) -> None:
    first = draw("--class", "Flags", "--seed", "1")
    assert np.array_equal(first, draw("--class", "Flags", "--seed", "1"))
    assert not np.array_equal(first, draw("--class", "Flags", "--seed", "2"))


def test_classes_choose_rows_and_default_to_all(draw: Draw) -> None:
    assert cells(draw(), 9).shape == (9, 2, 8, 8, 3)
    two = cells(draw("--class", "Objects", "--class", "Flags"), 2)
    flags = cells(draw("--class", "Flags"), 1)
    # Noise belongs to the place in the grid: only the first row shares it.
    assert not np.array_equal(two[0], flags[0])
    assert two.shape == (2, 2, 8, 8, 3)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--guidance", "1.0"],
        ["--steps", "3"],
        ["--sampler", "euler"],
        ["--checkpoint", "20"],
        ["--interval", "0.0", "1.0"],
        ["--weak-drop", "0.7", "--strong-drop", "0.2"],
    ],
    ids=lambda a: a[0],
)
def test_options_change_the_picture(draw: Draw, arguments: list[str]) -> None:
    assert not np.array_equal(draw("--class", "Flags"), draw("--class", "Flags", *arguments))


def test_a_class_goes_by_its_number_as_well(draw: Draw) -> None:
    assert np.array_equal(draw("--class", "Flags"), draw("--class", "2"))


def test_checkpoints_stand_side_by_side_with_the_same_noise(
    draw: Draw, capsys: pytest.CaptureFixture[str]
) -> None:
    classes = ("--class", "Flags", "--class", "Objects")
    capsys.readouterr()
    both = draw(*classes, "--checkpoint", "20", "30")
    assert "step 20, step 30" in capsys.readouterr().out
    for step, right in (("20", 2 * 68), ("30", 0)):
        alone = draw(*classes, "--checkpoint", step)[4:]
        width = both.shape[1] - right
        assert np.array_equal(both[20:, width - 2 * 68 : width], alone[:, -2 * 68 :])
    assert (both[:20] < 128).any()  # headings


def test_the_whole_recipe_is_printed(draw: Draw, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    draw("--class", "Flags", "--seed", "5", "--interval", "0.1", "0.9")
    said = capsys.readouterr().out
    for part in ("steps 4", "guidance 1.5", "interval [0.1, 0.9]", "sampler heun", "seed 5"):
        assert part in said


@pytest.mark.parametrize(("suffix", "format"), [("jpg", "JPEG"), ("WEBP", "WEBP"), ("png", "PNG")])
def test_the_suffix_decides_on_the_format(
    main: Callable[[list[str]], int], run: Path, tmp_path: Path, suffix: str, format: str
) -> None:
    out = tmp_path / f"grid.{suffix}"
    words = ["--run", str(run), "--device", "cpu", "--class", "1", "--per-class", "1"]
    assert main([*words, "--steps", "1", "--out", str(out)]) == 0
    with Image.open(out) as picture:
        assert picture.format == format


def test_route_guidance_of_equal_passes_is_the_pass_itself(draw: Draw) -> None:
    plain = draw("--class", "Flags", "--guidance", "1.0")
    routed = draw("--class", "Flags", "--guidance", "1.0", "--weak-drop", "0.5")
    assert np.array_equal(plain, routed)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--class", "Flgs"], ["'Flgs'", "'Flags'"]),
        (["--class", "flags"], ["'Flags'"]),
        (["--checkpoint", "7"], ["step 7", "20, 30"]),
        (["--steps", "0"], ["steps is 0"]),
        (["--strong-drop", "0.3"], ["strong_drop is 0.3, but weak_drop is not set"]),
        (["--guidance", "nan"], ["guidance is nan"]),
        (
            ["--guided-by", "routes"],
            ["weak_drop None; guidance by routes needs weak_drop"],
        ),
        (["--guided-by", "model", "--weak-run", "nowhere"], ["nowhere holds no config.json"]),
        (["--guidance-channels", "4"], ["channels is 4, but there are 3"]),
        (["--vae", "stabilityai/sd-vae-ft-ema"], ["vae is stabilityai", "pixels"]),
        (["--device", "cdua"], ["--device cdua cannot be used"]),
        (["--per-class", "0"], ["--per-class is 0"]),
        (["--weak-drop", "0.2", "--strong-drop", "0.5"], ["weak_drop is 0.2"]),
        (["--batch", "0"], ["--batch is 0"]),
        (["--class", "9"], ["--class: class 9", "classes 0 to 8"]),
        (["--out", "grid.gif"], ["grid.gif must end in one of .png, .jpg"]),
        (["--checkpoint", "20", "30", "--num", "5", "--npz", "a.npz"], ["one checkpoint"]),
        (["--num", "5"], ["--num and --npz go together"]),
        (["--npz", "a.npz"], ["--num and --npz go together"]),
        (["--png", "folder"], ["--png and --balanced belong to a set"]),
        (["--num", "5", "--npz", "a.zip"], ["a.zip does not end in .npz"]),
    ],
)
def test_wrong_arguments_are_one_sentence_and_exit_code_2(
    main: Callable[[list[str]], int],
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    parts: list[str],
) -> None:
    out = tmp_path / "grid.png"
    assert main(["--run", str(run), "--out", str(out), "--device", "cpu", *arguments]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ")
    for part in parts:
        assert part in message
    assert not out.exists()


def test_a_folder_without_weights_is_refused(
    main: Callable[[list[str]], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--run", str(tmp_path)]) == 2
    assert "no finished run or checkpoint" in capsys.readouterr().err
    assert main(["--run", str(tmp_path / "gone")]) == 2
    assert "is no folder" in capsys.readouterr().err


# Without "--" torchrun takes our --run for an abbreviation of its own --run-path.
LAUNCHER = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", "--"]


def start(run: Path, *arguments: str, launcher: list[str] | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, *(launcher or []), str(ROOT / "scripts" / "sample.py")]
    return subprocess.Popen(
        [*command, "--run", str(run), "--device", "cpu", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


SET = ["--num", "30", "--batch", "4", "--steps", "3", "--weak-drop", "0.6", "--guidance", "1.5"]


@pytest.fixture(scope="module")
def sets(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one.npz, its images in one/, and two.npz by two processes."""
    folder = tmp_path_factory.mktemp("sets")
    arguments = {n: ["--npz", str(folder / f"{n}.npz"), "--png", n] for n in ("one", "two")}
    for name in arguments:
        arguments[name][-1] = str(folder / name)
    two = start(run, *SET, *arguments["two"], launcher=LAUNCHER)
    assert "30 x 8 x 8 x 3" in finish(start(run, *SET, *arguments["one"]))
    assert finish(two).count("two.npz") == 1
    return folder


def test_two_processes_write_the_bytes_of_one(sets: Path) -> None:
    assert (sets / "two.npz").read_bytes() == (sets / "one.npz").read_bytes()
    names = {"one", "two", "one.npz", "two.npz", "one.npz.json", "two.npz.json"}
    assert {p.name for p in sets.iterdir()} == names


def test_a_set_is_adms_npz_and_its_pngs_hold_the_same_images(sets: Path) -> None:
    with np.load(sets / "one.npz", allow_pickle=False) as archive:
        assert archive.files == ["arr_0", "arr_1"]
        images, labels = archive["arr_0"], archive["arr_1"]
    assert images.dtype == np.uint8 and images.shape == (30, 8, 8, 3)
    assert len({image.tobytes() for image in images}) == 30
    assert np.array_equal(labels, sample_labels(30, range(9), seed=0).numpy())
    for name in ("one", "two"):
        files = sorted((sets / name).iterdir())
        assert [f.name for f in files] == [f"{i:06d}.png" for i in range(30)]
        assert np.array_equal(np.stack([np.asarray(Image.open(f)) for f in files]), images)


def test_a_set_says_how_it_was_drawn(sets: Path, run: Path) -> None:
    record = json.loads((sets / "one.npz.json").read_text())
    assert record["run"] == str(run) and record["step"] == 30
    assert record["recipe"]["weak_drop"] == 0.6 and record["recipe"]["sampler"] is None


Main = Callable[[list[str]], int]


@pytest.fixture
def draw_set(main: Main, run: Path) -> Callable[..., int]:
    def draw_set(out: Path, *arguments: str) -> int:
        try:
            command = ["--run", str(run), "--device", "cpu", "--npz", str(out)]
            return main([*command, "--num", "24", "--batch", "2", "--steps", "40", *arguments])
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)

    return draw_set


def test_a_killed_command_goes_on_and_gives_the_same_file(
    run: Path, tmp_path: Path, draw_set: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    killed, skipped, whole = (tmp_path / f"{n}.npz" for n in ("killed", "skipped", "whole"))
    parts, copied = (p.with_name(p.name + ".parts") for p in (killed, skipped))
    process = start(run, *["--npz", str(killed), "--num", "24", "--batch", "2", "--steps", "40"])
    end = time.monotonic() + 60
    while len(list(parts.glob("[0-9]*.npy"))) < 3:
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.002)
    process.kill()
    process.communicate()
    done = sorted(parts.glob("[0-9]*.npy"))
    assert 3 <= len(done) < 12 and not killed.exists()

    assert draw_set(killed, "--guidance", "3.5") == 2
    assert "other settings for recipe" in capsys.readouterr().err

    # Parts that are there are not drawn again, but for one that was cut short.
    shutil.copytree(parts, copied)
    black = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    np.save(copied / done[1].name, black)
    (copied / done[2].name).write_bytes(done[2].read_bytes()[:-1])
    assert [draw_set(out) for out in (killed, skipped, whole)] == [0, 0, 0]
    assert killed.read_bytes() == whole.read_bytes()
    expected = np.load(whole)["arr_0"].copy()
    expected[2:4] = 0
    assert np.array_equal(np.load(skipped)["arr_0"], expected)
    assert not parts.exists() and not copied.exists()

    written = whole.read_bytes()
    assert draw_set(whole) == 0
    assert "is there already" in capsys.readouterr().out
    assert draw_set(whole, "--seed", "1") == 2
    assert "other settings for seed (seed: 0, now 1)" in capsys.readouterr().err
    assert whole.read_bytes() == written


def test_a_wrong_argument_does_not_bind_the_next_command(
    tmp_path: Path, draw_set: Callable[..., int]
) -> None:
    out = tmp_path / "set.npz"
    assert draw_set(out, "--steps", "0") == 2
    assert draw_set(out, "--num", "3", "--steps", "1", "--balanced", "--class", "Flags") == 0
    assert np.load(out)["arr_1"].tolist() == [2, 2, 2]


def exported(folder: Path, n_classes: int, channels: int, vae: Path | None) -> Path:
    """A transformer as it is initialised: it predicts 0."""
    folder.mkdir()
    config = DiTConfig(
        image_size=8, channels=channels, n_classes=n_classes, dim=32, depth=2, heads=2
    )
    torch.manual_seed(0)
    description = Description(
        step=0,
        model=config,
        objective=EDM(sigma_max=2.0),
        class_names=tuple("abcd"),
        values=PixelValues() if vae is None else LatentValues(scale=0.5, vae=str(vae)),
        routes=(),
        sample=SampleConfig(steps=2),
    )
    export(folder, config.build().state_dict(), description)
    return folder


def test_latents_are_decoded_by_the_autoencoder_of_the_data(
    draw_set: Callable[..., int], main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_autoencoder(tmp_path / "vae")
    folder, out = exported(tmp_path / "latents", 4, 4, tmp_path / "vae"), tmp_path / "set.npz"
    # One step from sigma = 2 to 0 ends at the estimate of the data, which is c_skip * x for a
    # network that predicts 0.
    command = ["--run", str(folder), "--num", "7", "--batch", "3", "--steps", "1"]
    assert draw_set(out, *command, "--guidance", "1") == 0
    x = 2 * noise_of(range(7), load_export(folder)[1].model, seed=0)
    latents = 0.5**2 / (2**2 + 0.5**2) * x / 0.5  # 0.5 is sigma_data, and the data's scale
    vae = AutoencoderKL.from_pretrained(tmp_path / "vae").eval()
    with torch.no_grad():
        expected = (vae.decode(latents).sample + 1) * 127.5
    images = np.load(out)["arr_0"]
    assert images.shape == (7, 16, 16, 3)
    difference = torch.from_numpy(images).permute(0, 3, 1, 2) - expected.clamp(0, 255)
    assert difference.abs().max() < 0.6
    assert json.loads((tmp_path / "set.npz.json").read_text())["vae"] == str(tmp_path / "vae")

    other = exported(tmp_path / "other", 4, 8, tmp_path / "vae")
    capsys.readouterr()
    assert draw_set(tmp_path / "other.npz", "--run", str(other), "--steps", "1") == 2
    assert "have 8 channels, the autoencoder's have 4" in capsys.readouterr().err


def test_a_run_without_classes_is_drawn_and_guides_by_no_label(
    draw_set: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = exported(tmp_path / "run", 0, 3, None), tmp_path / "set.npz"
    command = [out, "--run", str(folder), "--steps", "1", "--num", "3"]
    assert draw_set(*command, "--guidance", "2") == 2
    assert "guidance is 2, but this run was trained without classes" in capsys.readouterr().err
    assert draw_set(*command) == 0
    assert np.load(out)["arr_1"].tolist() == [0, 0, 0]


def test_the_rate_counts_what_this_command_has_sampled(
    draw_set: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By a clock that goes on by 4 seconds whenever it is looked at."""
    folder, out = exported(tmp_path / "run", 0, 3, None), tmp_path / "set.npz"

    def said() -> str:
        clock = iter(range(0, 100, 4))
        monkeypatch.setattr(sample, "time", SimpleNamespace(monotonic=clock.__next__))
        assert draw_set(out, "--run", str(folder), "--steps", "1", "--num", "5") == 0
        return capsys.readouterr().out

    assert "\n1.25 images/s, decoding and writing included, 2 at once" in said()
    assert "images/s" not in said()  # it is there already
    # Killed when the first two parts of 2 images were there.
    images, parts = np.load(out)["arr_0"], tmp_path / "set.npz.parts"
    parts.mkdir()
    for first in (0, 2):
        np.save(parts / f"{first:08d}-{first + 1:08d}.npy", images[first : first + 2])
    out.unlink()
    (tmp_path / "set.npz.json").rename(parts / "record.json")
    assert "\n0.25 images/s" in said()


def test_a_batch_is_found_once_and_resuming_keeps_it(
    draw_set: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = exported(tmp_path / "run", 0, 3, None), tmp_path / "set.npz"
    command = ["--run", str(folder), "--steps", "1", "--num", "5", "--batch"]
    assert draw_set(out, *command, "auto") == 0
    said = capsys.readouterr().out
    assert "Batches of 5 images, found by memory." in said
    assert "images/s, decoding and writing included, 5 at once" in said
    assert json.loads((tmp_path / "set.npz.json").read_text())["batch"] == 5
    # Begun with batches of 2: what resumes is cut in the same places.
    out.unlink()
    (tmp_path / "set.npz.json").unlink()
    assert draw_set(out, *command, "2") == 0
    before = out.read_bytes()
    parts = tmp_path / "set.npz.parts"
    parts.mkdir()
    out.unlink()
    (tmp_path / "set.npz.json").rename(parts / "record.json")
    capsys.readouterr()
    assert draw_set(out, *command, "auto") == 0
    assert "found by memory" not in capsys.readouterr().out
    assert out.read_bytes() == before


def test_pictures_of_two_sets_are_not_mixed(
    draw_set: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = exported(tmp_path / "run", 0, 3, None)
    command = ["--run", str(folder), "--steps", "1", "--png", str(tmp_path / "png")]
    assert draw_set(tmp_path / "a.npz", *command, "--num", "5") == 0
    assert draw_set(tmp_path / "b.npz", *command, "--num", "3") == 2
    assert "png holds images already; name another folder" in capsys.readouterr().err
    # The first one killed before its first part was kept, but behind its pictures, goes on.
    written = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").unlink()
    (tmp_path / "a.npz.parts").mkdir()
    (tmp_path / "a.npz.json").rename(tmp_path / "a.npz.parts" / "record.json")
    assert draw_set(tmp_path / "a.npz", *command, "--num", "5") == 0
    assert (tmp_path / "a.npz").read_bytes() == written


def test_the_weights_of_a_run_are_found(run: Path, tmp_path: Path) -> None:
    assert RunFolder(run).weights() == run
    assert RunFolder(run).weights(20) == run / "checkpoints" / "step-0000020"
    shutil.copytree(run / "checkpoints", tmp_path / "checkpoints")
    assert RunFolder(tmp_path).weights().name == "step-0000030"  # it is not finished


@pytest.mark.parametrize("a_set", [False, True], ids=["grid", "set"])
def test_damaged_weights_sample_nothing(
    main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str], a_set: bool
) -> None:
    folder = exported(tmp_path / "run", 0, 3, None)
    model, described = load_export(folder)
    # Finite, or they would be refused when they are loaded.
    weights = {name: torch.full_like(w, 3e38) for name, w in model.state_dict().items()}
    export(folder, weights, described)
    out = tmp_path / ("set.npz" if a_set else "grid.png")
    where = ["--num", "4", "--npz", str(out)] if a_set else ["--out", str(out)]
    command = ["--run", str(folder), "--device", "cpu", "--steps", "1", *where]
    assert main(command) == 2
    assert "images are not finite" in capsys.readouterr().err
    assert not out.exists()
