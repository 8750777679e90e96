"""Inception through the real loading code, with random weights in torch-fidelity's layout."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tread_ssm.commands import evaluate
from tread_ssm.evaluation import load_extractor
from tread_ssm.evaluation.extractors import WEIGHTS, InceptionFeatures
from tread_ssm.files import checksum

fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")


def build(folder: Path) -> nn.Module:
    """torch-fidelity's network as it is initialised: it can only be made with a file to load."""

    class Fresh(fidelity.FeatureExtractorInceptionV3):  # type: ignore[misc, name-defined]
        def load_state_dict(self, *_: object) -> None:
            return None

    empty = folder / "empty.pth"
    torch.save({}, empty)
    torch.manual_seed(0)
    return Fresh("fresh", ["2048", "logits"], feature_extractor_weights_path=str(empty))


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    return build(tmp_path_factory.mktemp("fresh"))


@pytest.fixture(scope="module")
def weights(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hub") / "checkpoints" / WEIGHTS
    path.parent.mkdir()
    torch.save(net.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def images() -> Tensor:
    rng = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, 3, 24, 40), generator=rng, dtype=torch.uint8)


def until_mixed_6d(net: nn.Module, images: Tensor) -> Tensor:
    """Block after block, without torch-fidelity's own forward pass."""
    resize = fidelity.interpolate_bilinear_2d_like_tensorflow1x
    x = (resize(images.float(), size=(299, 299), align_corners=False) - 128) / 128
    for name, block in net.named_children():
        x = block(x)
        if name == "Mixed_6d":
            return x
    raise AssertionError("no Mixed_6d")


def test_features_are_those_of_the_network_in_adms_layout(
    net: nn.Module, weights: Path, images: Tensor
) -> None:
    extractor = load_extractor("inception", weights=weights)
    found = extractor(images)
    assert found.pooled.shape == (2, 2048)
    assert found.spatial is not None and found.spatial.shape == (2, 7 * 17 * 17)
    assert found.probabilities is not None and found.probabilities.shape == (2, 1008)

    with torch.inference_mode():
        maps = until_mixed_6d(net, images)
        pooled, logits = net(images)
    assert maps.shape == (2, 768, 17, 17)
    nhwc = maps.numpy().transpose(0, 2, 3, 1)
    expected = nhwc[..., :7].reshape(2, 2023)
    assert expected.std() > 0
    np.testing.assert_allclose(found.spatial.numpy(), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.pooled, pooled)
    # Without the bias, which torch-fidelity's own "logits" have.
    without = (logits - net.fc.bias).softmax(1)
    torch.testing.assert_close(found.probabilities, without)
    assert not torch.allclose(found.probabilities, logits.softmax(1))


def test_a_pass_leaves_no_hook_behind(weights: Path, images: Tensor) -> None:
    extractor = InceptionFeatures(weights=weights)
    first = extractor(images[:1])
    assert not extractor._net.Mixed_6d._forward_hooks
    assert torch.equal(extractor(images[:1]).pooled, first.pooled)
    with pytest.raises(ValueError, match="expected uint8"):
        extractor(images.float())


def test_weights_are_found_where_torch_hub_keeps_them(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(weights.parents[1]))
    assert InceptionFeatures().name == "inception"
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    with pytest.raises(ValueError, match=rf"not at {tmp_path}.*{WEIGHTS}.*github.com/toshas"):
        InceptionFeatures()


class Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("run by unpickling",))


def test_other_files_are_refused_and_code_in_them_is_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"other": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"weights.pth does not hold the weights"):
        InceptionFeatures(weights=path)
    torch.save({"code": Code()}, path)
    with pytest.raises(ValueError, match=r"weights.pth does not hold the weights"):
        InceptionFeatures(weights=path)
    path.write_bytes(pickle.dumps(Code()))
    with pytest.raises(ValueError, match=r"weights.pth does not hold the weights"):
        InceptionFeatures(weights=path)
    path.write_bytes(b"not found")
    with pytest.raises(ValueError, match=r"weights.pth does not hold the weights"):
        InceptionFeatures(weights=path)
    assert "run by unpickling" not in capsys.readouterr().out


def test_the_command_line_takes_it(weights: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        pixels = rng.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
        np.savez(tmp_path / f"{name}.npz", arr_0=pixels)
    files = ["--samples", str(tmp_path / "a.npz"), "--reference", str(tmp_path / "b.npz")]
    common = [*files, "--weights", str(weights), "--device", "cpu"]
    assert evaluate.main([*common, "--metrics", "is,precision,recall,kid"]) == 0
    result = json.loads((tmp_path / "a.npz.metrics.json").read_text())
    assert result["extractor"] == "inception" and result["count"] == 4
    assert result["extractor_weights"] == checksum(weights)
    assert 1 <= result["metrics"]["is"] <= 4
