"""The strict YAML loader: what it reads, and how it refuses."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from tread_ssm.config.run import load_config, load_with_notes
from tread_ssm.config.strict import build, dump, read
from tread_ssm.errors import ConfigError
from tread_ssm.models import DiTConfig

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Circle:
    kind: Literal["circle"] = "circle"
    radius: float = 1.0


@dataclass(frozen=True)
class Box:
    kind: Literal["box"] = "box"
    sides: tuple[float, float] = (1.0, 2.0)

    def __post_init__(self) -> None:
        if min(self.sides) <= 0:
            raise ValueError(f"Box: sides are {self.sides}; they must be positive.")


@dataclass(frozen=True)
class Inner:
    batch_size: int = 4
    rate: float = 0.1
    limit: float | None = None
    fast: bool = False
    mode: Literal["slow", "quick"] = "slow"


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner = field(default_factory=Inner)
    shape: Circle | Box = field(default_factory=Circle)
    shapes: tuple[Circle | Box, ...] = ()


def load(tmp_path: Path, text: str, *overrides: str) -> Outer:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return build(Outer, read(path, overrides))


def test_everything_is_read_with_its_type(tmp_path: Path) -> None:
    got = load(
        tmp_path,
        """
name: a
inner: {rate: 1e-4, batch_size: 1e3, limit: 3, fast: true, mode: quick}
shape: {kind: box, sides: [1, 2.5]}
shapes:
  - kind: circle
  - {kind: box}
""",
    )
    inner = Inner(batch_size=1000, rate=1e-4, limit=3.0, fast=True, mode="quick")
    assert got == Outer("a", inner, Box(sides=(1.0, 2.5)), (Circle(), Box()))
    assert isinstance(got.inner.rate, float)
    assert isinstance(got.inner.batch_size, int)
    assert isinstance(got.inner.limit, float)


def test_what_is_dumped_loads_again(tmp_path: Path) -> None:
    first = Outer("no", Inner(rate=1e-12, limit=None), Box(), (Circle(radius=1e30), Box()))
    assert load(tmp_path, dump(first)) == first


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("name: a\ninner:\n  batchsize: 3", ["line 3", "inner.batchsize", "'batch_size'"]),
        ("name: a\nshpe: {}", ["line 2", "shpe", "'shape'"]),
        ("inner: {}", ["name is missing"]),
        ("name: a\nname: b", ["line 2", "twice"]),
        ("name: 3", ["line 1", "name is 3", "quotes"]),
        ("name: no", ["name is False", "quotes"]),
        ("name: a\ninner: {batch_size: 1.5}", ["inner.batch_size is 1.5", "whole number"]),
        ("name: a\ninner: {batch_size: true}", ["inner.batch_size is True", "number"]),
        ("name: a\ninner: {rate: fast}", ["inner.rate is 'fast'", "a number"]),
        ("name: a\ninner: {rate: }", ["inner.rate is None", "a number"]),
        ("name: a\ninner: {fast: 1}", ["inner.fast is 1", "true or false"]),
        ("name: a\ninner: {mode: quik}", ["inner.mode", "'quick'"]),
        ("name: a\ninner: 3", ["inner is 3", "section"]),
        ("name: a\nshape: {sides: [1, 1]}", ["line 2: shape.sides is not a known key"]),
        ("name: a\nshapes: [{radius: 1}]", ["shapes.0.kind is missing", "circle, box"]),
        ("name: a\nshape: {kind: circel}", ["shape.kind 'circel'", "'circle'"]),
        ("name: a\nshape: {kind: circle, sides: [1, 1]}", ["shape.sides is not a known key"]),
        ("name: a\nshape: {kind: box, sides: [1]}", ["shape.sides", "2 entries"]),
        ("name: a\nshape: {kind: box, sides: [0, 1]}", ["shape: Box: sides are (0.0, 1.0)"]),
        ("name: a\nshapes: {kind: box}", ["shapes is a section", "a list"]),
        ("name: a\nshapes:\n- kind: box\n- kind: bax", ["line 4", "shapes.1.kind 'bax'"]),
        ("- a", ["top level"]),
        ("name: [a", ["not valid YAML", "line"]),
    ],
)
def test_refusals_name_the_file_the_place_and_the_remedy(
    tmp_path: Path, text: str, parts: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    message = str(caught.value)
    assert "\n" not in message
    for part in [str(tmp_path / "run.yaml"), *parts]:
        assert part in message


def test_a_section_without_a_kind_is_of_the_default_kind(tmp_path: Path) -> None:
    assert load(tmp_path, "name: a\nshape: {radius: 3}").shape == Circle(radius=3.0)
    assert load(tmp_path, "name: a", "shape.radius=3").shape == Circle(radius=3.0)
    box = load(tmp_path, "name: a\nshape: {kind: box}", "shape.sides=[3, 4]").shape
    assert box == Box(sides=(3.0, 4.0))
    shipped = ROOT / "configs" / "quickstart.yaml"
    ours = load_config(shipped, ["train.optimizer={lr: 1e-3}"]).train.optimizer
    assert (ours.kind, ours.lr) == ("adamw", 1e-3)


def test_overrides(tmp_path: Path) -> None:
    text = "name: a\nshapes: [{kind: circle, radius: 2}, {kind: box}]"
    got = load(tmp_path, text, "inner.rate=2e-3", "shapes.0.radius=5", "name=b")
    assert got == Outer("b", Inner(rate=2e-3), shapes=(Circle(radius=5.0), Box()))
    assert load(tmp_path, text, "shapes=[]").shapes == ()
    assert load(tmp_path, text, "inner.limit=4", "inner.limit=null").inner.limit is None


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"name: \xff", "is no text in UTF-8"),
        (b"name: a\0b", "not valid YAML: unacceptable character"),
        (b"name: &a [*a]", "line 1: write *a out; no aliases here"),
        (b"a: &a [x, x]\nb: &b [*a, *a]\nname: [*b, *b]", "line 2: write *a out"),
        (b"name: " + b"[" * 20_000, "more than 50 sections inside each other"),
        (b"name: " + b"{a: " * 3_000 + b"1" + b"}" * 3_000, "more than 50 sections"),
        (b"name: " + b"9" * 5_000, "name is no value that can be read"),
        (b"name: !!python/object:os.system x", "could not determine a constructor"),
        (b"name: 2001-99-99", "name is no value that can be read"),
        (b"name: !!timestamp abc", "name is no value that can be read"),
        (b"name: !!bool abc", "name is no value that can be read"),
        (b"? [a, b]\n: 1", "a key is one word"),
        (b"name: a\n---\nname: b", "another document"),
        (b"name: a\ninner: {batch_size: 1e300}", "whole number below 2^63"),
        (b"name: a\ninner: {batch_size: .nan}", "whole number below 2^63"),
        (b"name: a\ninner: {rate: " + b"9" * 400 + b"}", "a number below 1e308"),
        (b"name: a\nshape: {kind: [box]}", "shape.kind ['box'] is not known"),
        (b"name: a\nshape: {kind: {box: 1}}", "shape.kind {'box': 1} is not known"),
    ],
)
def test_files_that_mean_harm_are_one_sentence_at_once(
    tmp_path: Path, content: bytes, part: str
) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    began = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        build(Outer, read(path))
    assert time.monotonic() - began < 5
    assert part in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("inner.rte=1", ["override 'inner.rte=1'", "inner.rte", "'rate'"]),
        ("inner.rate=x", ["override 'inner.rate=x'", "a number"]),
        ("shapes.2.radius=1", ["shapes has 1 entries"]),
        ("name.x=1", ["name is a value"]),
        ("inner.rate", ["section.key=value"]),
    ],
)
def test_wrong_overrides_name_themselves(tmp_path: Path, override: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "name: a\nshapes: [{kind: circle}]", override)
    for part in parts:
        assert part in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml: cannot be read"):
        read(tmp_path / "gone.yaml")


def test_another_kind_keeps_what_both_know_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text((ROOT / "configs" / "quickstart.yaml").read_text())
    config, notes = load_with_notes(file, ["model.kind=dit", "model.heads=8"])
    dim = load_config(file).model
    assert config.model == DiTConfig(
        image_size=16, channels=3, n_classes=9, dim=dim.dim, depth=dim.depth, heads=8
    )
    (note,) = notes
    assert note == f"model.kind=dit does not know pads of {file}, left out."
    # What the command line itself says must be known, and so must the file's words.
    for wrong in (["model.pads=1"], ["model={kind: dit, pads: 1}"], ["model.padz=1"]):
        with pytest.raises(ConfigError, match=r"model\.pad[sz] is not a known key"):
            load_config(file, ["model.kind=dit", "model.heads=8", *wrong])
    file.write_text(file.read_text().replace("pads:", "padz:"))
    with pytest.raises(ConfigError, match=r"model\.padz is not a known key"):
        load_config(file, ["model.kind=dit", "model.heads=8"])
