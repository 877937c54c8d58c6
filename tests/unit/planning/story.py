"""A long story in a world in miniature, told by the plans that were made in it: `python -m tests.unit.planning.story` prints their digest."""

from __future__ import annotations

import hashlib
import sys

from tests.unit.autoscaling.loaded import PROFILE, LoadedWorld


def tell() -> str:
    """Loads, boosts, faults, a rollout and a change of the scenarios; every plan on the way counts."""
    told = hashlib.sha256()

    class Told(LoadedWorld):
        def plan(self):
            plan = super().plan()
            told.update(repr(plan).encode())
            return plan

    names = ("code", "draw", "mail")
    scenarios = [
        {"name": name, "match": {"modelAliases": [name]}, "groups": {"replicas": 1}} for name in names
    ]
    world = Told(
        scenarios=scenarios,
        scaling={"profile": PROFILE, "deviceBudget": 24},
        allocation={
            "mode": "Auto",
            "slots": 2,
            "roundSeconds": 120,
            "burnInSeconds": 30,
            "fewestRequests": 10,
            "goodRequestsPerMinute": 60,
            "explorePercent": 30,
            "holdOutPercent": 20,
        },
    )
    loads = dict.fromkeys(("default", *names), (2.0, 100.0, 100.0))
    world.work(30)
    for number in range(8):
        loads[names[number % 3]] = (1.0 + number, 400.0, 50.0)
        world.pass_window(**loads)
        if number == 2:
            for name in world.names("Pod")[::4]:
                world.fail_pod(name)
        if number == 4:
            world.change(image="two")
        if number == 6:
            world.change(scenarios=[])
    return told.hexdigest()


if __name__ == "__main__":
    sys.stdout.write(tell())
