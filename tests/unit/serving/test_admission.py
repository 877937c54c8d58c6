"""Requests come in by their key, are counted under its name, and give back what they did not use."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from tidewheel_workers.serving.admission import MOST_NAMES, OTHERS, Admission
from tidewheel_workers.serving.api_keys import ApiKeys
from tidewheel_workers.serving.errors import ApiError
from tidewheel_workers.serving.gateway_metrics import GatewayMetrics
from tidewheel_workers.serving.openai_api import CHAT, read_request


class Door:
    """An admission with a file of keys, and what its metrics show."""

    def __init__(self, tmp_path, lines: str) -> None:
        path = tmp_path / "keys"
        path.write_text(lines)
        keys = ApiKeys(path)
        keys.file.refresh()
        self.registry = CollectorRegistry()
        metrics = GatewayMetrics(self.registry, open_requests=lambda: 0, groups=lambda: 0, waiting=lambda: 0)
        self.admission = Admission(keys, metrics)

    def enter(self, key: str, at: float = 0.0, **fields):
        body = {"model": "m", "messages": [{"role": "user", "content": "12345678"}], **fields}
        parsed = read_request(CHAT, body, served_model="m")
        return self.admission.admit(self.admission.check(f"Bearer {key}"), body, parsed, at)

    def shown(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"tidewheel_gateway_key_{name}_total", labels)


@pytest.fixture
def door(tmp_path):
    return lambda lines: Door(tmp_path, lines)


def test_a_key_without_limits_is_only_counted(door):
    at = door("alpha name=team\n")
    visit = at.enter("alpha", max_tokens=10)
    assert visit.headers(0.0) == {}
    visit.end("200", 0.0, prompt_tokens=2, output_tokens=3)
    assert at.shown("requests", key="team", code="200") == 1
    assert at.shown("tokens", key="team", kind="prompt") == 2
    assert at.shown("tokens", key="team", kind="output") == 3


def test_what_was_reserved_and_not_used_comes_back(door):
    at = door("alpha tpm=100\n")
    visit = at.enter("alpha", max_tokens=90)
    assert visit.headers(0.0)["x-ratelimit-remaining-tokens"] == "8"
    with pytest.raises(ApiError):
        at.enter("alpha", max_tokens=90)
    visit.end("200", 0.0, prompt_tokens=2, output_tokens=5)
    assert at.enter("alpha", max_tokens=90).headers(0.0)["x-ratelimit-remaining-tokens"] == "1"


def test_an_answer_without_a_limit_gets_the_keys_and_reserves_it(door):
    visit = door("alpha tpm=100 max_tokens=50\n").enter("alpha")
    assert visit.body["max_completion_tokens"] == 50
    assert visit.headers(0.0)["x-ratelimit-remaining-tokens"] == "48"


def test_a_refusal_is_counted_with_its_limit_and_leaves_the_others_alone(door):
    at = door("alpha name=a rpm=1 concurrent=5\nbeta name=b\n")
    at.enter("alpha")
    with pytest.raises(ApiError) as refused:
        at.enter("alpha")
    assert refused.value.headers["x-ratelimit-remaining-requests"] == "0"
    assert at.shown("refusals", key="a", limit="requests") == 1
    assert at.shown("requests", key="a", code="429") == 1
    at.enter("beta")
    at.enter("alpha", at=60.0)


def test_everybody_comes_in_where_no_key_is_asked_for():
    metrics = GatewayMetrics(
        CollectorRegistry(), open_requests=lambda: 0, groups=lambda: 0, waiting=lambda: 0
    )
    admission = Admission(ApiKeys(None), metrics)
    body = {"model": "m", "messages": [{"role": "user", "content": "a"}]}
    visit = admission.admit(admission.check(None), body, read_request(CHAT, body, served_model="m"), 0.0)
    visit.end("200", 0.0, prompt_tokens=1, output_tokens=1)
    assert (visit.body, visit.headers(0.0)) == (body, {})


def test_names_beyond_a_bound_are_counted_together(door):
    at = door("".join(f"key-{i} name=n{i}\n" for i in range(MOST_NAMES + 2)))
    for i in range(MOST_NAMES + 2):
        at.enter(f"key-{i}").end("200", 0.0, prompt_tokens=0, output_tokens=0)
    at.enter("key-0").end("200", 0.0, prompt_tokens=0, output_tokens=0)
    assert at.shown("requests", key="n0", code="200") == 2
    assert at.shown("requests", key=OTHERS, code="200") == 2
