"""Whatever a body holds, it is a request or a refusal that names the client's fault, and no request breaks the engine."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.unit.llm.file_bytes import gguf_bytes
from tests.unit.serving.bodies import ENDPOINTS, HOSTILE, MODEL, acceptable, damaged, encoded

from tidewheel_workers.llm.errors import RequestError
from tidewheel_workers.serving.engine import Generated, Prompt
from tidewheel_workers.serving.errors import ApiError
from tidewheel_workers.serving.openai_api import (
    COMPLETIONS,
    ChatRequest,
    CompletionRequest,
    read_json_object,
    read_request,
    refuse_unsupported,
)
from tidewheel_workers.serving.settings import WorkerSettings
from tidewheel_workers.serving.torch_engine import TorchEngine

Parsed = ChatRequest | CompletionRequest
endpoints = st.sampled_from(ENDPOINTS)


def read(endpoint: str, raw: bytes) -> Parsed | None:
    """The request that the servers make of it; None where it is refused properly."""
    try:
        body = read_json_object(raw)
        parsed = read_request(endpoint, body, served_model=MODEL)
        refuse_unsupported(body)
    except ApiError as refusal:
        check(refusal)
        return None
    return parsed


def check(refusal: ApiError) -> None:
    assert 400 <= refusal.status < 500
    told = json.loads(json.dumps(refusal.to_body()).encode())["error"]
    assert set(told) == {"message", "type", "param", "code"}
    assert len(told["message"]) < 2000


@given(endpoint=endpoints, raw=st.binary(max_size=200))
@settings(deadline=None)
def test_any_bytes_are_refused(endpoint, raw):
    assert read(endpoint, raw) is None


@given(endpoint_and_raw=endpoints.flatmap(lambda one: st.tuples(st.just(one), damaged(one))))
@settings(deadline=None)
def test_a_damaged_request_is_a_request_or_refused(endpoint_and_raw):
    read(*endpoint_and_raw)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_body_is_a_request_or_refused(name, endpoint):
    read(endpoint, HOSTILE[name])


# ---- what is let through reaches the engine


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> TorchEngine:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    path.write_bytes(gguf_bytes())
    return TorchEngine.load_for(
        WorkerSettings(model_name=MODEL, model_source=f"path:{path}", role="decode", group="g0", slots=4)
    )


def write(engine: TorchEngine, parsed: Parsed) -> None:
    """Answer a request to its end, unless the engine refuses it; a few steps are enough for some."""
    if isinstance(parsed, ChatRequest):
        tokens = engine.encode_chat([message.to_template() for message in parsed.messages])
    else:
        prompt = parsed.the_prompt
        tokens = engine.encode_text(prompt) if isinstance(prompt, str) else list(prompt)
    sampling = parsed.to_sampling()
    prompt = Prompt(request_id="r", token_ids=tokens, sampling=sampling, choices=parsed.choices)
    engine.submit(prompt, None)
    for _ in range(100):
        events = engine.step()
        json.dumps([event.text for event in events if isinstance(event, Generated)])
        if not engine.load().has_work:
            break
    else:
        raise AssertionError("no end within the context's length")


@given(endpoint_and_body=endpoints.flatmap(lambda one: st.tuples(st.just(one), acceptable(one))))
@example((COMPLETIONS, {"model": MODEL, "prompt": "abc", "repetition_penalty": 5e-324}))
@example((COMPLETIONS, {"model": MODEL, "prompt": "abc", "logprobs": 20}))
@settings(deadline=None)
def test_no_request_breaks_the_engine(engine, endpoint_and_body):
    endpoint, body = endpoint_and_body
    try:
        parsed = read(endpoint, encoded({"seed": 1, **body}))  # or the engine draws another each time
        if parsed is not None:
            write(engine, parsed)
    except (RequestError, ApiError):
        pass
    finally:
        engine.abort("r")
    assert not engine.load().has_work
    assert engine.load().kv_usage == 0
