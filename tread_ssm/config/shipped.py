"""The configurations that come with the package, found by name."""

from __future__ import annotations

from pathlib import Path

from tread_ssm.errors import ConfigError


def shipped() -> dict[str, Path]:
    """The files by their names, such as dim_l."""
    package = Path(__file__).parents[1]
    # setup.py copies the folder into the package; a checkout has it beside the package.
    folders = (package / "configs", package.parent / "configs")
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.yaml"))}


def find(config: str | Path) -> Path:
    """The file of a configuration that is named by its path, or by the name of a shipped one.

    Raises:
        ConfigError: There is neither.
    """
    path, known = Path(config), shipped()
    if path.exists():
        return path
    if str(config) in known:
        return known[str(config)]
    raise ConfigError(
        f"{config}: there is no such file; the configurations that come with the package are "
        f"{', '.join(sorted(known))}."
    )
