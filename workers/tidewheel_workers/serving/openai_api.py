"""The requests of the OpenAI API that are served, as models: one place for fields, bounds and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError, from_json

from tidewheel_workers.serving.engine import Sampling
from tidewheel_workers.serving.errors import ApiError, invalid

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"

#: Bounds of one request; with them nobody asks for more work than a few ordinary requests make.
MOST_CHOICES = 16
MOST_PROMPTS = 16
MOST_STOPS = 16
MOST_TOP_LOGPROBS = 20
MOST_BIASES = 300
#: What /v1/completions writes at most where max_tokens is left out: OpenAI's default.
COMPLETION_TOKENS = 16
#: How many characters of a text are taken for one token where the tokenizer is not at hand.
CHARACTERS_PER_TOKEN = 4

#: Fields whose silent loss would change the meaning of the answer; each may have its harmless values.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "audio": (None,),
    "modalities": (None, ["text"]),
    "web_search_options": (None,),
    "prediction": (None,),
    "suffix": (None, ""),
    "echo": (None, False),
    # as vLLM takes them
    "allowed_token_ids": (None,),
    "bad_words": (None, []),
    "chat_template": (None,),
    "continue_final_message": (None, False),
    "guided_choice": (None,),
    "guided_grammar": (None,),
    "guided_json": (None,),
    "guided_regex": (None,),
    "prompt_logprobs": (None,),
    "stop_token_ids": (None, []),
    "structured_outputs": (None,),
    "use_beam_search": (None, False),
}

TokenId = Annotated[int, Field(strict=True, ge=0, lt=1 << 31)]
#: JSON writes the keys of an object as strings.
BiasedToken = Annotated[int, Field(ge=0, lt=1 << 31)]

_FAULT = "fault"
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

    @property
    def characters(self) -> int:
        """How long its text is."""
        content = self.content or ""
        return len(content) if isinstance(content, str) else sum(len(part.text) for part in content)

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
    n: int | None = Field(None, ge=1, le=MOST_CHOICES)
    best_of: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 63)
    stop: Annotated[tuple[str, ...], _texts, Field(max_length=MOST_STOPS)] = ()
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: Mapping[BiasedToken, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        None, max_length=MOST_BIASES
    )
    # as vLLM takes them
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    min_tokens: int = Field(0, ge=0)
    ignore_eos: bool = False
    kv_transfer_params: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.best_of not in (None, self.choices):
            raise _fault("best_of", f"best_of must be n, which is {self.choices}: no choice is thrown away")
        if self.stream_options is not None and not self.stream:
            raise _fault("stream_options", "stream_options need stream: true")
        asks_for_prompt_only = (self.kv_transfer_params or {}).get("do_remote_decode")
        if not asks_for_prompt_only and self.min_tokens > (self.answer_limit or self.min_tokens):
            raise _fault("min_tokens", f"min_tokens must not exceed max_tokens, which is {self.answer_limit}")
        return self

    @property
    def choices(self) -> int:
        """How many answers to each prompt."""
        return self.n or 1

    @property
    def answer_limit(self) -> int | None:
        """The most tokens of one answer; None for as many as the context has room for."""
        return self.max_tokens

    @property
    def limit_name(self) -> str:
        """The field that gives the limit."""
        return "max_tokens"

    @property
    def prompt_tokens_estimate(self) -> int:
        """About how many tokens the prompts have; the exact number takes a tokenizer."""
        return 0

    @property
    def answers(self) -> int:
        """How many answers are written: choices, for every prompt."""
        return self.choices

    def tokens_estimate(self, most: int | None) -> int:
        """About how many tokens prompts and answers may have together.

        Args:
            most: the longest answer where the request gives none; None counts such answers as nothing.
        """
        return self.prompt_tokens_estimate + self.answers * (self.answer_limit or most or 0)

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
            logit_bias=tuple((self.logit_bias or {}).items()),
            min_tokens=self.min_tokens,
            logprobs=self.top_logprobs_wanted,
            ignore_eos=self.ignore_eos,
        )


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: tuple[Message, ...] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_TOP_LOGPROBS)

    @model_validator(mode="after")
    def _logprobs_fit(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise _fault("top_logprobs", "top_logprobs needs logprobs: true")
        return self

    @property
    def answer_limit(self) -> int | None:
        """The newer name wins."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def limit_name(self) -> str:
        """As in `GenerationRequest`."""
        return (
            "max_tokens"
            if self.max_completion_tokens is None and self.max_tokens
            else "max_completion_tokens"
        )

    @property
    def prompt_tokens_estimate(self) -> int:
        """As in `GenerationRequest`."""
        return _tokens_of(sum(message.characters for message in self.messages))

    @property
    def top_logprobs_wanted(self) -> int | None:
        """As in `GenerationRequest`."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    prompt: str | tuple[TokenId, ...] | tuple[str, ...] | tuple[tuple[TokenId, ...], ...]
    logprobs: int | None = Field(None, ge=0, le=MOST_TOP_LOGPROBS)

    @model_validator(mode="after")
    def _few_prompts(self) -> Self:
        if len(self.prompts) > MOST_PROMPTS:
            raise _fault(
                "prompt",
                f"{len(self.prompts)} prompts are too many for one request; {MOST_PROMPTS} may come together",
            )
        return self

    @property
    def answer_limit(self) -> int | None:
        """As in `GenerationRequest`; short answers are this endpoint's default."""
        return self.max_tokens or COMPLETION_TOKENS

    @property
    def top_logprobs_wanted(self) -> int | None:
        """As in `GenerationRequest`."""
        return self.logprobs

    @property
    def prompts(self) -> tuple[str | tuple[int, ...], ...]:
        """Every prompt: a text or token ids."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return (prompt,)
        texts_or_ids = tuple(one for one in prompt if not isinstance(one, int))
        if texts_or_ids:
            return texts_or_ids
        return (tuple(one for one in prompt if isinstance(one, int)),)

    @property
    def the_prompt(self) -> str | tuple[int, ...]:
        """The one prompt, where only one can be served.

        Raises:
            ApiError: there are several.
        """
        if len(self.prompts) != 1:
            raise invalid(
                "unsupported_value", "this server takes one prompt a request; ask the gateway", "prompt"
            )
        return self.prompts[0]

    @property
    def prompt_tokens_estimate(self) -> int:
        """As in `GenerationRequest`."""
        return sum(_tokens_of(len(one)) if isinstance(one, str) else len(one) for one in self.prompts)

    @property
    def answers(self) -> int:
        """As in `GenerationRequest`."""
        return len(self.prompts) * self.choices


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
        # stricter than Python's own reader: no NaN, which no bound would keep out, no half of a surrogate pair, which is no
        # text that could be encoded, and no nesting without end
        body = from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise invalid("invalid_json", f"the body is not JSON in UTF-8: {error}") from error
    if not isinstance(body, dict):
        raise invalid("invalid_json", f"the body must be a JSON object, not {type(body).__name__}")
    return body


def read_request(
    endpoint: str,
    body: dict[str, Any],
    *,
    served_model: str,
    aliases: AbstractSet[str] = frozenset(),
) -> ChatRequest | CompletionRequest:
    """A request for that endpoint.

    Raises:
        ApiError: a field is missing or out of bounds, fields contradict each other, or another model is asked for.
    """
    try:
        request = REQUESTS[endpoint].model_validate(body)
    except ValidationError as error:
        raise _to_api_error(error) from error
    if request.model != served_model and request.model not in aliases:
        raise unknown_model(request.model, served=served_model)
    return request


def bounded(body: dict[str, Any], request: ChatRequest | CompletionRequest, most: int) -> dict[str, Any]:
    """The body with an answer of at most that many tokens: a limit that was left out becomes this one.

    Raises:
        ApiError: more is asked for.
    """
    asked = request.answer_limit
    if asked is not None and asked > most:
        name = request.limit_name
        raise invalid(
            "invalid_value",
            f"{name}: {asked} is too many; an answer with this key has at most {most} tokens",
            name,
        )
    return body if asked is not None else {**body, request.limit_name: most}


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


def _to_api_error(error: ValidationError) -> ApiError:
    """One fault, by the field's name: the deepest, which says most of a value that may have several forms."""
    fault = max(error.errors(), key=lambda one: len(one["loc"]))
    if fault["type"] == _FAULT:
        return invalid("invalid_value", fault["msg"], fault["ctx"]["param"])
    param = ".".join(map(str, filter(_is_place, fault["loc"])))
    if fault["type"] == "missing":
        return invalid("missing_required_parameter", f"{param}: {fault['msg']}", param)
    if fault["loc"][0] == "prompt":
        expected = "it must be a text, a list of texts, a list of token ids, or a list of such lists"
        return invalid("invalid_value", f"prompt: {expected}", "prompt")
    return invalid("invalid_value", f"{param}: {fault['msg']}", param)


def _is_place(part: int | str) -> bool:
    """Whether it is a field or an index: the form of a union, such as `str` or `tuple[...]`, is neither."""
    return isinstance(part, int) or (part != "str" and part.isidentifier())


def _fault(param: str, message: str) -> PydanticCustomError:
    """What no bound of one field can say."""
    return PydanticCustomError(_FAULT, "{message}", {"param": param, "message": message})


def _tokens_of(characters: int) -> int:
    return -(-characters // CHARACTERS_PER_TOKEN)
