"""What a key used is seen by every process of a gateway, and survives all of them but not their open requests."""

from __future__ import annotations

import os

import pytest

from tidewheel_workers.serving.key_limits import Allowance, Limits, RateLimited
from tidewheel_workers.serving.key_use import KeyUse

LIMITS = Limits(requests_per_minute=10, concurrent=5)


def admit(table: KeyUse, secret: bytes, limits: Limits = LIMITS, at: float = 0.0) -> bool:
    try:
        with table.of(secret) as use:
            Allowance(limits, use).admit(0, at)
    except RateLimited:
        return False
    return True


def in_another_process(number: int, table: KeyUse, work) -> None:
    """Do it as process `number` of the family, which ends then; what it raises fails the test."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            table.join(number)
            work()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def used(table: KeyUse, secret: bytes) -> tuple[float, int]:
    with table.of(secret) as use:
        return use.requests.amount, use.open_here + use.open_elsewhere


def test_each_key_has_a_use_of_its_own():
    table = KeyUse()
    assert admit(table, b"alpha")
    assert used(table, b"alpha") == (1, 1)
    assert used(table, b"beta") == (0, 0)


def test_what_is_refused_changes_nothing():
    table = KeyUse()
    while admit(table, b"alpha"):
        pass
    assert used(table, b"alpha") == (5, 5)


def test_processes_see_what_the_others_let_in():
    table = KeyUse(processes=3)
    for number in (1, 2):
        in_another_process(number, table, lambda: [admit(table, b"alpha") for _ in range(2)])
    assert used(table, b"alpha") == (4, 4)
    assert admit(table, b"alpha")
    assert not admit(table, b"alpha")


def test_many_processes_at_once_let_in_no_more_than_the_limit():
    table = KeyUse(processes=5)
    read, write = os.pipe()
    children = []
    for number in range(1, 5):
        pid = os.fork()
        if pid == 0:
            table.join(number)
            let_in = sum(admit(table, b"alpha", Limits(requests_per_minute=100)) for _ in range(60))
            os.write(write, b"%d\n" % let_in)
            os._exit(0)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)
    os.close(write)
    with os.fdopen(read) as told:
        assert sum(map(int, told)) == 100


def test_a_process_that_takes_anothers_place_has_nothing_open():
    table = KeyUse(processes=2)
    in_another_process(1, table, lambda: admit(table, b"alpha"))
    in_another_process(1, table, lambda: None)
    assert used(table, b"alpha") == (1, 0)


def test_a_process_that_dies_in_the_middle_of_a_change_holds_nobody_up():
    table = KeyUse(processes=2)

    def die() -> None:
        with table.of(b"alpha") as use:
            use.requests.amount = 9.0
            os._exit(0)

    in_another_process(1, table, die)
    assert used(table, b"alpha") == (0, 0)


def test_keys_that_are_gone_are_forgotten_also_where_their_row_was_known():
    table = KeyUse()
    admit(table, b"alpha")
    admit(table, b"beta")
    table.keep([b"beta"])
    assert used(table, b"alpha") == (0, 0)
    assert used(table, b"beta") == (1, 1)


def test_a_full_table_gives_up_the_key_that_was_not_used_for_longest():
    table = KeyUse(rows=2)
    for at, secret in enumerate((b"alpha", b"beta", b"alpha", b"gamma")):
        admit(table, secret, at=float(at))
    assert used(table, b"alpha")[0] == pytest.approx(2 - 2 / 6)
    with table.of(b"beta") as use:
        assert use.requests.amount == 0


def test_the_table_holds_no_key():
    table = KeyUse()
    admit(table, b"s3cret-key-of-somebody")
    assert b"s3cret" not in bytes(table._memory)
