"""Model cards of real (tiny) runs."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.report.test_report import run
from tread_ssm.commands.train import main
from tread_ssm.config.run import RunConfig
from tread_ssm.models.cost import count_parameters
from tread_ssm.report.card import MARK, write_card
from tread_ssm.tables import short


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = tmp_path_factory.mktemp("card")
    config = run(folder, "eval.every=6", "eval.num=80", "eval.extractor=emoji", "eval.steps=2")
    assert main(["--config", str(folder / "tiny.yaml"), f"out={folder}", "eval.every=6",
                 "eval.num=80", "eval.extractor=emoji", "eval.steps=2"]) == 0  # fmt: skip
    return config


def test_the_card_says_what_the_run_is(finished: RunConfig) -> None:
    text = (finished.folder.path / "README.md").read_text()
    front, body = text.removeprefix("---\n").split("\n---\n", 1)
    fields = yaml.safe_load(front)
    assert fields["library_name"] == "tread_ssm" and fields["license"] == "apache-2.0"
    assert "dit" in fields["tags"]
    assert short(count_parameters(finished.model)) in body
    assert "50% of the tokens past blocks 1 to 2" in body
    assert "FD (emoji)" in body and "80 images after 6 steps" in body
    namespace: dict[str, Any] = {}
    python = body.split("```python\n")[1].split("```")[0]
    exec(python.replace("USER/NAME", str(finished.folder.path)), namespace)
    assert len(namespace["images"]) == 4 * 9
    picture = body.split("](")[1].split(")")[0]
    assert (finished.folder.path / picture).is_file()


def test_an_edited_card_stays(finished: RunConfig) -> None:
    path = finished.folder.path / "README.md"
    written = path.read_text()
    path.write_text(written + "more\n")
    write_card(finished.folder)
    assert path.read_text() == written
    path.write_text(written.replace(MARK, "") + "mine\n")
    write_card(finished.folder)
    assert path.read_text().endswith("mine\n")
    path.write_text(written)


def test_names_cannot_forge_a_card(tmp_path: Path) -> None:
    config = run(tmp_path, "name=a_b", "sample.every=0", "routing.routes=[]")
    write_card(config.folder)
    text = (config.folder.path / "README.md").read_text()
    assert "# a\\_b" in text and "no routes" in text and "samples/" not in text
