"""How the page looks: Gradio's components, and what happens when somebody uses them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, NamedTuple

import gradio as gr
from matplotlib.figure import Figure
from PIL import Image

from tread_ssm.app.play import (
    CLASS,
    MODEL,
    NONE,
    ROUTES,
    Choice,
    Player,
    images_of,
    plot_weak_pass,
    told,
)

SHOWN = 160  # pixels of an image on the page, at least
# Gradio's own themes name fonts that a browser would look for elsewhere.
THEME = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"])
# As many columns as fit; of Gradio's own four, a phone shows three.
CSS = """
#images .grid-container { grid-template-columns: repeat(auto-fill, minmax(min(160px, 45%), 1fr)); }
"""
_PROGRESS = gr.Progress()


class _Controls(NamedTuple):
    """In the order in which sampling takes them."""

    run: gr.Dropdown
    name: gr.Dropdown
    seed: gr.Number
    n: gr.Slider
    steps: gr.Slider
    kind: gr.Radio
    scale: gr.Slider
    drop: gr.Slider
    weak: gr.Dropdown


class _Results(NamedTuple):
    images: gr.Gallery
    text: gr.Markdown
    tokens: gr.Image


def page(players: Mapping[str, Player]) -> gr.Blocks:
    """The page of these runs, by name. The browser loads nothing from elsewhere.

    Args:
        players: At least one.
    """
    with gr.Blocks(analytics_enabled=False, title="tread_ssm") as blocks:
        gr.Markdown("# Play with a trained run")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                controls = _controls(players)
                button = gr.Button("Sample", variant="primary")
            with gr.Column(scale=2, min_width=280):
                results = _results()
        _wire(players, controls, button, results)
    return blocks


def _controls(players: Mapping[str, Player]) -> _Controls:
    name, player = next(iter(players.items()))
    of = _of_run(player, players)
    return _Controls(
        run=gr.Dropdown(list(players), value=name, label="Run", visible=len(players) > 1),
        name=gr.Dropdown(label="Class", **of["name"]),
        seed=gr.Number(0, label="Seed", precision=0, minimum=0),
        n=gr.Slider(1, 16, 4, step=1, label="Images"),
        steps=gr.Slider(1, 250, step=1, label="Steps", **of["steps"]),
        kind=gr.Radio(label="Guidance", **of["kind"]),
        scale=gr.Slider(0, 10, step=0.1, label="Scale (1 is none)", **of["scale"]),
        drop=gr.Slider(0.05, 0.95, 0.5, step=0.05, label="The weak pass drops", **of["drop"]),
        weak=gr.Dropdown(list(players), label="The weak run", **of["weak"]),
    )


def _results() -> _Results:
    return _Results(
        images=gr.Gallery(
            show_label=False,
            height="fit-content",  # "auto" leaves room for three rows
            object_fit="contain",
            format="png",
            buttons=["download"],
            elem_id="images",
        ),
        text=gr.Markdown(),
        tokens=gr.Image(
            label="Tokens",
            show_label=False,
            elem_id="tokens",
            visible=False,
            format="png",
            buttons=["fullscreen"],
            interactive=False,
        ),
    )


def _of_run(player: Player, players: Mapping[str, Player]) -> dict[str, dict[str, Any]]:
    """What the controls show first for a run."""
    names, options = player.classes, player.run.sample
    others = [name for name, other in players.items() if other is not player]
    kinds = player.kinds + ([MODEL] if others else [])
    kind = CLASS if CLASS in kinds else NONE
    return {
        "name": {"choices": names, "value": names[0] if names else None, "visible": bool(names)},
        "steps": {"value": options.steps},
        "kind": {"choices": kinds, "value": kind},
        "scale": {"value": options.guidance, "visible": kind != NONE},
        "drop": {"visible": kind == ROUTES},
        "weak": {"value": others[0] if others else None, "visible": kind == MODEL},
    }


def _wire(
    players: Mapping[str, Player], controls: _Controls, button: gr.Button, results: _Results
) -> None:
    def choose_run(run: str) -> list[dict[str, Any]]:
        of = _of_run(players[run], players)
        return [
            gr.update(**of[name]) for name in ("name", "steps", "kind", "scale", "drop", "weak")
        ]

    def choose_kind(kind: str) -> list[dict[str, Any]]:
        shown = (kind != NONE, kind == ROUTES, kind == MODEL)
        return [gr.update(visible=visible) for visible in shown]

    def sample(
        run: str,
        name: str | None,
        seed: int,
        n: int,
        steps: int,
        kind: str,
        scale: float,
        drop: float,
        weak: str | None,
        progress: gr.Progress = _PROGRESS,
    ) -> list[Any]:
        choice = Choice(
            kind=kind,
            scale=scale,
            weak_drop=drop,
            steps=steps,
            name=name,
            seed=seed,
            n=n,
            weak_run=weak,
        )
        return _sampled(players[run], choice, progress)

    of_kind = [controls.scale, controls.drop, controls.weak]
    of_run = [controls.name, controls.steps, controls.kind, *of_kind]
    controls.run.change(choose_run, controls.run, of_run)
    controls.kind.change(choose_kind, controls.kind, of_kind)
    # By default, Gradio forgets a press while sampling runs.
    button.click(
        sample, list(controls), list(results), api_name="sample", trigger_mode="always_last"
    )


def _sampled(player: Player, choice: Choice, progress: gr.Progress) -> list[Any]:
    """What the results show."""
    try:
        images = images_of(player, choice, lambda done, all_: progress((done, all_), unit="steps"))
        figure = plot_weak_pass(player, choice, images[0])
    except ValueError as error:  # ConfigError among them
        raise gr.Error(str(error)) from None
    shown = [_enlarged(Image.fromarray(image)) for image in images]
    overlay = None if figure is None else _picture(figure)
    return [shown, told(player, choice), gr.update(value=overlay, visible=overlay is not None)]


def _enlarged(image: Image.Image) -> Image.Image:
    """Without smoothing, so that small images show their pixels."""
    times = max(1, SHOWN // min(image.size))
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)


def _picture(figure: Figure) -> Image.Image:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=130)
    return Image.open(file)
