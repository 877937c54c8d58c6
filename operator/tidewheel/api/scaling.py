"""Scaling: how the operator chooses the numbers of prefill and decode pods by the load it sees."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tidewheel.api.model import ApiModel, CelRule
from tidewheel.api.status import Time

Day = Literal["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
TimeOfDay = Annotated[str, Field(max_length=5, pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")]


class PodRange(ApiModel):
    """How many pods of a role a scenario may have, over all its groups."""

    min: int = Field(1, ge=1, le=32_768, description="min is the least.")
    max: int = Field(64, ge=1, le=32_768, description="max is the most.")

    cel_rules = (CelRule(rule="self.min <= self.max", message="min must not exceed max", field_path=".min"),)


class ScheduledFloor(ApiModel):
    """So many pods at least at certain times of the week, ready when the time begins."""

    days: tuple[Day, ...] = Field(
        min_length=1, max_length=7, description="days are the weekdays on which it begins, in UTC."
    )
    start: TimeOfDay = Field(description="start is when it begins, such as 08:00, in UTC.")
    end: TimeOfDay = Field(
        description="end is when it ends, in UTC; if that is not after start, on the day after."
    )
    prefill: int = Field(
        0,
        ge=0,
        le=32_768,
        description=(
            "prefill is the least number of prefill pods. Where groups are combined, there are as many decode pods as a floor "
            "has of both."
        ),
    )
    decode: int = Field(0, ge=0, le=32_768, description="decode is the least number of decode pods.")


class PrefillProfile(ApiModel):
    """Prefill time of a prompt: a constant, a part for each token, and a part for each pair of tokens."""

    base_microseconds: int = Field(
        0, ge=0, le=60_000_000, description="baseMicroseconds is the constant part."
    )
    nanoseconds_per_token: int = Field(
        ge=1, le=10_000_000_000, description="nanosecondsPerToken is the part for each token."
    )
    femtoseconds_per_token_squared: int = Field(
        0,
        ge=0,
        le=1_000_000_000_000_000,
        description="femtosecondsPerTokenSquared is the part for the square of the tokens.",
    )


class DecodeProfile(ApiModel):
    """Time of one decode iteration, which gives each sequence of a batch a token."""

    base_microseconds: int = Field(
        ge=1, le=60_000_000, description="baseMicroseconds is the constant part: the weights are read."
    )
    nanoseconds_per_sequence: int = Field(
        0, ge=0, le=10_000_000_000, description="nanosecondsPerSequence is the part for each sequence."
    )
    picoseconds_per_kv_token: int = Field(
        0,
        ge=0,
        le=10_000_000_000_000,
        description="picosecondsPerKvToken is the part for each token of all sequences' contexts.",
    )


class Profile(ApiModel):
    """What one prefill pod and one decode pod can do, as `tidewheel profile` measures it."""

    prefill: PrefillProfile = Field(description="prefill is the time of a prompt.")
    decode: DecodeProfile = Field(description="decode is the time of an iteration.")


class Scaling(ApiModel):
    """How the numbers of pods follow the load."""

    mode: Literal["Off", "Advise", "Auto"] = Field(
        "Off",
        description=(
            "mode Off keeps the numbers of the spec. Advise looks at the load and says in the status what Auto would do. "
            "Auto does it: groups, prefill and decode replicas of the spec are where it begins."
        ),
    )
    window_seconds: int = Field(
        30,
        ge=2,
        le=600,
        description="windowSeconds is how often the pods' metrics are looked at and a decision is made.",
    )
    startup_seconds: int = Field(
        60,
        ge=0,
        le=3600,
        description=(
            "startupSeconds is the time from asking for a pod until it serves; the load is forecast so far ahead, and farther if "
            "the pods of a role are seen to take longer."
        ),
    )
    hold_seconds: int | None = Field(
        None,
        ge=0,
        le=86_400,
        description=(
            "holdSeconds is how long a need must have been lower before pods go; twice startupSeconds or four windows if left out."
        ),
    )
    most_per_step: int = Field(
        8,
        ge=1,
        le=1024,
        description="mostPerStep is how many pods of a role one decision adds or takes away.",
    )
    device_budget: int | None = Field(
        None,
        ge=2,
        le=1_048_576,
        description=(
            "deviceBudget is how many devices the prefill and decode pods of all scenarios may hold together, those of boosts "
            "included; a pod without an accelerator counts as one."
        ),
    )
    pods_per_group: int = Field(
        16, ge=2, le=128, description="podsPerGroup is how large a group may grow before there is one more."
    )
    prefill: PodRange = Field(PodRange(), description="prefill bounds each scenario's prefill pods.")
    decode: PodRange = Field(PodRange(), description="decode bounds each scenario's decode pods.")
    floors: tuple[ScheduledFloor, ...] = Field(
        (), max_length=32, description="floors are scheduled minima, of each scenario."
    )
    profile: Profile | None = Field(
        None,
        description=(
            "profile lets the numbers be computed for the forecast load; without it one pod at a time is added to the role whose "
            "share of the latency grows with it."
        ),
    )


class ScenarioScaling(ApiModel):
    """What the planner last found for a scenario."""

    name: str = Field(max_length=63, description="name is the scenario's; `default` is everything else.")
    prefill: int = Field(0, ge=0, description="prefill is how many prefill pods there should be.")
    decode: int = Field(0, ge=0, description="decode is how many decode pods there should be.")
    needed: str = Field(
        "",
        max_length=32,
        description="needed is prefill to decode pods for the forecast load, before all limits.",
    )
    bottleneck: str = Field(
        "",
        max_length=16,
        description="bottleneck is what would fall short first: prefill, decode or traffic.",
    )
    reason: str = Field("", max_length=64, description="reason is why, as one word.")
    message: str = Field("", max_length=1024, description="message is why, with the numbers.")
    requests_per_minute: int = Field(
        0,
        ge=0,
        description="requestsPerMinute is the load that is expected when a pod asked for now would serve.",
    )
    forecast: str = Field("", max_length=32, description="forecast is how that was foreseen.")
    combined: int | None = Field(
        None,
        ge=0,
        description=(
            "combined is how many decode pods that compute the prompts, too, would be enough, if those are clearly fewer or "
            "the planner has combined the groups."
        ),
    )


class StartupStatus(ApiModel):
    """How long pods are taken to need until they serve."""

    prefill_seconds: int = Field(
        0, ge=0, description="prefillSeconds is how far ahead prefill pods are asked for, beside the window."
    )
    decode_seconds: int = Field(
        0, ge=0, description="decodeSeconds is how far ahead decode pods are asked for, beside the window."
    )
    prefill_measured: int = Field(
        0,
        ge=0,
        description="prefillMeasured is how many of the last start-ups of prefill pods were measured; it takes 8 to go by them.",
    )
    decode_measured: int = Field(
        0,
        ge=0,
        description="decodeMeasured is how many of the last start-ups of decode pods were measured; it takes 8 to go by them.",
    )


class ScalingStatus(ApiModel):
    """What the planner last found."""

    time: Time = Field(description="time is when the last window ended.")
    startup: StartupStatus | None = Field(
        None, description="startup is how long pods are taken to need until they serve."
    )
    scenarios: tuple[ScenarioScaling, ...] = Field(
        (),
        max_length=17,
        description="scenarios are its findings by scenario.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
