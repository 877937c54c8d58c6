"""One arm's process: reads what to measure as lines of JSON, answers with seconds and memory."""

from __future__ import annotations

import json
import random
import resource
import sys
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

VOCAB = 49_000  # ids below it are ordinary tokens of SmolLM2


def main(engine: str, model: str, weights: str, threads: int) -> None:
    began = time.perf_counter()
    arm = _arm(engine)(model, weights, threads)
    loaded = time.perf_counter() - began
    process = psutil.Process()
    _tell(
        load_seconds=loaded,
        rss=process.memory_info().rss,
        weight_bytes=arm.weight_bytes,
        kv_bytes=arm.kv_bytes,
    )
    dice = random.Random(7)
    tokens = [dice.randrange(VOCAB) for _ in range(4096)]
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["do"] == "prefill":
            began = time.perf_counter()
            arm.prefill(tokens[: asked["tokens"]])
            seconds = [time.perf_counter() - began]
        else:
            arm.start(tokens[: asked["context"]], asked["batch"], asked["steps"] + 1)
            arm.step()
            seconds = []
            for _ in range(asked["steps"]):
                began = time.perf_counter()
                arm.step()
                seconds.append(time.perf_counter() - began)
        _tell(
            seconds=seconds,
            rss=process.memory_info().rss,
            peak=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        )


def _arm(engine: str) -> type:
    if engine == "tidewheel":
        from engine_arms.tidewheel_arm import TidewheelArm

        return TidewheelArm
    if engine == "transformers":
        from engine_arms.transformers_arm import TransformersArm

        return TransformersArm
    from engine_arms.llama_cpp_arm import LlamaCppArm

    return LlamaCppArm


def _tell(**what: object) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
