"""Which scenario a request belongs to: the first one whose conditions it meets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tidewheel.api.scenarios import RouteScenario, ScenarioMatch
from tidewheel_workers.serving.prompt_facts import PromptFacts, system_prompt_sha256


def scenario_of(
    scenarios: Sequence[RouteScenario],
    *,
    headers: Mapping[str, str],
    path: str,
    body: Mapping[str, Any],
    facts: PromptFacts,
) -> RouteScenario | None:
    """The request's scenario; None for what no scenario matches.

    Args:
        scenarios: in the order in which they are tried.
        headers: the request's, with names in lower case.
        path: the URL's path.
        body: a request that is known to be valid.
        facts: those of its prompt.
    """
    return next(
        (one for one in scenarios if _matches(one.match, headers, path=path, body=body, facts=facts)), None
    )


def aliases_in(scenarios: Sequence[RouteScenario]) -> frozenset[str]:
    """All names that stand for the model beside its own."""
    return frozenset(alias for one in scenarios for alias in one.match.model_aliases)


def _matches(
    match: ScenarioMatch,
    headers: Mapping[str, str],
    *,
    path: str,
    body: Mapping[str, Any],
    facts: PromptFacts,
) -> bool:
    length = match.prompt_length
    return (
        all(headers.get(header.name.lower()) == header.value for header in match.headers)
        and (not match.model_aliases or body["model"] in match.model_aliases)
        and (not match.paths or path in match.paths)
        and (length is None or length.min <= facts.characters <= length.max)
        # last, as it is the one that costs something
        and (not match.system_prompt_sha256 or system_prompt_sha256(body) in match.system_prompt_sha256)
    )
