"""Profiles as profilers leave them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.simulation.world import DEVICE

from tidewheel.planning.scaling.profile import BadProfile, DecodeLaw, DecodeTable
from tidewheel.simulation.profiles import H200, H200_FITTED, fitted, mocker, read_csv, read_npz

LAW = DecodeLaw(base_seconds=0.006, seconds_per_sequence=2e-5, seconds_per_kv_token=3e-8)


def npz(**changes) -> bytes:
    kv_tokens, contexts = np.linspace(0, 9e5, 20), np.linspace(1, 16_000, 20)
    seconds = [
        [LAW.seconds(max(1.0, kv / context), min(kv, context)) for context in contexts] for kv in kv_tokens
    ]
    arrays = {
        "prefill_isl": np.linspace(100, 16_000, 20),
        "prefill_ttft_ms": 5 + 0.02 * np.linspace(100, 16_000, 20),
        "decode_active_kv_tokens": kv_tokens,
        "decode_context_length": contexts,
        "decode_itl": 1000 * np.array(seconds),
    }
    held = io.BytesIO()
    np.savez(held, **{name: array for name, array in (arrays | changes).items() if array is not None})
    return held.getvalue()


def test_a_file_of_dynamos_profiler_says_what_was_measured():
    profile = read_npz(npz(), like=DEVICE)
    assert profile.prefill_seconds(4000) == pytest.approx(0.085)
    assert profile.decode_seconds(50, 2000) == pytest.approx(LAW.seconds(50, 2000), rel=1e-3)


def test_a_plane_in_a_table_is_read_as_a_law_and_anything_else_stays_a_table():
    assert isinstance(read_npz(npz(), like=DEVICE).decode, DecodeLaw)
    bent = np.random.default_rng(1).uniform(5, 50, (20, 20))
    assert isinstance(read_npz(npz(decode_itl=bent), like=DEVICE).decode, DecodeTable)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param(b"no archive", "not an npz", id="something else"),
        pytest.param(npz(prefill_isl=None), "no array prefill_isl", id="an array is missing"),
        pytest.param(npz(prefill_isl=np.zeros(20, dtype="c16")), "float64", id="numbers of another kind"),
    ],
)
def test_what_is_no_profile_is_named(content, says):
    with pytest.raises(BadProfile, match=says):
        read_npz(content, like=DEVICE)


def test_measured_rows_are_a_profile():
    rows = [
        f"decode,{context},{batch},{LAW.seconds(batch, context)}"
        for batch in (1, 8, 64)
        for context in (100, 4000)
    ]
    lines = ["role,tokens,batch,seconds", "prefill,1000,,0.05", "prefill,100,,0.01", *rows]
    profile = read_csv(lines, like=DEVICE)
    assert profile.prefill_seconds(1000) == pytest.approx(0.05)
    assert profile.decode_seconds(32, 1000) == pytest.approx(LAW.seconds(32, 1000))


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        pytest.param(["router,1,1,1"], "line 2", id="another role"),
        pytest.param(["prefill,many,,1"], "line 2", id="no number"),
        pytest.param(["prefill,1,,1"], "too few", id="too little"),
        pytest.param(
            ["prefill,1,,1", "prefill,2,,2", *["decode,100,4,0.01"] * 3], "apart", id="always the same batch"
        ),
    ],
)
def test_rows_that_say_nothing_are_refused(rows, says):
    with pytest.raises(BadProfile, match=says):
        read_csv(["role,tokens,batch,seconds", *rows], like=DEVICE)


@given(
    parts=st.tuples(st.floats(0, 0.1), st.floats(0, 1e-3), st.floats(0, 1e-6)),
    batches=st.lists(st.integers(1, 256), min_size=3, max_size=6, unique=True),
)
def test_a_fit_finds_the_plane_through_its_points(parts, batches):
    law = DecodeLaw(base_seconds=parts[0], seconds_per_sequence=parts[1], seconds_per_kv_token=parts[2])
    points = [
        (batch, context, law.seconds(batch, context)) for batch in batches for context in (100, 1000, 5000)
    ]
    for batch, context, seconds in points:
        assert fitted(points).seconds(batch, context) == pytest.approx(seconds, rel=1e-6, abs=1e-9)


def test_the_built_in_profile_is_what_was_measured_on_an_h200():
    assert 1000 * H200.prefill_seconds(8236) == pytest.approx(171.0, abs=0.1)
    # the mean of its 41 decode points is off by less than a tenth at their middle
    assert 1000 * H200.decode_seconds(0.4598 * 945_029 / 2997, 2997) == pytest.approx(22.1, rel=0.1)
    assert H200_FITTED.prefill_seconds(12_000) == pytest.approx(H200.prefill_seconds(12_000), rel=0.05)


def test_the_mocker_s_default_is_its_polynomials():
    share = 0.3
    profile = mocker()
    assert 1000 * profile.prefill_seconds(8192) == pytest.approx(169.137, abs=0.01)
    milliseconds = 1000 * profile.decode_seconds(10, share * profile.kv_tokens / 10)
    assert milliseconds == pytest.approx(-25.74 * share**2 + 54.01 * share + 5.74, rel=1e-3)
