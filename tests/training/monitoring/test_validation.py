"""The loss on held-out samples: the dense network's, on fixed noise, without effect on training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from tests.training.runs import run, tiny
from tread_ssm.config.check import check
from tread_ssm.config.run import RunConfig
from tread_ssm.data import Augmentation, EmojiData, Pixels
from tread_ssm.data.held_out import split
from tread_ssm.pretrained import load_export
from tread_ssm.randomness import generator
from tread_ssm.training.batch import BatchMaker
from tread_ssm.training.monitoring.validation import Validation
from tread_ssm.training.optimizer import AdamWConfig


def validated(out: Path, name: str, every: int) -> RunConfig:
    options = {"steps": 5, "ema_decay": 0.5, "log_every": 3, "validate_every": every}
    config = tiny(out, optimizer=AdamWConfig(lr=3e-3), **options)
    return replace(config, name=name, data=EmojiData(size=8, validation=0.01))


def test_it_is_logged_and_changes_nothing(tmp_path: Path) -> None:
    often, once = validated(tmp_path, "often", 2), validated(tmp_path, "once", 100)
    rows = run(often)
    assert [r["step"] for r in rows] == [2, 3, 4, 5]
    assert ["validation_loss" in r for r in rows] == [True, False, True, True]
    last = run(once)
    assert [r["step"] for r in last] == [3, 5]
    assert last[-1]["validation_loss"] == rows[-1]["validation_loss"]
    a, b = (load_file(c.folder.path / "ema.safetensors") for c in (often, once))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_it_is_the_mean_loss_of_the_dense_averaged_network(tmp_path: Path) -> None:
    config = validated(tmp_path, "run", 100)
    logged = run(config)[-1]["validation_loss"]
    model, _ = load_export(config.folder.path)
    data = check(config)
    _, held = split(len(data.labels), config.data.validation)
    assert len(held) == 19
    losses = []
    for i in range(14 * 19):  # 14 noise levels a sample: at least 256 losses
        rng = generator(0, i, "validation")
        still = data.sample_augmentation(1, rng)
        t, noise = config.objective.sample_t(1, rng), torch.randn(1, 3, 8, 8, generator=rng)
        index = held[i % 19 : i % 19 + 1]
        x, label = data.read(index, still), torch.from_numpy(data.labels[index])
        with torch.no_grad():
            losses.append(
                config.objective.loss_terms(model, x, label, t, noise, ()).loss_map.mean()
            )
    assert logged == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)


def test_training_never_reads_what_is_held_out(tmp_path: Path) -> None:
    config = validated(tmp_path, "kept", 100)
    data, seen = check(config), []
    _, held = split(len(data.labels), config.data.validation)

    class Watched(Pixels):
        def read(self, index_B: np.ndarray, augmentation: Augmentation) -> Tensor:
            seen.extend(index_B)
            return super().read(index_B, augmentation)

    assert isinstance(data, Pixels)
    watched = Watched(**vars(data))
    maker = BatchMaker.of(config, watched, size=500)
    for step in range(8):  # two epochs
        maker.make(step, config.plan, slice(500))
    assert len(set(seen)) == len(data.labels) - len(held)
    assert not set(seen) & set(held)


def test_batches_do_not_change_it(tmp_path: Path) -> None:
    config = validated(tmp_path, "batches", 100)
    torch.manual_seed(0)
    model = config.model.build()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    data = check(config)
    _, held = split(len(data.labels), config.data.validation)
    validation = Validation.of(config, data, held, torch.device("cpu"))
    found = [replace(validation, batch=size).loss(model) for size in (7, 64)]
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert model.training


def test_a_process_looks_at_no_more_than_it_trains_on_at_once(tmp_path: Path) -> None:
    config = validated(tmp_path, "shares", 100)  # 4 images a step
    data = check(config)
    held = split(len(data.labels), config.data.validation)[1]
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        validation = Validation.of(config, data, held, torch.device("cpu"))
    finally:
        dist.destroy_process_group()
    assert validation.batch == 2
