"""A world whose gateways, prefills and decodes show metrics as a load would make them."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

from tests.unit.planning.seen import DEFAULTS
from tests.unit.planning.world import KEY, World

from tidewheel.api.distribution import Distribution
from tidewheel.api.manifest import CONFIG_MAPS, PODS
from tidewheel.api.meta import LABEL_ROLE, LABEL_SCENARIO
from tidewheel.controllers.load_watch import LoadBook
from tidewheel.controllers.pdservice import PDServiceController
from tidewheel.planning.autoscaling.memory import Memory
from tidewheel.planning.groups import groups_of
from tidewheel.planning.load import page
from tidewheel.planning.load.page import PodCounts, Series
from tidewheel.planning.load.window import Look, Window
from tidewheel.planning.observed import ObservedService
from tidewheel.planning.times import from_time

#: A prefill computes a thousand tokens in half a second, a decode gives a token every 20 ms to few sequences.
PROFILE = {
    "prefill": {"nanosecondsPerToken": 500_000},
    "decode": {"baseMicroseconds": 20_000, "nanosecondsPerSequence": 500_000},
}
SECONDS = 30.0


class LoadedWorld(World):
    """One PDService under load; windows end when a test says so."""

    def __init__(self, *, mode: str = "Auto", **spec: Any) -> None:
        scaling = {
            "mode": mode,
            "windowSeconds": int(SECONDS),
            "podsPerGroup": 128,
            "startupSeconds": 30,
            "holdSeconds": 60,
        }
        spec["scaling"] = scaling | spec.pop("scaling", {})
        spec.setdefault("slo", {"ttftMs": 2000, "tpotMs": 60})
        spec.setdefault("rollout", {"maxSkewPercent": 400})
        spec.setdefault("decode", {"slots": 32})
        self.book = LoadBook()
        #: Variance over mean of the arrivals per second; gateways tell of it only if it is set.
        self.dispersion: float | None = None
        #: How long pods of a role take from their creation until they are ready, at least.
        self.startup = {"prefill": 0.0, "decode": 0.0, "gateway": 0.0}
        super().__init__(**spec)

    def another_controller(self) -> PDServiceController:
        """One that reads the same metrics."""
        return PDServiceController(DEFAULTS, self.book)

    def restart_operator(self) -> None:
        """Nothing is left of it but what stands in the cluster."""
        self.book = LoadBook()
        self.controller = self.another_controller()

    def lose_memory(self) -> None:
        """Somebody deletes what the planner remembers."""
        found = self.cache.get(CONFIG_MAPS, "ns", "chat-scaling")
        assert found is not None
        self._forget(CONFIG_MAPS, "ns", "chat-scaling", found["metadata"]["uid"])
        self._digests.pop("ConfigMap/chat-scaling", None)

    def sizes(self, seen: ObservedService) -> dict[str, set[tuple[int, int]]]:
        """As planned, where a scenario has one group; the spec's own where nothing is planned."""
        sizes = super().sizes(seen)
        found = self.cache.get(CONFIG_MAPS, "ns", "chat-scaling")
        if found is None:
            return sizes
        numbers = Memory.from_text(found["data"]["memory.json"]).numbers
        scenarios = {group.name: group.scenario for group in groups_of(seen.pods) if group.name in sizes}
        for name, scenario in scenarios.items():
            if (planned := numbers.get(scenario)) is None:
                continue
            if list(scenarios.values()).count(scenario) == 1:
                sizes[name] = {(planned.prefill, planned.decode)}
            else:
                del sizes[name]
        return sizes

    def end_window(self, **loads: tuple[float, float, float]) -> None:
        """A window ends in which each scenario had so many requests a second, of so many prompt and answer tokens."""
        first = Look(at=self.now.timestamp())
        self.now += timedelta(seconds=SECONDS)
        pods = {pod["metadata"]["uid"]: self._counts(pod, loads) for pod in self.pods}
        self.book.write(KEY, Window(first=first, last=Look(at=self.now.timestamp(), pods=pods)))

    def carry(self, windows: int = 1, **loads: tuple[float, float, float]) -> None:
        """So many windows, after each of which the world settles."""
        for _ in range(windows):
            self.end_window(**loads)
            self.settle()

    def pass_window(self, **loads: tuple[float, float, float]) -> None:
        """Everybody works for a while, and then a window ends, the one that began when they did."""
        began = self.now
        self.work(12)
        self.now = began
        self.end_window(**loads)
        self._works()

    def run_pod(self, name: str) -> None:
        found = self.cache.get(PODS, "ns", name)
        if found is not None:
            age = (self.now - from_time(found["metadata"]["creationTimestamp"])).total_seconds()
            if age >= self.startup[found["metadata"]["labels"][LABEL_ROLE]]:
                super().run_pod(name)

    def work(self, seconds: int) -> None:
        """So many seconds, in each of which everybody does what there is to do."""
        for _ in range(seconds):
            self._works()
            self.now += timedelta(seconds=1)

    def _works(self) -> None:
        self.reconcile()
        for one in self.pods:
            if not self._is_ready(one):
                self.run_pod(one["metadata"]["name"])
        self.end_pods()

    def number(self, role: str, scenario: str = "default") -> int:
        return sum(
            pod["metadata"]["labels"][LABEL_ROLE] == role
            and pod["metadata"]["labels"].get(LABEL_SCENARIO, "default") == scenario
            for pod in self.pods
        )

    @property
    def numbers(self) -> tuple[int, int]:
        return self.number("prefill"), self.number("decode")

    @property
    def found(self) -> dict[str, dict[str, Any]]:
        """What the status says of each scenario."""
        return {one["name"]: one for one in self.service["status"]["scaling"]["scenarios"]}

    def told(self, action: str) -> list[str]:
        return [one["message"] for one in self.service["status"]["decisions"] if one["action"] == action]

    def _counts(self, pod: Any, loads: dict[str, tuple[float, float, float]]) -> PodCounts:
        role = pod["metadata"]["labels"][LABEL_ROLE]
        if role == "gateway":
            return self._gateway(loads)
        scenario = pod["metadata"]["labels"].get(LABEL_SCENARIO, "default")
        rate, prompt, answer = loads.get(scenario, (0.0, 0.0, 0.0))
        if role == "prefill":
            return PodCounts(
                distributions={Series(page.PREFILL_SECONDS): _all(rate * SECONDS, prompt * 5e-4)}
            )
        return PodCounts(distributions={Series(page.DECODE_SECONDS): _all(rate * SECONDS, answer * 0.021)})

    def _gateway(self, loads: dict[str, tuple[float, float, float]]) -> PodCounts:
        values, distributions = {}, {}
        for name, (rate, prompt, answer) in loads.items():
            requests = rate * SECONDS
            values[Series(page.ARRIVALS, name)] = requests
            if self.dispersion is not None:
                # more in every other second than in those between
                apart = math.sqrt(self.dispersion * rate)
                for second in range(32):
                    came = rate + apart * (-1) ** second
                    values[Series(page.ARRIVALS_BY_SECOND, name, str(second))] = came
            for metric, value in (
                (page.PROMPT_TOKENS, prompt),
                (page.OUTPUT_TOKENS, answer),
                (page.TTFT, prompt * 5e-4),
                (page.TPOT, 0.021),
                (page.DURATION, prompt * 5e-4 + answer * 0.021),
            ):
                distributions[Series(metric, name)] = _all(requests, value)
        return PodCounts(values=values, distributions=distributions)


def _all(count: float, value: float) -> Distribution:
    """So many values, all the same, in buckets that are as fine as metrics have them."""
    bound = 2 ** math.ceil(math.log2(value)) if value > 0 else 1.0
    return Distribution(buckets=((bound / 2, 0.0), (bound, count), (math.inf, count)), total=count * value)
