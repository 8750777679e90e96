"""Every file in configs/ loads, has a plan that fits its model, and a dense partner."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from tread_ssm.config.run import RunConfig, load_config
from tread_ssm.config.strict import dump
from tread_ssm.errors import ConfigError
from tread_ssm.models import AttentionConfig, DiMConfig, DiTConfig, Mamba2Config, Mamba3Config
from tread_ssm.models.cost import backbone_cost
from tread_ssm.training.checkpoints.resume import differences

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted(CONFIGS.glob("*.yaml"))
EXPECTED = {
    *("quickstart", "dim_s", "dim_l", "dim_l_v1", "dim_h", "dit_b", "dit_xl"),
    *("dit_b_modern", "dit_b_f16", "dim_l_f16"),
    *("dim2_b", "dim2_l", "dim3_l", "dim2_hybrid_l", "folder"),
}


def load(name: str, overrides: tuple[str, ...] = ()) -> RunConfig:
    return load_config(CONFIGS / f"{name}.yaml", overrides)


def test_all_are_there() -> None:
    assert {f.stem for f in FILES} >= EXPECTED


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_it_loads_under_its_own_name_and_keeps_a_token(file: Path) -> None:
    config = load_config(file)
    assert config.name == file.stem
    assert all(k >= 1 for k in config.plan.n_kept(config.grid))


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_the_resolved_file_loads_to_the_same_run(file: Path, tmp_path: Path) -> None:
    config = load_config(file)
    (tmp_path / "config.yaml").write_text(dump(config))
    again = load_config(tmp_path / "config.yaml")
    assert again == config
    assert differences(again, config) == []


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_the_dense_partner_is_two_overrides_away(name: str) -> None:
    routed, dense = load(name), load(name, ("routing.routes=[]", f"name={name}_dense"))
    assert differences(routed, dense) == ["name", "routing.routes"]
    assert dense.routing.routes == ()
    assert len(routed.routing.routes) == (2 if name == "dim_l_v1" else 1)


LATENTS = {"image_size": 32, "channels": 4, "n_classes": 1000}
F16 = {"image_size": 16, "channels": 32, "n_classes": 1000, "patch": 1}
MODERN_B = {
    **{"dim": 768, "depth": 12, "heads": 12, "norm": "rms", "mlp": "swiglu"},
    **{"qk_norm": True, "rope": True, "value_residual": True},
}
SIZES = {
    "dim_s": DiMConfig(**LATENTS, dim=512, depth=25),
    "dim_l": DiMConfig(**LATENTS, dim=1024, depth=49),
    "dim_l_v1": DiMConfig(**LATENTS, dim=1024, depth=49),
    "dim_h": DiMConfig(**LATENTS, dim=1536, depth=49),
    "dim2_b": DiMConfig(**LATENTS, dim=768, depth=29, mixer=Mamba2Config(d_state=64)),
    "dim2_l": DiMConfig(**LATENTS, dim=1024, depth=49, mixer=Mamba2Config(d_state=64)),
    "dim3_l": DiMConfig(**LATENTS, dim=1024, depth=49, mixer=Mamba3Config(d_state=64)),
    "dim2_hybrid_l": DiMConfig(
        **LATENTS, dim=1024, depth=49, mixer=Mamba2Config(), attention_every=4
    ),
    "dit_b": DiTConfig(**LATENTS, dim=768, depth=12, heads=12),
    "dit_b_modern": DiTConfig(**LATENTS, **MODERN_B),
    "dit_b_f16": DiTConfig(**F16, **MODERN_B),
    "dim_l_f16": DiMConfig(**F16, dim=1024, depth=49),
    "dit_xl": DiTConfig(**LATENTS, dim=1152, depth=28, heads=16),
}


@pytest.mark.parametrize("name", sorted(EXPECTED - {"quickstart", "folder"}))
def test_sizes(name: str) -> None:
    assert load(name).model == SIZES[name]


@pytest.mark.parametrize("name", sorted(SIZES))
def test_the_number_of_parameters_in_the_comment_is_right(name: str) -> None:
    with torch.device("meta"):
        count = sum(p.numel() for p in load(name).model.build().parameters())
    text = (CONFIGS / f"{name}.yaml").read_text()
    (said,) = re.findall(r"kind: di[mt] +# ([\d.]+)M parameters", text)
    digits = len(said.partition(".")[2])
    assert f"{count / 1e6:.{digits}f}" == said


@pytest.mark.parametrize(
    "name", [n for n in sorted(SIZES) if n.startswith("dim") and n != "dim_l_v1"]
)
def test_no_long_skip_of_a_routed_dim_crosses_the_ends_of_its_route(name: str) -> None:
    config = load(name)
    (route,) = config.plan.routes
    for source in range(1, (config.model.depth + 1) // 2):
        target = config.model.depth - source
        assert (route.start <= source < route.stop) == (route.start <= target < route.stop)


@pytest.mark.parametrize("name", ["dim2_l", "dim3_l", "dim2_hybrid_l"])
def test_other_mixers_cost_what_dim_l_costs(name: str) -> None:
    ours, dim_l = (backbone_cost(load(n).model, load(n).plan) for n in (name, "dim_l"))
    for cost, reference in ((ours.dense, dim_l.dense), (ours.routed, dim_l.routed)):
        assert cost.forward == pytest.approx(reference.forward, rel=0.05)
        assert cost.training == pytest.approx(reference.training, rel=0.05)
    assert ours.routed.tokens == dim_l.routed.tokens


@pytest.mark.parametrize(
    ("kind", "mixer"),
    [("mamba2", Mamba2Config()), ("mamba3", Mamba3Config()), ("attention", AttentionConfig())],
)
def test_the_quickstart_runs_on_any_mixer(kind: str, mixer: object) -> None:
    model = load("quickstart", (f"model.mixer.kind={kind}",)).model
    assert isinstance(model, DiMConfig) and model.mixer == mixer


def test_a_mixer_that_does_not_fit_is_named() -> None:
    with pytest.raises(ConfigError, match="128 channels are not a multiple of head_dim 48"):
        load("quickstart", ("model.mixer.kind=mamba2", "model.mixer.head_dim=48"))
