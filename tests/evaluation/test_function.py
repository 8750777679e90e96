"""Features that a function of the user's gives, of a file in the folder of the command."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tread_ssm.evaluation import load_extractor, score, statistics
from tread_ssm.evaluation.metrics import offered

SOURCE = """
import torch
from tread_ssm.evaluation import Features

class Net:
    def colours(self, images):
        return images.float().mean(dim=(2, 3))

net = Net()

def with_map(images):
    x = images.float()
    return Features(x.mean(dim=(2, 3)), spatial=x[:, :, :2, :2].flatten(1))

def whole(images):
    return images

def half(images):
    return images[::2].float().mean(dim=(2, 3))

def text(images):
    return "red"

number = 3
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_features.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_features", raising=False)


def images(n: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(n)
    return torch.randint(256, (n, 3, 5, 7), generator=rng, dtype=torch.uint8)


def test_a_function_or_a_method_gives_features_that_metrics_take() -> None:
    extractor = load_extractor("own_features:net.colours")
    assert torch.equal(extractor(images(6)).pooled, images(6).float().mean(dim=(2, 3)))
    metrics = offered(extractor.name)
    assert metrics == ("fid", "precision", "recall", "kid")
    own, other = (statistics(extractor, [images(n)], metrics) for n in (30, 40))
    assert score(own, own, metrics)["fid"] < 1e-6 < score(own, other, metrics)["fid"]
    spatial = load_extractor("own_features:with_map")(images(6)).spatial
    assert spatial is not None and spatial.shape == (6, 12)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("gone_module:f", "'gone_module:f' cannot be imported .*No module named 'gone_module'"),
        ("own_features:gone", "has no attribute 'gone'.*; write module:function"),
        ("own_features:number", "are a int, no function"),
        ("own_features", "no features are called 'own_features'; use inception, emoji"),
    ],
)
def test_what_is_no_function_is_refused(name: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        load_extractor(name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("whole", r"gives torch.uint8 of shape \(4, 3, 5, 7\) for 4 images; expected floats"),
        ("half", r"gives torch.float32 of shape \(2, 3\) for 4 images"),
        ("text", r"gives a str; expected a tensor \(B, F\)"),
    ],
)
def test_what_a_function_gives_is_checked(name: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        load_extractor(f"own_features:{name}")(images(4))
    assert not any(path == str(Path.cwd()) for path in sys.path)
