"""Why a container could not start, left where Kubernetes and so the operator find it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tidewheel_workers.llm.errors import ModelError

LOG_VARIABLE = "TIDEWHEEL_TERMINATION_LOG"
DEFAULT_LOG = "/dev/termination-log"
MOST_CHARACTERS = 1024  # the kubelet keeps 4,096 bytes; the operator shows one line


def report_failure(error: ModelError) -> None:
    """Write reason and message as one line of JSON to the termination log, and to stderr for whoever reads logs."""
    line = json.dumps({"reason": error.reason, "message": str(error)[:MOST_CHARACTERS]})
    sys.stderr.write(line + "\n")
    log = Path(os.environ.get(LOG_VARIABLE, DEFAULT_LOG))
    try:
        log.write_text(line + "\n")
    except OSError as failure:
        sys.stderr.write(f"the termination log {log} cannot be written: {failure}\n")
