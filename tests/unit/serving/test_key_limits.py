"""What a key may use: requests and tokens a minute, requests at a time, told as OpenAI tells it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidewheel_workers.serving.errors import ApiError
from tidewheel_workers.serving.key_limits import Allowance, Limits, RateLimited, Use, duration


def allowed(**limits: int) -> Allowance:
    return Allowance(Limits(**limits), Use())


def refusal(allowance: Allowance, tokens: int, at: float) -> RateLimited:
    with pytest.raises(RateLimited) as refused:
        allowance.admit(tokens, at)
    return refused.value


def test_a_key_without_limits_is_never_refused_and_told_nothing():
    allowance = allowed()
    for _ in range(1000):
        allowance.admit(10**9, 0)
    assert allowance.headers(0) == {}


def test_a_minutes_requests_may_come_at_once_and_then_one_by_one():
    allowance = allowed(requests_per_minute=60)
    for _ in range(60):
        allowance.admit(0, 0)
    refused = refusal(allowance, 0, 0.25)
    assert (refused.status, refused.code, refused.limit) == (429, "rate_limit_exceeded", "requests")
    assert refused.retry_after_seconds == pytest.approx(0.75)
    assert refused.headers["Retry-After"] == "1"
    assert "60 requests a minute; 0 are left" in refused.message
    allowance.admit(0, 1)
    assert refusal(allowance, 0, 1).limit == "requests"


def test_tokens_are_reserved_first_and_set_right_at_the_end():
    allowance = allowed(tokens_per_minute=600)
    allowance.admit(500, 0)
    assert allowance.headers(0)["x-ratelimit-remaining-tokens"] == "100"
    assert refusal(allowance, 200, 0).retry_after_seconds == pytest.approx(10)
    allowance.end(500, 20, 0)
    assert allowance.headers(0)["x-ratelimit-remaining-tokens"] == "580"


def test_an_answer_longer_than_was_reserved_is_paid_for_afterwards():
    allowance = allowed(tokens_per_minute=600)
    allowance.admit(100, 0)
    allowance.end(100, 900, 0)
    assert allowance.headers(0)["x-ratelimit-remaining-tokens"] == "0"
    assert refusal(allowance, 1, 0).retry_after_seconds == pytest.approx(30.1)


def test_a_request_that_could_never_pass_is_not_asked_to_come_again():
    refused = refusal(allowed(tokens_per_minute=100), 101, 0)
    assert "Retry-After" not in refused.headers
    assert refused.headers["x-should-retry"] == "false"
    assert "shorten the prompt or lower max_tokens" in refused.message


def test_the_longest_wait_is_told_when_two_limits_are_reached():
    allowance = allowed(requests_per_minute=1, tokens_per_minute=60)
    allowance.admit(30, 0)
    refused = refusal(allowance, 40, 0)
    assert (refused.limit, refused.retry_after_seconds) == ("requests", pytest.approx(60))


def test_requests_at_a_time_end_before_others_begin():
    allowance = allowed(concurrent=2)
    allowance.use.open_elsewhere = 1
    allowance.admit(0, 0)
    assert refusal(allowance, 0, 0).limit == "concurrent"
    allowance.end(0, 0, 0)
    allowance.admit(0, 0)
    assert allowance.use.open_here == 1


def test_headers_are_those_of_openai():
    allowance = allowed(requests_per_minute=60, tokens_per_minute=6000)
    allowance.admit(600, 0)
    assert allowance.headers(0) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "6000",
        "x-ratelimit-remaining-tokens": "5400",
        "x-ratelimit-reset-tokens": "6s",
    }


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.0171, "18ms"), (1, "1s"), (7.42, "7.5s"), (60, "1m0s"), (360, "6m0s")],
)
def test_durations_are_written_as_openai_writes_them(seconds, text):
    assert duration(seconds) == text


def test_other_limits_leave_what_was_used_used():
    ten = allowed(requests_per_minute=10)
    ten.admit(0, 0)
    two = Allowance(Limits(requests_per_minute=2), ten.use)
    two.admit(0, 0)
    assert refusal(two, 0, 0).limit == "requests"
    Allowance(Limits(), ten.use).admit(0, 0)


arrivals = st.lists(st.tuples(st.floats(0, 5), st.integers(0, 50)), max_size=80)


@given(arrivals, st.integers(1, 20), st.integers(1, 200), st.integers(1, 3))
def test_no_window_lets_through_more_than_the_limits_say(steps, rpm, tpm, concurrent):
    allowance = allowed(requests_per_minute=rpm, tokens_per_minute=tpm, concurrent=concurrent)
    now, passed, held = 0.0, [], []
    for step, tokens in steps:
        now += step
        if len(held) == concurrent:
            reserved = held.pop(0)
            allowance.end(reserved, reserved, now)
        try:
            allowance.admit(tokens, now)
        except ApiError as refused:
            if refused.retry_after_seconds is not None:
                # whoever waits as long as is said is let in
                now += refused.retry_after_seconds
                allowance.admit(tokens, now)
                allowance.end(tokens, 0, now)
                passed.append((now, 0))
            continue
        held.append(tokens)
        passed.append((now, tokens))
        assert allowance.use.open_here <= concurrent
    for i, (begin, _) in enumerate(passed):
        for j in range(i, len(passed)):
            window = passed[j][0] - begin
            assert j - i + 1 <= rpm * (1 + window / 60) + 1e-3
            assert sum(tokens for _, tokens in passed[i : j + 1]) <= tpm * (1 + window / 60) + 1e-3


@given(st.integers(1, 1000), st.lists(st.tuples(st.floats(0, 100), st.integers(0, 500), st.integers(0, 900))))
def test_what_is_left_is_never_more_than_the_limit(tpm, steps):
    allowance, now = allowed(tokens_per_minute=tpm), 0.0
    for step, reserved, used in steps:
        now += step
        try:
            allowance.admit(reserved, now)
            allowance.end(reserved, used, now)
        except ApiError:
            continue
        assert 0 <= int(allowance.headers(now)["x-ratelimit-remaining-tokens"]) <= tpm
