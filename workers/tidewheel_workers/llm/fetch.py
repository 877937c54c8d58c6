"""Puts a model of the Hugging Face hub into a directory; the init container of a pod runs this as a program.

    python -m tidewheel_workers.llm.fetch HuggingFaceTB/SmolLM2-135M-Instruct /models/m [--revision main]

A gated model's token comes from the environment variable HF_TOKEN.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tidewheel_workers.llm.errors import ModelDownloadFailed, ModelError
from tidewheel_workers.llm.source import ModelSource, locate_model
from tidewheel_workers.llm.termination import report_failure

WANTED_FILES = ("*.safetensors", "*.json", "*.jinja")


def fetch(model: str, directory: Path, revision: str = "main") -> None:
    """Download what the engine reads, unless it is there already, and check that a model came.

    Raises:
        ModelDownloadFailed: no network, no such repository or revision, or no permission.
        ModelNotFound, ModelUnreadable, ModelUnsupported: the repository holds nothing that the engine reads.
    """
    # slow to import, and only this program needs it
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

    try:
        snapshot_download(model, revision=revision, local_dir=directory, allow_patterns=list(WANTED_FILES))
    except LocalEntryNotFoundError as error:
        raise ModelDownloadFailed(
            f"{model}: the Hugging Face hub cannot be reached from this pod ({_brief(error)}); allow egress to it, set "
            "HF_ENDPOINT to a mirror, or put the model on a volume and use source.volume"
        ) from error
    except GatedRepoError as error:
        raise ModelDownloadFailed(
            f"{model} is gated; accept its terms on the hub and set tokenSecretRef"
        ) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise ModelDownloadFailed(
            f"{model} at revision {revision} could not be downloaded: {_brief(error)}"
        ) from error
    locate_model(ModelSource(kind="path", name=str(directory)))


def main(arguments: list[str] | None = None) -> int:
    """The program; 0 when the model is there, 1 with one line of JSON in the termination log when it is not."""
    parser = argparse.ArgumentParser(prog="python -m tidewheel_workers.llm.fetch", description=__doc__)
    parser.add_argument("model", help="the repository, such as HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("directory", type=Path, help="where the files go")
    parser.add_argument("--revision", default="main", help="a branch, a tag or a commit")
    chosen = parser.parse_args(arguments)
    try:
        fetch(chosen.model, chosen.directory, chosen.revision)
    except ModelError as error:
        report_failure(error)
        return 1
    return 0


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


if __name__ == "__main__":
    sys.exit(main())
