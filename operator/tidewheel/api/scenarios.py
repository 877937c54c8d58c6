"""Scenarios: which requests of a service belong together, and what they are promised."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tidewheel.api.model import ApiModel, CelRule, Name

#: The scenario of a request that no other one matches.
DEFAULT_SCENARIO = "default"
MOST_SCENARIOS = 16

#: Whether prefill and decode have pods of their own; Auto lets the planner choose.
Disaggregation = Literal["Always", "Never", "Auto"]

#: What clients give as `model`.
ModelName = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]*$")]
Sha256 = Annotated[str, Field(max_length=64, pattern=r"^[0-9a-f]{64}$")]


class HeaderMatch(ApiModel):
    """One header of a request."""

    name: str = Field(
        min_length=1,
        max_length=64,
        pattern=r"^[A-Za-z0-9-]+$",
        description="name is the header's name; upper and lower case do not differ.",
    )
    value: str = Field(max_length=256, description="value is what the header must say, exactly.")


class PromptLength(ApiModel):
    """Bounds of a prompt's length. One token of English text is about four characters."""

    min: int = Field(0, ge=0, le=67_108_864, description="min is the least number of characters.")
    max: int = Field(67_108_864, ge=0, le=67_108_864, description="max is the greatest number of characters.")

    cel_rules = (CelRule(rule="self.min <= self.max", message="min must not exceed max", field_path=".min"),)


class ScenarioMatch(ApiModel):
    """What a request must look like: everything that is given here; of a list, one item is enough (of headers, all)."""

    headers: tuple[HeaderMatch, ...] = Field(
        (), max_length=8, description="headers must all be there with their values."
    )
    model_aliases: tuple[ModelName, ...] = Field(
        (),
        max_length=16,
        description="modelAliases are further names of the model; a request matches that gives one of them as `model`.",
    )
    paths: tuple[Literal["/v1/chat/completions", "/v1/completions"], ...] = Field(
        (), max_length=2, description="paths are URL paths, of which one must be the request's."
    )
    system_prompt_sha256: tuple[Sha256, ...] = Field(
        (),
        max_length=16,
        description=(
            "systemPromptSha256 are SHA-256 sums, in hexadecimal, of the text of a conversation's leading system messages; "
            "several are joined by a line feed."
        ),
    )
    prompt_length: PromptLength | None = Field(
        None, description="promptLength bounds the characters of all messages, or of the prompt."
    )

    cel_rules = (
        CelRule(
            rule=(
                "has(self.promptLength) || [has(self.headers) && size(self.headers) > 0, "
                "has(self.modelAliases) && size(self.modelAliases) > 0, has(self.paths) && size(self.paths) > 0, "
                "has(self.systemPromptSha256) && size(self.systemPromptSha256) > 0].exists(given, given)"
            ),
            message="match must say something; requests that no scenario matches are served without one",
        ),
    )


class ScenarioRule(ApiModel):
    """Which requests a scenario is about, and how long they may wait: what gateways and users both know."""

    name: Name = Field(description="name labels the scenario's metrics; `default` is everything else.")
    match: ScenarioMatch = Field(description="match says which requests belong here.")
    ttft_deadline_seconds: int | None = Field(
        None,
        ge=1,
        le=600,
        description="ttftDeadlineSeconds replaces spec.gateway.ttftDeadlineSeconds for these requests.",
    )

    cel_rules = (
        CelRule(
            rule=f"self.name != '{DEFAULT_SCENARIO}'",
            message="a scenario must not be named default, which is what no scenario matches",
            field_path=".name",
        ),
    )


class ScenarioGroups(ApiModel):
    """Groups that serve one scenario and nobody else. Their pods are like all others; only the numbers differ."""

    replicas: int = Field(1, ge=0, le=512, description="replicas is the number of groups.")
    prefill: int | None = Field(
        None,
        ge=1,
        le=64,
        description="prefill is the number of prefill pods in each; spec.prefill.replicas if left out, none with disaggregation Never.",
    )
    decode: int | None = Field(
        None,
        ge=1,
        le=64,
        description="decode is the number of decode pods in each; spec.decode.replicas if left out.",
    )
    disaggregation: Disaggregation | None = Field(
        None, description="disaggregation is the scenario's own; spec.disaggregation if left out."
    )
    when_down: Literal["UseDefault", "Wait"] = Field(
        "UseDefault",
        description=(
            "whenDown is what happens to the scenario's requests while none of its groups can take them: the groups without a "
            "scenario serve them, or they wait, and end at their deadline."
        ),
    )

    cel_rules = (
        CelRule(
            rule="!has(self.disaggregation) || self.disaggregation != 'Never' || !has(self.prefill)",
            message="groups with disaggregation Never have no prefill pods; leave prefill out",
            field_path=".prefill",
        ),
    )


class ServiceLevel(ApiModel):
    """What a scenario's requests are promised. Planners aim at it; requests are not ended by it."""

    ttft_ms: int | None = Field(
        None,
        ge=1,
        le=600_000,
        description="ttftMs is the time to the first token, in milliseconds.",
    )
    tpot_ms: int | None = Field(
        None,
        ge=1,
        le=60_000,
        description="tpotMs is the mean time per further token of an answer, in milliseconds.",
    )
    end_to_end_ms: int | None = Field(
        None, ge=1, le=3_600_000, description="endToEndMs is the time to the last token, in milliseconds."
    )
    attainment_percent: int = Field(
        99,
        ge=1,
        le=100,
        description="attainmentPercent is the share of requests for which all of it shall hold.",
    )


class ScenarioLimits(ApiModel):
    """How much of the service a scenario may take."""

    max_in_flight: int | None = Field(
        None,
        ge=1,
        le=1_048_576,
        description=(
            "maxInFlight is how many of its requests may be under way at a time over all gateways, each of which lets in "
            "an equal share, at least one; more get 429."
        ),
    )


class Scenario(ScenarioRule):
    """Requests that belong together. The first scenario that matches a request is its scenario."""

    groups: ScenarioGroups | None = Field(
        None, description="groups are its own; without them the groups of spec.groups serve it."
    )
    slo: ServiceLevel = Field(ServiceLevel(), description="slo is what its requests are promised.")
    limits: ScenarioLimits = Field(ScenarioLimits(), description="limits bound what it may take.")


class RouteScenario(ScenarioRule):
    """A scenario as gateways know it."""

    groups: tuple[Name, ...] | None = Field(
        None, description="groups are those that serve it; left out, all do."
    )
    max_in_flight: int | None = Field(
        None, ge=1, description="maxInFlight bounds its requests over all gateways."
    )
