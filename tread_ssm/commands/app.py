"""Open a page in the browser to play with trained runs: class, seed, guidance and its tokens.

    tread-ssm app --run runs/quickstart
    tread-ssm app --run runs/dim --run runs/dit --port 7861

The page guides by the class, by routes, by path and, with two runs or more, by another run. It is
served to this machine alone, unless --host says otherwise, and loads nothing from elsewhere.
Ctrl-C ends it. Needs Gradio: pip install "tread_ssm[app]".
"""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

from tread_ssm import command
from tread_ssm.errors import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    read = command.parser("app", __doc__)
    add = read.add_argument
    add("--run", type=Path, action="append", required=True, dest="runs", metavar="FOLDER",
        help="folder of a run; repeatable")  # fmt: skip
    add("--host", default="127.0.0.1", help="0.0.0.0 serves the whole network (127.0.0.1)")
    add("--port", type=int, default=7860, help="(7860)")
    add("--vae", help="autoencoder of latents: a folder or an identifier (default: the data's)")
    add("--device", help="default: a GPU where there is one")
    args = read.parse_args(argv)
    return command.run(lambda: _serve(args))


def _serve(args: argparse.Namespace) -> None:
    if not 0 <= args.port < 1 << 16:
        raise ConfigError(f"--port is {args.port}; it must be between 0 and 65535.")
    if importlib.util.find_spec("gradio") is None:
        raise ConfigError('The page needs Gradio: pip install "tread_ssm[app]".')
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read while gradio is imported
    from tread_ssm.app.page import CSS, THEME, page
    from tread_ssm.app.play import Player

    place = command.device(args.device)
    players = {str(folder): Player.load(folder, place, args.vae) for folder in args.runs}
    command.say(f"http://{args.host}:{args.port}/ shows the page; Ctrl-C ends it.")
    page(players).launch(
        server_name=args.host,
        server_port=args.port,
        theme=THEME,
        css=CSS,
        share=False,
        inbrowser=False,
        quiet=True,
        show_error=True,
        footer_links=[],
        ssr_mode=False,
    )
