"""What is the README's alone; its examples and commands are tested with those of docs/."""

import re
from pathlib import Path

from tread_ssm.routing.attach.presets import PRESETS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", title).strip().lower().replace(" ", "-") for title in titles}


def test_links_and_configurations_exist() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)#?([^)]*)\)", README)
    assert len(links) > 10
    assert not [file for file, _ in links if not (ROOT / file).is_file()]
    wrong = [(f, a) for f, a in links if a and a not in headings(ROOT / f)]
    assert not wrong
    rows = re.findall(r"^\| ((?:`\w+`, )*`\w+`) \|", README, re.MULTILINE)
    stems = re.findall(r"`((?:dim\d?|dit)_\w+)`", " ".join(rows))
    assert sorted(stems) == sorted(p.stem for p in (ROOT / "configs").glob("di*.yaml"))


def test_the_number_of_known_models_is_right() -> None:
    assert "more than forty classes" in README and len(PRESETS) > 40


def test_continuous_integration_runs_the_two_commands() -> None:
    marked = README.split("<!-- ci:begin -->")[1].split("<!-- ci:end -->")[0]
    commands = [line for line in marked.splitlines() if line.startswith("pip install")]
    assert commands == [
        "pip install -e . && accelerate launch scripts/train.py --config configs/quickstart.yaml",
        'pip install -e ".[dev]" && pytest -n auto --dist loadfile',
    ]
