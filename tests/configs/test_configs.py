"""Every file in configs/ loads, has a plan that fits its model, and a dense partner."""

from __future__ import annotations

from pathlib import Path

import pytest

from tread_ssm.config.run import RunConfig, differences, load_config
from tread_ssm.config.strict import dump
from tread_ssm.models import DiMConfig, DiTConfig

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted(CONFIGS.glob("*.yaml"))
EXPECTED = {"quickstart", "dim_s", "dim_l", "dim_l_v1", "dim_h", "dit_b", "dit_xl"}


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
SIZES = {
    "dim_s": DiMConfig(**LATENTS, dim=512, depth=25),
    "dim_l": DiMConfig(**LATENTS, dim=1024, depth=49),
    "dim_l_v1": DiMConfig(**LATENTS, dim=1024, depth=49),
    "dim_h": DiMConfig(**LATENTS, dim=1536, depth=49),
    "dit_b": DiTConfig(**LATENTS, dim=768, depth=12, heads=12),
    "dit_xl": DiTConfig(**LATENTS, dim=1152, depth=28, heads=16),
}


@pytest.mark.parametrize("name", sorted(EXPECTED - {"quickstart"}))
def test_sizes_are_the_published_ones(name: str) -> None:
    assert load(name).model == SIZES[name]


@pytest.mark.parametrize("name", ["dim_s", "dim_l", "dim_h"])
def test_no_long_skip_of_a_routed_dim_crosses_the_ends_of_its_route(name: str) -> None:
    config = load(name)
    (route,) = config.plan.routes
    for source in range(1, (config.model.depth + 1) // 2):
        target = config.model.depth - source
        assert (route.start <= source < route.stop) == (route.start <= target < route.stop)
