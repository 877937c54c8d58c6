"""The `tidewheel` command: a thin shell that reads options and calls the layer that does the work."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from tidewheel import __version__

_EXISTING = click.Path(exists=True, dir_okay=False, path_type=Path)
_FILE = click.Path(dir_okay=False, path_type=Path)
_DIRECTORY = click.Path(file_okay=False, path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "TIDEWHEEL"})
@click.version_option(__version__)
def main() -> None:
    """Tidewheel: an operator for LLM serving and training on mixed accelerators."""


@main.command()
@click.option("--check", is_flag=True, help="Change nothing; fail if a file differs from the models.")
def crds(*, check: bool) -> None:
    """Write crds/ and the chart's copy of it from the API models."""
    from tidewheel.generated import crd_files, write_or_check

    _finish(write_or_check(crd_files(), check=check), "tidewheel crds")


@main.command()
@click.option("--check", is_flag=True, help="Change nothing; fail if a page differs from the models.")
def docs(*, check: bool) -> None:
    """Write the generated reference pages of docs/."""
    from tidewheel.generated import reference_files, write_or_check

    _finish(write_or_check(reference_files(), check=check), "tidewheel docs")


def _finish(stale: list[Path], command: str) -> None:
    if stale:
        names = ", ".join(str(path) for path in stale)
        raise click.ClickException(f"not what the models say: {names}; run `{command}` and commit the result")


if __name__ == "__main__":
    sys.exit(main())
