"""What every status has: conditions and recorded decisions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tidewheel.api.model import ApiModel

#: Ready over desired, such as `2/3`.
PodCount = Annotated[str, Field(max_length=16)]
#: RFC 3339 in UTC with seconds, as the API server writes times.
Time = Annotated[str, Field(max_length=32, json_schema_extra={"format": "date-time"})]


class Condition(ApiModel):
    """One aspect of the state, as `metav1.Condition`."""

    type: str = Field(
        max_length=316,
        pattern=r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$",
        description="type is the aspect, such as Ready.",
    )
    status: Literal["True", "False", "Unknown"] = Field(description="status is whether it holds.")
    reason: str = Field(
        min_length=1,
        max_length=1024,
        pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
        description="reason is why, as one word from the documented table.",
    )
    message: str = Field(max_length=32768, description="message is why, for people, with what to do.")
    last_transition_time: Time = Field(description="lastTransitionTime is when status last changed.")
    observed_generation: int = Field(
        0, ge=0, description="observedGeneration is the generation it was judged by."
    )


class Decision(ApiModel):
    """One thing the operator did, and why."""

    time: Time = Field(description="time is when it was decided.")
    action: str = Field(max_length=64, description="action is what was done, such as ReplaceMember.")
    reason: str = Field(max_length=128, description="reason is why, as one word.")
    message: str = Field(
        max_length=1024, description="message says what was done to which object, with the inputs."
    )
