"""Which keys are accepted, and with what limits: the file that a Secret is mounted as."""

from __future__ import annotations

import pytest
from tests.unit.serving.test_settings_and_files import swap

from tidewheel_workers.serving.api_keys import ApiKeys, read_keys
from tidewheel_workers.serving.errors import ApiError
from tidewheel_workers.serving.key_limits import Limits


def accepted(keys: ApiKeys, header: str | None) -> str:
    try:
        keys.check(header)
    except ApiError as error:
        return error.code
    return "accepted"


def test_only_known_keys_are_accepted(tmp_path):
    path = tmp_path / "keys"
    path.write_text("alpha\n\n beta \ngamma name=team-c rpm=5\n")
    keys = ApiKeys(path)
    keys.file.refresh()
    assert [accepted(keys, f"Bearer {key}") for key in ("alpha", "beta", "gamma", "delta", "alph")] == [
        "accepted",
        "accepted",
        "accepted",
        "invalid_api_key",
        "invalid_api_key",
    ]
    assert accepted(keys, None) == "missing_api_key"
    assert accepted(keys, "Basic alpha") == "missing_api_key"


def test_keys_that_cannot_be_read_let_nobody_in_and_no_keys_let_everybody_in(tmp_path):
    assert accepted(ApiKeys(tmp_path / "missing"), "Bearer alpha") == "invalid_api_key"
    assert accepted(ApiKeys(None), None) == "accepted"


def test_a_line_says_the_name_and_the_limits():
    plain, full = read_keys(b"alpha\nbeta name=team-b rpm=60 tpm=100000 concurrent=8 max_tokens=4096\n")
    assert (plain.name, plain.limits) == ("unnamed", Limits())
    assert full.name == "team-b"
    assert full.limits == Limits(
        requests_per_minute=60, tokens_per_minute=100_000, concurrent=8, max_tokens=4096
    )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        pytest.param("s3cret rps=5", "line 2: word 2 is no setting; known are name=, rpm=", id="unknown"),
        pytest.param("s3cret s3cret", "line 2: word 2 is no setting", id="a key with a space"),
        pytest.param("s3cret rpm=0", "line 2: rpm must be a whole number from 1", id="nothing allowed"),
        pytest.param("s3cret tpm=1.5", "line 2: tpm must be a whole number", id="a fraction"),
        pytest.param("s3cret tpm=1e3", "line 2: tpm must be a whole number", id="an exponent"),
        pytest.param("s3cret rpm=²", "line 2: rpm must be a whole number", id="a digit of another kind"),
        pytest.param("s3cret rpm=9 rpm=9", "line 2 gives rpm twice", id="twice"),
        pytest.param("s3cret name=", "line 2: a name is 1 to 63 letters", id="an empty name"),
        pytest.param("s3cret name=a/b", "line 2: a name is 1 to 63 letters", id="a name with a slash"),
        pytest.param("alpha rpm=5", "line 2 repeats the key", id="a key twice"),
    ],
)
def test_a_line_that_makes_no_sense_is_told_by_its_number_and_never_by_its_text(line, said):
    with pytest.raises(ValueError, match=said) as refused:
        read_keys(f"alpha\n{line}\n".encode())
    assert "s3cret" not in str(refused.value)
    assert "alpha" not in str(refused.value)


def test_more_limited_keys_than_can_be_counted_are_refused():
    lines = "".join(f"key-{i} rpm=1\n" for i in range(4097))
    with pytest.raises(ValueError, match="4097 keys have limits; a gateway keeps count of 4096"):
        read_keys(lines.encode())
    assert len(read_keys(lines.replace(" rpm=1", "").encode())) == 4097


def test_a_key_is_not_shown_where_its_object_is():
    assert "s3cret" not in repr(read_keys(b"s3cret rpm=5"))


def test_a_changed_file_keeps_what_was_used(tmp_path):
    path = tmp_path / "keys"
    path.write_text("alpha rpm=2\nbeta rpm=1\n")
    keys = ApiKeys(path)
    keys.file.refresh()
    keys.admit(keys.check("Bearer alpha"), 0, at=0)
    swap(path, "alpha rpm=1\n")
    keys.file.refresh()
    keys.forget_removed()
    with pytest.raises(ApiError, match="1 requests a minute; 0 are left"):
        keys.admit(keys.check("Bearer alpha"), 0, at=0)
    assert keys.headers(keys.check("Bearer alpha"), at=60)["x-ratelimit-remaining-requests"] == "1"


def test_a_key_that_was_taken_away_and_given_back_begins_anew(tmp_path):
    path = tmp_path / "keys"
    keys = ApiKeys(path)
    for content in ("alpha rpm=1\n", "beta\n", "alpha rpm=1\n"):
        swap(path, content)
        keys.file.refresh()
        keys.forget_removed()
        if content.startswith("alpha"):
            keys.admit(keys.check("Bearer alpha"), 0, at=0)
