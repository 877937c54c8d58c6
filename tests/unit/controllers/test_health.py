"""The probes: what they answer, and that they name what is wrong."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from prometheus_client import CollectorRegistry
from tests.unit.controllers.virtual_time import run

from tidewheel.controllers.health import Check, HealthServer, Heartbeat, ServerAddressTaken
from tidewheel.controllers.metrics import ControllerMetrics
from tidewheel.controllers.settings import Address

LOOPBACK = Address(host="127.0.0.1")


def server(*, live: dict[str, Check] | None = None, ready: dict[str, Check] | None = None) -> HealthServer:
    return HealthServer(
        health=LOOPBACK, metrics=LOOPBACK, registry=CollectorRegistry(), live=live or {}, ready=ready or {}
    )


async def get(address: Address | None, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(f"http://{address}{path}") as response:
        return response.status, await response.text()


async def test_a_failed_check_fails_its_probe_and_is_named():
    live: dict[str, Check] = {"watches": lambda: "silent for 500 s", "event-loop": lambda: None}
    async with server(live=live, ready={"caches": lambda: None}) as served:
        status, text = await get(served.health_address, "/healthz")
        assert status == 503
        assert "[-]watches failed: silent for 500 s" in text
        assert "[+]event-loop ok" in text
        assert (await get(served.health_address, "/readyz"))[0] == 200


async def test_metrics_and_probes_share_one_port_when_both_are_asked_for_there():
    async with server() as served:
        assert served.metrics_address == served.health_address
        assert (await get(served.metrics_address, "/metrics"))[0] == 200


async def test_a_taken_address_names_the_flag():
    async with server() as served:
        taken = HealthServer(
            health=served.health_address, metrics=None, registry=CollectorRegistry(), live={}, ready={}
        )
        with pytest.raises(ServerAddressTaken, match=r"--health-address 127\.0\.0\.1"):
            async with taken:
                pass


def test_the_heartbeat_shows_an_event_loop_that_stands_still():
    async def main() -> None:
        loop = asyncio.get_running_loop()
        heartbeat = Heartbeat(clock=loop.time)
        beating = asyncio.create_task(heartbeat.run())
        await asyncio.sleep(100)
        assert heartbeat.age_seconds() <= 1.0
        beating.cancel()
        await asyncio.sleep(40)
        assert heartbeat.age_seconds() >= 40.0

    run(main())


def test_the_longest_running_work_is_told_at_the_moment_of_the_scrape():
    metrics = ControllerMetrics(CollectorRegistry())
    metrics.queue("one", lambda: [2.0, 5.0])
    metrics.queue("two", list)
    read = metrics.registry.get_sample_value
    assert read("workqueue_longest_running_processor_seconds", {"name": "one"}) == 5.0
    assert read("workqueue_unfinished_work_seconds", {"name": "one"}) == 7.0
    assert read("workqueue_longest_running_processor_seconds", {"name": "two"}) == 0.0


@pytest.mark.parametrize("waited", [12.0, 45.0, 100.0, 200.0, 400.0])
def test_a_wait_of_minutes_is_told_to_within_half_of_itself(waited):
    metrics = ControllerMetrics(CollectorRegistry())
    metrics.queue("one", list).started(0, waited)
    counts = {
        float(sample.labels["le"]): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "workqueue_queue_duration_seconds_bucket"
    }
    upper = min(edge for edge, count in counts.items() if count)
    lower = max(edge for edge, count in counts.items() if not count)
    assert lower < waited <= upper <= 1.5 * lower


@pytest.mark.parametrize(
    ("text", "want"),
    [
        (":8080", Address(host="0.0.0.0", port=8080)),
        ("127.0.0.1:0", Address(host="127.0.0.1", port=0)),
        ("[::]:8080", Address(host="::", port=8080)),
    ],
)
def test_addresses_are_read_as_people_write_them(text, want):
    assert Address.parse(text) == want


@pytest.mark.parametrize("text", ["8080", "localhost:", "host:port"])
def test_what_is_no_address_says_how_to_write_one(text):
    with pytest.raises(ValueError, match="HOST:PORT"):
        Address.parse(text)
