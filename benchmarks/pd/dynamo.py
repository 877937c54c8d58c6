"""NVIDIA Dynamo's offline replay as a peer: ai-dynamo 1.4.2 in an environment of its own, since it wants older libraries than ours.

    python -m venv dynamo && dynamo/bin/pip install --no-deps ai-dynamo==1.4.2 && dynamo/bin/pip install ai-dynamo-runtime==1.4.2 \
        "transformers<5" zstandard pyyaml pydantic msgspec scikit-learn prometheus-client filterpy pmdarima plotly prophet \
        "kubernetes<33" prometheus-api-client numpy
"""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import zipfile
from itertools import count
from math import ceil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tidewheel.planning.scaling.profile import DeviceProfile
    from tidewheel.simulation.traces import Request

BLOCK_TOKENS = 512
LONGEST_SECONDS = 170


def closed_loop(
    python: Path,
    folder: Path,
    prefills: int,
    decodes: int,
    *,
    prompt: int,
    answer: int,
    requests: int,
    in_flight: int,
    sequences: int,
) -> dict[str, Any]:
    """Equal requests, so many in flight, on the mocker's default device; `sequences` fit into a batch."""
    return _run(
        python,
        folder,
        prefills,
        decodes,
        {"block_size": 64, "max_num_seqs": sequences},
        *("--input-tokens", str(prompt), "--output-tokens", str(answer)),
        *("--request-count", str(requests), "--replay-concurrency", str(in_flight)),
    )


def trace_replay(
    python: Path,
    folder: Path,
    prefills: int,
    decodes: int,
    requests: Sequence[Request],
    profile: DeviceProfile,
    *,
    ttft_seconds: float,
    planner: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A trace on a device; with a planner if its configuration is given."""
    (folder / "trace.jsonl").write_text("".join(_lines(requests)))
    (folder / "device.npz").write_bytes(_npz(profile))
    engine = {
        "block_size": 64,
        "num_gpu_blocks": profile.kv_tokens // 64,
        "startup_time": 60,
        "max_model_len": 131_072,
        "planner_profile_data": str(folder / "device.npz"),
    }
    more = ["--sla-ttft-ms", str(1000 * ttft_seconds)]
    if planner is not None:
        more += ["--planner-config", json.dumps(planner)]
    return _run(python, folder, prefills, decodes, engine, str(folder / "trace.jsonl"), *more)


def _run(
    python: Path, folder: Path, prefills: int, decodes: int, engine: dict[str, Any], *more: str
) -> dict[str, Any]:
    report = folder / "report.json"
    command = [
        *(
            str(python),
            "-m",
            "dynamo.replay",
            *more,
            "--replay-mode",
            "offline",
            "--router-mode",
            "round_robin",
        ),
        *("--num-prefill-workers", str(prefills), "--num-decode-workers", str(decodes)),
        *("--prefill-engine-args", json.dumps(engine | {"worker_type": "prefill"})),
        *("--decode-engine-args", json.dumps(engine | {"worker_type": "decode"})),
        *("--report-json", str(report)),
    ]
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=LONGEST_SECONDS,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"dynamo.replay ended with {done.returncode}: {done.stderr[-500:]}")
    seen: dict[str, Any] = json.loads(report.read_text())
    return seen


def _lines(requests: Sequence[Request]) -> list[str]:
    """With the shared prefixes that are known, and otherwise blocks that nobody shares."""
    names = count(10_000_000)
    lines = []
    for one in requests:
        blocks = list(one.blocks)
        blocks += [next(names) for _ in range(ceil(one.prompt_tokens / BLOCK_TOKENS) - len(blocks))]
        row = {
            "timestamp": round(1000 * one.at),
            "input_length": one.prompt_tokens,
            "output_length": one.answer_tokens,
            "hash_ids": blocks,
        }
        lines.append(json.dumps(row) + "\n")
    return lines


def _npz(profile: DeviceProfile) -> bytes:
    """The profile in the mocker's format, sampled as its converter does."""
    lengths = [100 + 16_272 * step / 99 for step in range(100)]
    kv_tokens = [910_195 * step / 99 for step in range(100)]
    contexts = [1 + 13_584 * step / 99 for step in range(100)]
    itl = [
        1000 * profile.decode_seconds(max(1.0, kv / context), min(kv, context) if kv < context else context)
        for kv in kv_tokens
        for context in contexts
    ]
    arrays = {
        "prefill_isl": ((100,), lengths),
        "prefill_ttft_ms": ((100,), [1000 * profile.prefill_seconds(length) for length in lengths]),
        "decode_active_kv_tokens": ((100,), kv_tokens),
        "decode_context_length": ((100,), contexts),
        "decode_itl": ((100, 100), itl),
    }
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for name, (shape, values) in arrays.items():
            header = repr({"descr": "<f8", "fortran_order": False, "shape": shape}).encode()
            header += b" " * (-(len(header) + 11) % 64) + b"\n"
            content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
            archive.writestr(f"{name}.npy", content + struct.pack(f"<{len(values)}d", *values))
    return held.getvalue()
