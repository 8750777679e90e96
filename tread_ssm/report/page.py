"""A Markdown report as one HTML file that holds its own pictures, with a slider over stages."""

from __future__ import annotations

import base64
import html
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from markdown_it import MarkdownIt
from PIL import Image

from tread_ssm.files import write_text

TIMELINE = "<!-- timeline -->"
"""Where the slider goes: a line of its own. Readers of Markdown do not see it."""

_STYLE = """
:root { color-scheme: light dark; --ink: #22303c; --ground: #fff; --line: #e3e8ed; --box: #f5f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #d9e0e7; --ground: #14191e; --line: #39434d; --box: #1f262d; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground);
  max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
img { max-width: 100%; height: auto; border-radius: .25rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .8rem .3rem 0; text-align: left;
  vertical-align: top; }
.timeline { background: var(--box); border-radius: .5rem; padding: 1rem; }
.timeline input { width: 100%; accent-color: #2a78c2; }
.timeline .grids { display: flex; flex-wrap: wrap; gap: 1rem; }
.timeline figure { margin: 0; flex: 1 1 18rem; }
figcaption { font-weight: 600; }
"""

_SCRIPT = """
for (const box of document.querySelectorAll(".timeline")) {
  const { files, stages } = JSON.parse(box.querySelector("script").textContent);
  const slider = box.querySelector("input"), label = box.querySelector("output");
  const pictures = [...box.querySelectorAll("img")];
  const show = () => {
    const stage = stages[slider.value];
    label.textContent = stage.label;
    pictures.forEach((picture, i) => { picture.src = files[stage.pictures[i]]; });
  };
  slider.addEventListener("input", show);
  show();
}
"""


@dataclass(frozen=True)
class Stage:
    """One position of the slider.

    Attributes:
        label: What to call it, such as "after 1,000 steps".
        pictures: A picture of each run, in the order of the timeline's names.
    """

    label: str
    pictures: tuple[Path, ...]


@dataclass(frozen=True)
class Timeline:
    """Image grids of runs at one stage after the other.

    Attributes:
        names: Of the runs.
        stages: In order of time; at least one.
    """

    names: tuple[str, ...]
    stages: tuple[Stage, ...]


def write_page(path: Path, markdown: str, timeline: Timeline | None) -> None:
    """Write the page, whole or not at all; it needs no other file and no network.

    Args:
        path: The file. Pictures of the Markdown are found relative to its folder.
        markdown: The text. HTML in it shows as text.
        timeline: Goes where the Markdown has the line `TIMELINE`.
    """
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    title = markdown.lstrip("# ").splitlines()[0].replace("\\", "")
    before, _, behind = markdown.partition(TIMELINE)
    slider = "" if timeline is None else _slider(timeline)
    body = _with_pictures(reader.render(before) + slider + reader.render(behind), path.parent)
    text = (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width">\n<title>{html.escape(title)}</title>'
        f"\n<style>{_STYLE}</style>\n<body>\n{body}\n<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )
    write_text(path, text)


def _with_pictures(text: str, folder: Path) -> str:
    """The page with its pictures inside; those that are missing stay links."""

    def inline(match: re.Match[str]) -> str:
        file = folder / unquote(html.unescape(match[1]))
        return f'src="{_data_url(file)}"' if file.is_file() else match[0]

    return re.sub(r'src="(?!data:)([^"]*)"', inline, text)


def _slider(timeline: Timeline) -> str:
    # A picture that several stages show is held once.
    files = list(dict.fromkeys(path for stage in timeline.stages for path in stage.pictures))
    stages = [
        {"label": stage.label, "pictures": [files.index(path) for path in stage.pictures]}
        for stage in timeline.stages
    ]
    grids = "".join(
        f'<figure><figcaption>{html.escape(name)}</figcaption><img alt="image grid: '
        f'{html.escape(name)}"></figure>'
        for name in timeline.names
    )
    held = {"files": [_data_url(path) for path in files], "stages": stages}
    data = json.dumps(held).replace("<", "\\u003c")
    last = len(stages) - 1
    return (
        f'<div class="timeline"><label>Stage: <output></output><input type="range" min="0" '
        f'max="{last}" value="{last}" step="1"></label><div class="grids">{grids}</div>'
        f'<script type="application/json">{data}</script></div>'
    )


def _data_url(path: Path) -> str:
    """The picture as text, in WebP without loss: grids of small images become much smaller."""
    with Image.open(path) as picture:
        out = io.BytesIO()
        picture.convert("RGB").save(out, "WEBP", lossless=True)
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"
