"""The batch that fits, under a limit of memory that this process really has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sampling.test_generate import DIM, described, network
from tread_ssm.sampling.batch import fitting_batch
from tread_ssm.sampling.image_grid import decoder
from tread_ssm.sampling.recipe import Recipe

ROOT = Path(__file__).parents[2]
LIMITED = """
import json, resource
import psutil, torch
from tests.sampling.test_generate import DIT, described, network
from dataclasses import replace
from tread_ssm.sampling.batch import fitting_batch
from tread_ssm.sampling.generate import generate
from tread_ssm.sampling.image_grid import decoder
from tread_ssm.sampling.recipe import Recipe

config = replace(DIT, image_size=256, patch=32, depth=1)  # many pixels, few tokens
model, run = network(config), described(config)
decode, recipe = decoder(run.values, None, "cpu"), Recipe(steps=2, guidance=2.0, sampler="euler")
labels = torch.arange(64) % 4
free = fitting_batch(model, run, recipe, decode, 4)  # whatever is made once is made
used = psutil.Process().memory_info().vms
resource.setrlimit(resource.RLIMIT_AS, (used + 100 * 2**20,) * 2)
found = fitting_batch(model, run, recipe, decode, 64)
(part,) = generate(model, run, recipe, [range(64)], labels, seed=0, decode=decode)
print(json.dumps([free, found, part.at_once, len(part.images)]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS bounds allocations on Linux")
def test_a_batch_that_does_not_fit_is_not_taken() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,  # most of it is importing torch on a busy machine
    )
    assert done.returncode == 0, done.stderr
    free, found, at_once, images = json.loads(done.stdout)
    assert free == 4
    assert 1 <= found < 64 and found & (found - 1) == 0
    # Sampling 64 at once does not fit either, and is halved to what does.
    assert at_once < 64 and images == 64


def test_no_more_are_tried_than_there_are_images() -> None:
    model, run = network(DIM), described()
    seen: list[int] = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    decode = decoder(run.values, None, "cpu")
    recipe = Recipe(steps=9, guidance=2.0, sampler="euler", interval=(0.0, 0.1))
    assert fitting_batch(model, run, recipe, decode, 11) == 11
    assert seen == [4, 8, 16, 22]  # both passes of guidance, whose interval comes later
    assert fitting_batch(model, run, recipe, decode, 1) == 1
