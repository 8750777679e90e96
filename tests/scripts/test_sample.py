"""The sampling command on a run that was really trained, for a few steps."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from PIL import Image

from tread_ssm.diffusion import EDM
from tread_ssm.models import DiMConfig
from tread_ssm.routing import Route
from tread_ssm.training.config import RoutingConfig, RunConfig, SampleConfig, TrainConfig, check
from tread_ssm.training.data import EmojiData
from tread_ssm.training.folder import write_config
from tread_ssm.training.loop import train

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def main() -> Callable[[list[str]], int]:
    spec = importlib.util.spec_from_file_location("sample_script", ROOT / "scripts" / "sample.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = RunConfig(
        name="run",
        out=str(tmp_path_factory.mktemp("runs")),
        data=EmojiData(size=8),
        model=DiMConfig(image_size=8, channels=3, n_classes=9, dim=32, depth=3, pads=1),
        objective=EDM(),
        routing=RoutingConfig(routes=(Route(1, 3),)),
        train=TrainConfig(steps=30, batch_size=16, lr=3e-3, save_every=20, ema_decay=0.5),
        sample=SampleConfig(every=0, steps=4, guidance=1.5),
    )
    write_config(config)
    assert train(config, check(config)) is None
    AcceleratorState._reset_state(reset_partial_state=True)
    return config.folder


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
        (["--per-class", "0"], ["--per-class is 0"]),
        (["--weak-drop", "0.2", "--strong-drop", "0.5"], ["weak_drop is 0.2"]),
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
