"""How a request wants its tokens chosen; apart from the choosing so that it can be read without torch."""

from __future__ import annotations

from dataclasses import dataclass

from tidewheel_workers.llm.errors import InvalidRequest

MOST_TOP_LOGPROBS = 20
MOST_BIASES = 1024
# below it division by the temperature overflows; other engines draw the line here, too
LEAST_TEMPERATURE = 1e-5
# below it the division by a repetition penalty would overflow, and infinities have no distribution
LEAST_PENALTY = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How a request wants its tokens chosen and when it wants them to end; names and ranges follow OpenAI and vLLM."""

    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 keeps all
    min_p: float = 0.0  # relative to the likeliest token
    seed: int | None = None  # None: the engine draws one
    max_tokens: int | None = None  # None: as many as the context has room for
    stop: tuple[str, ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0  # over prompt and output
    logit_bias: tuple[tuple[int, float], ...] = ()  # token and what is added to its logit
    min_tokens: int = (
        0  # before these neither the end token nor a stop string ends the answer; max_tokens wins
    )
    logprobs: int | None = None  # None: no log-probabilities; n: of the token and of the n likeliest
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        rules = (
            ("temperature", self.temperature, 0 <= self.temperature <= 100, "between 0 and 100"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k, self.top_k >= 0, "0 (off) or positive"),
            ("min_p", self.min_p, 0 <= self.min_p <= 1, "between 0 and 1"),
            ("max_tokens", self.max_tokens, self.max_tokens is None or self.max_tokens >= 1, "at least 1"),
            ("stop", self.stop, all(self.stop), "without empty strings"),
            ("presence_penalty", self.presence_penalty, -2 <= self.presence_penalty <= 2, "between -2 and 2"),
            (
                "frequency_penalty",
                self.frequency_penalty,
                -2 <= self.frequency_penalty <= 2,
                "between -2 and 2",
            ),
            (
                "repetition_penalty",
                self.repetition_penalty,
                0 < self.repetition_penalty <= 10,
                "above 0, at most 10",
            ),
            (
                "logit_bias",
                self.logit_bias,
                len(self.logit_bias) <= MOST_BIASES
                and all(token >= 0 and -100 <= bias <= 100 for token, bias in self.logit_bias),
                f"at most {MOST_BIASES} token ids with a bias between -100 and 100 each",
            ),
            ("min_tokens", self.min_tokens, self.min_tokens >= 0, "0 or positive"),
            (
                "logprobs",
                self.logprobs,
                self.logprobs is None or 0 <= self.logprobs <= MOST_TOP_LOGPROBS,
                f"between 0 and {MOST_TOP_LOGPROBS}",
            ),
        )
        for name, value, holds, want in rules:
            if not holds:
                raise InvalidRequest(f"{name}: {value!r} is not allowed; it must be {want}")

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature < LEAST_TEMPERATURE

    @property
    def changes_logits(self) -> bool:
        """Whether tokens are chosen by anything but the model's logits."""
        return bool(
            self.presence_penalty
            or self.frequency_penalty
            or self.repetition_penalty != 1.0
            or self.logit_bias
            or self.min_tokens
        )
