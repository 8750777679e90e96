"""Embeddings, attention over a subset, and what importing the models loads."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from tread_ssm.models import DiM, DiMConfig, Mamba1Config
from tread_ssm.models.dit import sincos_2d
from tread_ssm.models.embed import PatchEmbedding, sinusoid, unpatchify


def test_unpatchify_undoes_cutting_into_patches() -> None:
    image = torch.randn(2, 3, 8, 12)
    patches = torch.stack(
        [
            image[:, :, r : r + 4, c : c + 4].permute(0, 2, 3, 1).flatten(1)
            for r in (0, 4)
            for c in (0, 4, 8)
        ],
        dim=1,
    )
    assert torch.equal(unpatchify(patches, (2, 3), 4), image)


def test_patches_stand_in_raster_order() -> None:
    embed = PatchEmbedding(1, 2, 4)
    image = torch.zeros(1, 1, 6, 6)
    image[:, :, 2:4, 4:6] = 1.0  # second row, third column
    moved = (embed(image) - embed(torch.zeros_like(image))).abs().sum(-1)[0]
    assert moved.nonzero().flatten().tolist() == [5]


def test_sinusoid() -> None:
    t = torch.tensor([0.0, 1.0, 999.0], dtype=torch.float64)
    out = sinusoid(t, 8)
    frequency = 10000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    angle = t[:, None] * frequency
    torch.testing.assert_close(out, torch.cat([angle.cos(), angle.sin()], dim=1))
    assert sinusoid(torch.tensor([999.0], dtype=torch.bfloat16), 8).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(sinusoid(t, 8), out, rtol=0, atol=0)


def test_position_embedding_tells_rows_from_columns() -> None:
    table = sincos_2d((2, 3), 16)
    assert table.shape == (6, 16)
    columns, rows = table[:, :8].view(2, 3, 8), table[:, 8:].view(2, 3, 8)
    assert torch.equal(columns[0], columns[1]) and torch.equal(rows[:, 0], rows[:, 2])
    assert len(table.unique(dim=0)) == 6
    torch.testing.assert_close(table[4, :4], torch.sin(10000.0 ** (-torch.arange(4) / 4)))


def test_state_space_models_load_no_timm() -> None:
    code = (
        "import sys; from tread_ssm.models import DiM, DiMConfig, DiTConfig, DiT; "
        "DiM(DiMConfig(image_size=8, channels=3, n_classes=0, dim=8, depth=3)); "
        "a = 'timm' in sys.modules; "
        "DiT(DiTConfig(image_size=8, channels=3, n_classes=0, dim=8, depth=1, heads=1)); "
        "print(a, 'timm' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "True"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"d_state": 65}, r"d_state is 65; it must be in 1\.\.64"),
        ({"d_conv": 5}, r"d_conv is 5; it must be in 2\.\.4"),
        ({"expand": 0}, "expand is 0; it must be at least 1"),
    ],
)
def test_mixers_that_no_kernel_can_run_are_refused(option, message) -> None:
    with pytest.raises(ValueError, match=message):
        Mamba1Config(**option)


def test_an_empty_batch_is_refused() -> None:
    model = DiM(DiMConfig(image_size=8, channels=3, n_classes=2, dim=8, depth=3))
    with pytest.raises(ValueError, match="the batch is empty"):
        model(torch.empty(0, 3, 8, 8), torch.empty(0), torch.empty(0, dtype=torch.int64))
