"""The requests of the OpenAI API that are served, as models: one place for fields, bounds and what is refused."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from tidewheel_workers.serving.engine import Sampling
from tidewheel_workers.serving.errors import ApiError, invalid

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"

#: Fields whose silent loss would change the meaning of the answer; each may have its harmless values.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "tools": (None, []),
    "tool_choice": (None, "none"),
    "functions": (None, []),
    "function_call": (None, "none"),
    "response_format": (None, {"type": "text"}),
    "logit_bias": (None, {}),
    "audio": (None,),
    "modalities": (None, ["text"]),
    "web_search_options": (None,),
    "prediction": (None,),
    "suffix": (None, ""),
    "echo": (None, False),
    "best_of": (None, 1),
}

_HALF_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]")
_texts = BeforeValidator(lambda value: [value] if isinstance(value, str) else value or [])


class RequestPart(BaseModel):
    """Unknown fields are ignored, as OpenAI's servers do."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class TextPart(RequestPart):
    """A piece of a message."""

    type: Literal["text"]
    text: str


class Message(RequestPart):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | tuple[TextPart, ...] | None = None
    name: str | None = None

    def to_template(self) -> dict[str, Any]:
        """As chat templates expect it: plain text, and OpenAI's newer word for system replaced by the old."""
        content = self.content or ""
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(RequestPart):
    """What a stream contains beside the answer."""

    include_usage: bool = False


class GenerationRequest(RequestPart):
    """What both endpoints have in common."""

    model: str = Field(min_length=1, max_length=512)
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 63)
    stop: Annotated[tuple[str, ...], _texts, Field(max_length=16)] = ()
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    # as vLLM takes them
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    ignore_eos: bool = False
    kv_transfer_params: dict[str, Any] | None = None

    @property
    def answer_limit(self) -> int | None:
        """The most tokens of the answer."""
        return self.max_tokens

    @property
    def top_logprobs_wanted(self) -> int | None:
        """How many of the likeliest tokens to report beside the chosen one; None for no log-probabilities."""
        return None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def to_sampling(self) -> Sampling:
        """The engine's view; what was left out takes OpenAI's defaults."""
        return Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=max(self.top_k or 0, 0),
            min_p=self.min_p or 0.0,
            seed=self.seed,
            max_tokens=self.answer_limit,
            stop=tuple(filter(None, self.stop)),
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            repetition_penalty=self.repetition_penalty or 1.0,
            logprobs=self.top_logprobs_wanted,
            ignore_eos=self.ignore_eos,
        )


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: tuple[Message, ...] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)

    @property
    def answer_limit(self) -> int | None:
        """The newer name wins."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def top_logprobs_wanted(self) -> int | None:
        """As in `GenerationRequest`."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    prompt: str | tuple[str, ...] | tuple[int, ...]
    logprobs: int | None = Field(None, ge=0, le=20)

    @property
    def top_logprobs_wanted(self) -> int | None:
        """As in `GenerationRequest`."""
        return self.logprobs

    @property
    def the_prompt(self) -> str | tuple[int, ...]:
        """The one prompt: a text or token ids."""
        if isinstance(self.prompt, str):
            return self.prompt
        if self.prompt and isinstance(self.prompt[0], int):
            return tuple(int(token) for token in self.prompt)
        if len(self.prompt) != 1:
            raise invalid(
                "unsupported_value", "one prompt per request is served; send one request each", "prompt"
            )
        return str(self.prompt[0])


REQUESTS: dict[str, type[ChatRequest] | type[CompletionRequest]] = {
    CHAT: ChatRequest,
    COMPLETIONS: CompletionRequest,
}


def read_json_object(raw: bytes) -> dict[str, Any]:
    """A request's body.

    Raises:
        ApiError: it is no JSON object.
    """
    try:
        body = json.loads(raw.decode())
        if _HALF_CHARACTER.search(raw):
            # an escaped surrogate without its other half is JSON, but no text that could be encoded
            json.dumps(body, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise invalid("invalid_json", f"the body is not JSON in UTF-8: {error}") from error
    if not isinstance(body, dict):
        raise invalid("invalid_json", f"the body must be a JSON object, not {type(body).__name__}")
    return body


def read_request(
    endpoint: str, body: dict[str, Any], *, served_model: str
) -> ChatRequest | CompletionRequest:
    """A request for that endpoint.

    Raises:
        ApiError: a field is missing or out of bounds, more than one choice is asked for, or another model.
    """
    try:
        request = REQUESTS[endpoint].model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        # a union's member, such as `str` or `tuple[...]`, is named in the location and says nothing to a client
        place = [
            part for part in first["loc"] if isinstance(part, int) or (part != "str" and part.isidentifier())
        ]
        param = ".".join(map(str, place))
        code = "missing_required_parameter" if first["type"] == "missing" else "invalid_value"
        raise invalid(code, f"{param}: {first['msg']}", param) from error
    if request.n not in (None, 1):
        raise invalid(
            "unsupported_value", "n: one choice per request is served; leave n out or set it to 1", "n"
        )
    if request.model != served_model:
        raise unknown_model(request.model, served=served_model)
    return request


def unknown_model(name: str, *, served: str) -> ApiError:
    """Another model than the one that is served."""
    return ApiError(
        404, "model_not_found", f"the model {name!r} is not served here; {served!r} is", param="model"
    )


def refuse_unsupported(body: dict[str, Any]) -> None:
    """Refuse what the built-in engine cannot do and a client would miss.

    Raises:
        ApiError: naming the field.
    """
    for field, harmless in UNSUPPORTED.items():
        if field in body and body[field] not in harmless:
            raise invalid("unsupported_parameter", f"{field}: the built-in engine does not support it", field)
