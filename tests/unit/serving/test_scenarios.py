"""Which requests belong together, and what a gateway sees of a prompt."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidewheel.api.scenarios import RouteScenario
from tidewheel_workers.serving.prompt_facts import BLOCK_CHARACTERS, facts_of, system_prompt_sha256
from tidewheel_workers.serving.scenarios import aliases_in, scenario_of

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
TERSE = "You answer in one word."


def scenario(name: str = "one", **match) -> RouteScenario:
    return RouteScenario.model_validate({"name": name, "match": match})


def chat(*texts: str, system: str = "", model: str = "smol") -> dict:
    first = [{"role": "system", "content": system}] if system else []
    return {"model": model, "messages": first + [{"role": "user", "content": text} for text in texts]}


def found(body: dict, *scenarios: RouteScenario, path: str = CHAT, **headers: str) -> str | None:
    given_headers = {name.replace("_", "-"): value for name, value in headers.items()}
    chosen = scenario_of(scenarios, headers=given_headers, path=path, body=body, facts=facts_of(body))
    return chosen.name if chosen else None


@pytest.mark.parametrize(
    ("match", "body", "headers", "want"),
    [
        pytest.param(
            {"headers": [{"name": "X-Tenant", "value": "a"}]}, chat("hi"), {"x_tenant": "a"}, True, id="a header"
        ),
        pytest.param(
            {"headers": [{"name": "x-tenant", "value": "a"}]}, chat("hi"), {"x_tenant": "b"}, False, id="another value"
        ),
        pytest.param({"headers": [{"name": "x-tenant", "value": "a"}]}, chat("hi"), {}, False, id="no header"),
        pytest.param({"modelAliases": ["coder"]}, chat("hi", model="coder"), {}, True, id="an alias"),
        pytest.param({"modelAliases": ["coder"]}, chat("hi"), {}, False, id="the model's own name"),
        pytest.param({"paths": [CHAT]}, chat("hi"), {}, True, id="a path"),
        pytest.param({"paths": [COMPLETIONS]}, chat("hi"), {}, False, id="another path"),
        pytest.param({"promptLength": {"min": 3}}, chat("hi"), {}, False, id="too short"),
        pytest.param({"promptLength": {"min": 3, "max": 4}}, chat("hi", "ho"), {}, True, id="all messages count"),
        pytest.param({"promptLength": {"max": 3}}, chat("hi", "ho"), {}, False, id="too long"),
        pytest.param(
            {"systemPromptSha256": [hashlib.sha256(TERSE.encode()).hexdigest()]},
            chat("hi", system=TERSE), {}, True, id="a system prompt",
        ),
        pytest.param(
            {"systemPromptSha256": [hashlib.sha256(TERSE.encode()).hexdigest()]},
            chat(TERSE), {}, False, id="the same text from a user",
        ),
        pytest.param(
            {"modelAliases": ["coder"], "promptLength": {"min": 3}}, chat("hi", model="coder"), {}, False,
            id="all conditions must hold",
        ),
    ],
)  # fmt: skip
def test_a_request_matches_what_it_looks_like(match, body, headers, want):
    assert (found(body, scenario(**match), **headers) == "one") is want


def test_the_first_scenario_that_matches_wins():
    short, coder = scenario("short", promptLength={"max": 9}), scenario("coder", modelAliases=["coder"])
    assert found(chat("hi", model="coder"), short, coder) == "short"
    assert found(chat("hi", model="coder"), coder, short) == "coder"
    assert found(chat("longer than that"), short, coder) is None
    assert aliases_in([short, coder]) == {"coder"}


@pytest.mark.parametrize(
    ("body", "characters"),
    [
        pytest.param({"prompt": "abc"}, 3, id="a text"),
        pytest.param({"prompt": ["abc"]}, 3, id="a list of one text"),
        pytest.param({"prompt": [1, 2, 3]}, 12, id="token ids count four each"),
        pytest.param({"prompt": list(range(1000))}, 4000, id="also beyond the prefix"),
        pytest.param({"prompt": ""}, 0, id="nothing"),
        pytest.param(
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "ab"}, {"type": "text", "text": "c"}]}]},
            3,
            id="a message in parts",
        ),
        pytest.param({"messages": [{"role": "assistant", "content": None}]}, 0, id="a message without text"),
    ],
)  # fmt: skip
def test_a_prompts_length_is_counted_in_characters(body, characters):
    assert facts_of(body).characters == characters


def test_leading_system_messages_are_hashed_together():
    body = {
        "messages": [
            {"role": "system", "content": "a"},
            {"role": "developer", "content": [{"type": "text", "text": "b"}]},
            {"role": "user", "content": "c"},
            {"role": "system", "content": "d"},
        ]
    }
    assert system_prompt_sha256(body) == hashlib.sha256(b"a\nb").hexdigest()
    assert system_prompt_sha256(chat("hi")) == system_prompt_sha256({"prompt": "a"}) == ""


LONG = "x" * BLOCK_CHARACTERS


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        pytest.param("short", "short", 0, id="nothing to share in a short prompt"),
        pytest.param(LONG + "a", LONG + "b", 1, id="one block"),
        pytest.param("a" + LONG, "b" + LONG, 0, id="another beginning"),
        pytest.param(4 * LONG + "a", 4 * LONG + "b", 2, id="four blocks"),
        pytest.param(2 * LONG + "a" + 2 * LONG, 2 * LONG + "b" + 2 * LONG, 1, id="the third block differs"),
    ],
)
def test_prompts_that_begin_alike_share_prefixes(one, other, shared):
    hashes = [set(facts_of({"prompt": text}).prefixes) for text in (one, other)]
    assert len(hashes[0] & hashes[1]) == shared


@given(turns=st.lists(st.text(min_size=1, max_size=400), min_size=1, max_size=8))
def test_a_conversation_that_goes_on_keeps_its_prefixes(turns):
    before, after = facts_of(chat(*turns)), facts_of(chat(*turns, "and another thing"))
    assert set(before.prefixes) <= set(after.prefixes)
    assert before.characters < after.characters
