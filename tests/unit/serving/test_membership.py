"""When a worker belongs to its group, whom it accepts, and when it is ready."""

from __future__ import annotations

import dataclasses

import pytest
from tests.unit.serving.group import decode_member, membership, table

from tidewheel.api.ranktable import RankTable
from tidewheel_workers.serving.stand_in import StandInEngine


def alone(*, combined: bool = True) -> RankTable:
    """A group of one decode."""
    return table().model_copy(update={"members": table().of_role("decode"), "combined": combined})


def test_without_a_table_nobody_is_ready_or_accepted():
    prefill = membership("prefill")
    assert not prefill.is_ready
    assert "not been published" in prefill.explanation
    assert prefill.judge(membership("decode").hello()).reason == "not_formed"


def test_a_worker_is_ready_once_every_peer_is_verified():
    prefill = membership("prefill")
    prefill.update(table(decode_member(1)))
    prefill.connected("u-d0")
    assert not prefill.is_ready
    assert "d1 at 127.66.0.3:7001 (has not connected)" in prefill.explanation
    prefill.connected("u-d1")
    assert prefill.is_ready
    assert prefill.explanation == "all 2 peers are verified"


def test_a_peer_that_joins_or_leaves_later_does_not_stop_those_who_serve():
    prefill = membership("prefill")
    prefill.update(table())
    prefill.connected("u-d0")
    prefill.update(table(decode_member(1)))
    assert prefill.is_ready
    prefill.update(table())
    assert prefill.is_ready


def test_without_any_verified_peer_a_worker_is_not_ready_until_one_is_back():
    prefill = membership("prefill")
    prefill.update(table())
    prefill.connected("u-d0")
    prefill.disconnected("u-d0")
    assert not prefill.is_ready
    assert "its connection closed" in prefill.explanation
    prefill.connected("u-d0")
    assert prefill.is_ready


def test_a_worker_that_waited_long_enough_serves_with_the_peers_there_are():
    prefill = membership("prefill")
    prefill.update(table(decode_member(1)))
    prefill.settle()
    assert not prefill.is_ready
    prefill.connected("u-d0")
    assert prefill.is_ready
    assert prefill.explanation.startswith("1 of 2 peers are verified; missing: d1")


def test_a_peer_with_two_connections_stays_verified_when_one_closes():
    prefill = membership("prefill")
    prefill.update(table())
    prefill.connected("u-d0")
    prefill.connected("u-d0")
    prefill.disconnected("u-d0")
    assert prefill.is_ready


def test_a_decode_that_does_both_needs_no_prefill():
    decode = membership("decode")
    decode.update(alone(combined=False))
    assert not decode.is_ready
    decode.update(alone())
    assert decode.is_ready
    assert decode.explanation == "the group is combined: decodes compute the prompts, too"
    stranger = membership("decode", uid="u-other")
    stranger.update(alone())
    assert not stranger.is_ready, "but it must be in the table"


def test_a_decode_that_does_both_stays_ready_while_prefills_come_and_when_they_have_gone():
    decode = membership("decode")
    decode.update(alone())
    decode.update(table().model_copy(update={"combined": True}))
    assert decode.is_ready, "the prefill is not there yet"
    decode.connected("u-p0")
    decode.update(table())
    assert decode.is_ready, "now it is needed, and verified"
    decode.disconnected("u-p0")
    assert not decode.is_ready
    decode.update(alone())
    assert decode.is_ready


def test_a_prefill_that_joins_a_combined_group_is_ready_once_it_knows_the_decodes():
    prefill = membership("prefill")
    prefill.update(table().model_copy(update={"combined": True}))
    assert not prefill.is_ready
    prefill.connected("u-d0")
    assert prefill.is_ready


def test_a_namesake_with_another_uid_is_not_in_the_table():
    replaced = membership("prefill", uid="u-old")
    replaced.update(table())
    assert replaced.me is None
    assert "pod p0 (u-old) is not in the rank table" in replaced.explanation


def test_a_table_of_another_group_is_refused():
    with pytest.raises(ValueError, match="group other"):
        membership("prefill").update(table(group="other"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param({"group": "g9"}, "wrong_group", id="another group"),
        pytest.param({"uid": "u-x"}, "unknown_member", id="not in the table"),
        pytest.param({"uid": "u-p0"}, "unknown_member", id="of the same role"),
        pytest.param({"model_digest": "x"}, "model_mismatch", id="another model"),
        pytest.param({"layout_digest": "x"}, "layout_mismatch", id="another KV layout"),
        pytest.param({"byte_order": "big"}, "byte_order_mismatch", id="another byte order"),
    ],
)
def test_who_is_refused_and_why(changes, reason):
    prefill, decode = membership("prefill"), membership("decode")
    for one in (prefill, decode):
        one.update(table())
    assert prefill.judge(decode.hello()) is None
    assert prefill.judge(decode.hello().model_copy(update=changes)).reason == reason


def test_tables_may_differ_for_a_moment():
    prefill, decode = membership("prefill"), membership("decode")
    prefill.update(table())
    decode.update(table(decode_member(1)))
    assert prefill.hello().ranktable_digest != decode.hello().ranktable_digest
    assert prefill.judge(decode.hello()) is None
    assert decode.judge(prefill.hello()) is None


def test_a_refused_peer_is_named_with_the_reason():
    other = dataclasses.replace(StandInEngine.identity, model_digest="other")
    prefill, decode = membership("prefill"), membership("decode", identity=other)
    for one in (prefill, decode):
        one.update(table())
    prefill.judge(decode.hello())
    assert "d0 serves model other" in prefill.explanation


def test_a_worker_that_the_table_gives_the_other_role_is_no_member_in_its_own():
    decode = membership("decode")
    decode.update(table())
    decode.connected("u-p0")
    assert decode.is_ready
    members = [{**one.model_dump(), "role": "prefill"} for one in table().members]
    decode.update(table().model_validate(table().model_dump() | {"members": members}))
    assert decode.is_reassigned
    assert not decode.is_ready
    assert "the other role" in decode.explanation
