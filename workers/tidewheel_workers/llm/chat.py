"""Chat templates: the Jinja program that a model ships, run in a sandbox because it comes from a download."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tidewheel_workers.llm.errors import InvalidRequest, ModelUnsupported

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class ChatTemplate:
    """A compiled chat template with the names that Hugging Face's templates expect.

    Raises:
        ModelUnsupported: the template is no valid Jinja.
    """

    def __init__(self, source: str, *, bos_token: str = "", eos_token: str = "") -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = _now
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise ModelUnsupported(f"the model's chat template cannot be compiled: {error}") from error
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool) -> str:
        """The prompt as text.

        Raises:
            InvalidRequest: the template refuses the messages, or cannot work with them.
        """
        try:
            return self._template.render(
                messages=messages, add_generation_prompt=add_generation_prompt, tools=None, **self._tokens
            )
        except (TemplateError, TypeError, ValueError, OverflowError) as error:
            raise InvalidRequest(f"the model's chat template refuses these messages: {error}") from error


def _to_json(value: Any, indent: int | None = None) -> str:
    # Jinja's own filter escapes HTML, which a prompt must not contain
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now(tz=UTC).strftime(form)
