"""Plans follow from what is seen alone: another process, whose sets and dictionaries hash otherwise, makes the same ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def digest(hash_seed: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "tests.unit.planning.story"],
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_every_plan_of_a_long_story_is_the_same_in_every_process():
    first, second = digest("1"), digest("2")
    assert len(first) == 64
    assert first == second
