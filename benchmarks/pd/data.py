"""The traces and the device that the benchmarks simulate: as published if there is a directory of them, else as in `data/`."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tidewheel.simulation.profiles import H200
from tidewheel.simulation.traces import read_trace

if TYPE_CHECKING:
    from tidewheel.simulation.traces import Request

INCLUDED = Path(__file__).parent.parent / "data"
TRACES = {
    "azure code": "azure2023_code.csv",
    "azure conv": "azure2023_conv.csv",
    "mooncake conversation": "mooncake_conversation.jsonl",
    "mooncake synthetic": "mooncake_synthetic.jsonl",
}
#: Its 945,029 tokens of KV fill about 120 GB, so that a token has 127 kB; over a link of 64 GB/s (NVIDIA Dynamo's mocker's).
LINKED_H200 = replace(H200, transfer_seconds_per_token=2e-6)


def trace(name: str, directory: Path | None) -> tuple[Request, ...]:
    """One of `TRACES`."""
    file = TRACES[name]
    if directory is not None:
        for place in (directory / file, directory / "traces" / file):
            if place.exists():
                with place.open() as lines:
                    return read_trace(lines, scenario=name)
        raise SystemExit(f"{directory} holds no {file}; name the directory of the published traces")
    with gzip.open(INCLUDED / f"{file}.gz", "rt") as lines:
        return read_trace(lines, scenario=name)
