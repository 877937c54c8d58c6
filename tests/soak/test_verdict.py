"""A fault explains what it can cause, for as long as it is felt, and nothing else is let pass."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.soak.clients import Record
from tests.soak.director import Window
from tests.soak.plans import Ending
from tests.soak.residue import Residue, complaints
from tests.soak.story import KINDS, Fault
from tests.soak.verdict import AFTERMATH_SECONDS, checks, is_excused, is_explained

KIND = {kind.name: kind for kind in KINDS}


def window(
    kind: str = "kill", *, name: str = "gateway-0", life: int = 1, began=10.0, overcome=12.0
) -> Window:
    fault = Fault(at=0, kind=KIND[kind], role="gateway", place=0, port=None, seconds=0, seed=0)
    return Window(fault=fault, name=name, life=life, began=began, overcome=overcome)


def record(ending: Ending, *, sent: float = 11.0, ended: float = 11.5, **fields) -> Record:
    return Record(
        **{
            "kind": "stream",
            "choices": 1,
            "gateway": "gateway-0",
            "life": 1,
            "status": 200,
            "ending": ending,
            "detail": "",
            "sent": sent,
            "first": None,
            "ended": ended,
            **fields,
        }
    )


@pytest.mark.parametrize("ending", [Ending.SHED, Ending.FAILED, Ending.INTERRUPTED])
def test_an_error_is_explained_while_a_fault_is_felt(ending):
    felt_until = 12.0 + AFTERMATH_SECONDS
    assert is_excused(record(ending), [window()])
    assert is_excused(record(ending, sent=felt_until, ended=felt_until + 9), [window()])
    assert not is_excused(record(ending, sent=felt_until + 0.1, ended=felt_until + 9), [window()])
    assert not is_excused(record(ending, sent=1, ended=9.9), [window()])


@pytest.mark.parametrize(
    ("one", "holds"),
    [
        pytest.param(window(), True, id="its gateway was killed"),
        pytest.param(window("kill one"), True, id="one of its processes was"),
        pytest.param(window(name="gateway-1"), False, id="another was"),
        pytest.param(window(life=2), False, id="it was, in another life"),
        pytest.param(window("drain"), False, id="it was told to end"),
        pytest.param(window(began=20, overcome=21), False, id="it was killed later"),
    ],
)
def test_a_connection_that_breaks_is_explained_by_the_end_of_its_gateway_only(one, holds):
    assert is_excused(record(Ending.VANISHED), [one]) is holds


@pytest.mark.parametrize("ending", [Ending.WRONG, Ending.UNHEARD])
def test_nothing_explains_a_wrong_answer_or_none(ending):
    assert not is_excused(record(ending), [window()])


@pytest.mark.parametrize("ending", [Ending.ANSWERED, Ending.REFUSED, Ending.LEFT])
def test_a_proper_end_needs_no_explanation(ending):
    assert is_excused(record(ending), [])


REST = Residue(
    name="gateway-0",
    role="gateway",
    life=1,
    is_alive=True,
    held={},
    codes={"200": 3.0},
    descriptors=30,
    half_closed=0,
    threads=5,
    rss_mb=60.0,
)
WELL = [record(Ending.ANSWERED)] * 3


def broken(records=WELL, windows=(), after=REST, **more) -> set[str]:
    found = checks(
        records,
        windows,
        [REST],
        [after],
        **{"sent": {("gateway-0", 1): 3}, "afterwards": [], "unasked_ends": [], "complaints": [], **more},
    )
    return {one.name for one in found if not one.holds}


def test_a_service_that_held_breaks_nothing():
    assert broken() == set()


@pytest.mark.parametrize(
    ("seen", "promise"),
    [
        ({"records": [*WELL, record(Ending.WRONG)]}, "requests with a wrong answer"),
        ({"records": [*WELL, record(Ending.UNHEARD)]}, "requests without an end"),
        ({"records": [*WELL, record(Ending.VANISHED)]}, "requests that vanished"),
        ({"records": [*WELL, record(Ending.SHED)]}, "errors without a fault"),
        (
            {"records": [*WELL, record(Ending.INTERRUPTED)], "windows": [window()]},
            "streams of one choice that were not resumed",
        ),
        ({"windows": [window(overcome=float("inf"))]}, "faults not overcome"),
        ({"afterwards": [record(Ending.SHED)]}, "requests after the storm that were not answered"),
        ({"unasked_ends": ["decode-0"]}, "processes that ended by themselves"),
        ({"complaints": ["decode-0: failed"]}, "errors in the processes' logs"),
        ({"after": replace(REST, is_alive=False)}, "processes that do not answer"),
        ({"after": replace(REST, held={"slots": 1.0})}, "slots, KV or streams held at rest"),
        ({"after": replace(REST, half_closed=1)}, "half-closed sockets at rest"),
        ({"after": replace(REST, codes={"200": 2.0})}, "gateways whose counters do not fit"),
        ({"after": replace(REST, codes={"200": 4.0})}, "gateways whose counters do not fit"),
        ({"after": replace(REST, descriptors=100)}, "descriptors more than before"),
        ({"after": replace(REST, threads=50)}, "threads more than before"),
        ({"after": replace(REST, rss_mb=200.0)}, "MB of memory more than before"),
    ],
)
def test_each_promise_can_be_broken(seen, promise):
    assert promise in broken(**seen)


def test_what_our_code_logs_as_an_error_is_a_complaint():
    log = "\n".join(
        [
            '{"level": "error", "logger": "tidewheel_workers.serving", "message": "failed"}',
            '{"level": "error", "logger": "asyncio", "message": "Task exception was never retrieved"}',
            '{"level": "error", "logger": "aiohttp.server", "message": "Error handling request"}',
            '{"level": "warning", "logger": "tidewheel_workers.serving", "message": "lost"}',
            "Fatal Python error: Segmentation fault",
        ]
    )
    assert len(complaints({"decode-0": log})) == 3


def test_a_supervisor_may_say_that_a_process_was_killed_when_one_was():
    complaint = "gateway-0: process 1 (pid 9) ended with -9; another takes its place"
    assert is_explained(complaint, [window("kill one")])
    assert not is_explained(complaint, [window("kill one", name="gateway-1"), window("stall")])
    assert not is_explained("gateway-0: the engine failed", [window("kill one")])


def test_a_stream_of_several_choices_may_be_interrupted_by_a_fault():
    interrupted = record(Ending.INTERRUPTED, choices=2)
    assert broken(records=[*WELL, interrupted], windows=[window()], sent={("gateway-0", 1): 4}) == set()
