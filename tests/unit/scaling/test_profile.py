"""What a device can do: laws and tables, and the batch that an objective allows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidewheel.planning.scaling.profile import (
    BadProfile,
    DecodeLaw,
    DecodeTable,
    DeviceProfile,
    PrefillLaw,
    PrefillTable,
)

LAW = DecodeLaw(base_seconds=0.006, seconds_per_sequence=2e-5, seconds_per_kv_token=3e-8)


def device(**changes) -> DeviceProfile:
    known = {
        "name": "made up",
        "prefill": PrefillLaw(base_seconds=0.01, seconds_per_token=2e-5, seconds_per_token_squared=1e-10),
        "decode": LAW,
        "kv_tokens": 900_000,
    }
    return DeviceProfile(**(known | changes))


def table_of(law: DecodeLaw) -> DecodeTable:
    kv_tokens, contexts = (0.0, 1e5, 5e5, 9e5), (500.0, 1000.0, 4000.0, 16_000.0)
    seconds = tuple(tuple(law.seconds(kv / context, context) for context in contexts) for kv in kv_tokens)
    return DecodeTable(kv_tokens=kv_tokens, context_tokens=contexts, seconds_at=seconds)


@given(new=st.integers(1, 50_000), cached=st.integers(0, 50_000))
def test_two_halves_of_a_prompt_cost_the_whole_and_one_more_constant(new, cached):
    law = device().prefill
    whole = law.seconds(cached + new)
    parts = law.seconds(cached) + law.seconds(new, cached)
    assert parts == pytest.approx(whole + 0.01)


def test_prompts_computed_at_once_pay_the_constant_once():
    parts = [(1000, 0), (500, 2000)]
    for prefill in (device().prefill, PrefillTable(tokens=(0, 4000), seconds_at=(0.01, 0.09))):
        apart = sum(prefill.seconds(*part) for part in parts)
        assert device(prefill=prefill).prefill_batch_seconds(parts) == pytest.approx(apart - 0.01)


def test_a_prefill_table_is_exact_at_its_points_and_straight_between_and_beyond_them():
    table = PrefillTable(tokens=(100, 200, 400), seconds_at=(0.02, 0.03, 0.07))
    assert [table.seconds(tokens) for tokens in (100, 150, 400, 500)] == pytest.approx(
        [0.02, 0.025, 0.07, 0.09]
    )


def test_cached_tokens_are_not_computed_again():
    table = PrefillTable(tokens=(0, 1000, 2000), seconds_at=(0.01, 0.02, 0.04))
    assert table.seconds(1000, 1000) == pytest.approx(0.04 - 0.02 + 0.01)


@given(batch=st.integers(1, 200), context=st.sampled_from([500, 1000, 4000]))
def test_a_decode_table_of_a_law_says_what_the_law_says(batch, context):
    assert table_of(LAW).seconds(batch, context) == pytest.approx(LAW.seconds(batch, context))


def test_contexts_beyond_a_decode_table_count_as_its_last():
    table = table_of(LAW)
    assert table.seconds(10, 32_000) == pytest.approx(table.seconds(20, 16_000))


@given(tpot_ms=st.floats(1, 60), context=st.integers(1, 1_000_000), slots=st.integers(1, 300))
def test_the_batch_within_an_objective_is_the_largest(tpot_ms, context, slots):
    some = device(decode_slots=slots)
    tpot = tpot_ms / 1000

    def fits(batch: int) -> bool:
        within = batch <= slots and batch * context <= some.kv_tokens
        return within and some.decode_seconds(batch, context) <= tpot

    batch = some.decode_batch(tpot, context)
    assert batch == 0 or fits(batch)
    assert not fits(batch + 1)


def test_a_transfer_takes_its_constant_and_its_bytes():
    some = device(transfer_base_seconds=0.001, transfer_seconds_per_token=2e-6)
    assert some.transfer_seconds(1000) == pytest.approx(0.003)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        pytest.param(lambda: device(prefill_slots=0), "prefill_slots", id="no slot"),
        pytest.param(lambda: device(transfer_base_seconds=-1), "negative", id="a transfer into the past"),
        pytest.param(
            lambda: PrefillTable(tokens=(2, 1), seconds_at=(1, 2)), "rising axis", id="unsorted lengths"
        ),
        pytest.param(
            lambda: PrefillTable(tokens=(1, 2), seconds_at=(2, 1)), "fall", id="longer prompts are faster"
        ),
        pytest.param(
            lambda: PrefillTable(tokens=(1, 2), seconds_at=(1,)), "one for each", id="a time is missing"
        ),
        pytest.param(
            lambda: DecodeTable(kv_tokens=(0, 1), context_tokens=(1, 2), seconds_at=((1, 2),)),
            "rows",
            id="a row is missing",
        ),
        pytest.param(
            lambda: DecodeLaw(base_seconds=-1, seconds_per_sequence=0, seconds_per_kv_token=0),
            "negative",
            id="an iteration before it began",
        ),
    ],
)
def test_numbers_that_describe_no_device_are_refused(make, says):
    with pytest.raises(BadProfile, match=says):
        make()
