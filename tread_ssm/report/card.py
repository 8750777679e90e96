"""The model card of a run: README.md beside its weights, which the Hugging Face Hub shows."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import yaml

from tread_ssm.config.run_folder import RunFolder
from tread_ssm.data import EmojiData
from tread_ssm.files import write_text
from tread_ssm.models.cost import count_parameters
from tread_ssm.report.grids import grids_by_step
from tread_ssm.report.history import History, training_flops
from tread_ssm.report.markdown import code, literal, routes_text
from tread_ssm.tables import duration, markdown_table, short

MARK = "<!-- tread-ssm writes this card anew unless this line is removed. -->"


def write_card(folder: RunFolder) -> None:
    """Write the card of a run that has logged something. One that somebody has edited stays.

    Args:
        folder: The run's folder.

    Raises:
        ConfigError: The run is damaged.
    """
    path = folder.path / "README.md"
    if path.is_file() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
        return
    run = History.read(folder.path)
    parts = [_front(run), f"{MARK}\n\n# {literal(run.config.name)}", _about(run), _grid(folder)]
    parts += [_recipe(run), _figures(run), _use(), _licence(run)]
    write_text(path, "\n\n".join(filter(None, parts)) + "\n")


def _front(run: History) -> str:
    """What the Hub reads: tags and the licence of the weights."""
    fields: dict[str, Any] = {
        "library_name": "tread_ssm",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["diffusion", run.config.model.kind, "token-routing"],
        "license": "apache-2.0" if isinstance(run.config.data, EmojiData) else "other",
    }
    return f"---\n{yaml.safe_dump(fields, sort_keys=False).strip()}\n---"


def _about(run: History) -> str:
    config, model = run.config, run.config.model
    kind = f"{model.kind} of {short(count_parameters(model))} parameters and {model.depth} blocks"
    routes = routes_text(config.plan, " of the tokens past blocks ")
    trained = f"It was trained with token routing: {routes}." if routes else "It has no routes."
    classes = f"{model.n_classes} classes" if model.n_classes else "no classes"
    return (
        f"A diffusion model of images, a {kind}, with {classes}; made with `tread_ssm`. {trained} "
        f"Sampling uses the averaged weights and every token."
    )


def _grid(folder: RunFolder) -> str:
    grids = grids_by_step(folder)
    if not grids:
        return ""
    return f"![samples, one row per class](samples/{quote(grids[max(grids)].name)})"


def _recipe(run: History) -> str:
    config, last = run.config, run.rows[-1]
    train = config.train
    rows = {
        "data": f"{config.data.kind}, {config.model.channels} x {config.model.image_size} x "
        f"{config.model.image_size} numbers an image",
        "objective": config.objective.kind,
        "steps": f"{last['step']:,} of {train.batch_size} images",
        "optimiser": f"{train.optimizer.kind}, learning rate {train.optimizer.lr:g}",
        "averaging": f"decay {train.ema_decay:g}",
        "precision": train.precision,
        "seed": str(config.seed),
        "training": f"{duration(last['seconds'])}, "
        f"{training_flops(config, [last['step']])[0]:.3g} FLOPs",
    }
    return "## Recipe\n\n" + markdown_table(("", ""), [(k, literal(v)) for k, v in rows.items()])


def _figures(run: History) -> str:
    if not run.evals:
        return ""
    last, options = run.evals[-1], run.config.eval
    rows = [
        (literal(title), f"{last[name]:.4g}")
        for name, title in run.measures.items()
        if name in last
    ]
    return (
        f"## Figures\n\n{last['count']:,} images after {last['step']:,} steps, "
        f"{options.extractor} features.\n\n{markdown_table(('', ''), rows)}"
    )


def _use() -> str:
    return (
        "## Use\n\n```python\nfrom tread_ssm import from_pretrained, sample_images\n\n"
        'model, run = from_pretrained("USER/NAME")  # or a folder\n'
        "images = sample_images(model, run, n=4)  # of each class\n```\n\n"
        f"`config.json` describes the network; {code('tread-ssm sample --run FOLDER')} samples "
        "images."
    )


def _licence(run: History) -> str:
    if isinstance(run.config.data, EmojiData):
        text = (
            "The training data is Google's Noto Emoji, Copyright Google LLC, Apache License 2.0 "
            "(https://github.com/googlefonts/noto-emoji)."
        )
    else:
        text = (
            "Nobody has stated the licence of the weights or of the training data yet. State both "
            "before you publish them, and set `license` above."
        )
    return f"## Licence\n\n{text}"
