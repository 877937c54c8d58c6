"""PDServiceScaler: one role of one scenario as a thing that autoscalers can scale."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tidewheel.api.model import ApiModel, CelRule, CustomResource, Name, PrinterColumn, ScaleSubresource
from tidewheel.api.scenarios import DEFAULT_SCENARIO
from tidewheel.api.status import Condition

#: 512 groups of 64 pods.
MOST_REPLICAS = 32_768


class PDServiceScalerSpec(ApiModel):
    """Which pods are scaled, and to how many."""

    service: Name = Field(description="service is a PDService in the same namespace.")
    scenario: Name = Field(
        DEFAULT_SCENARIO,
        description="scenario is one with groups of its own; `default` are the groups for everybody.",
    )
    role: Literal["prefill", "decode"] = Field(description="role is which of its pods.")
    replicas: int = Field(
        ge=0,
        le=MOST_REPLICAS,
        description=(
            "replicas is the number of pods of this role over all groups of the scenario, instead of what the PDService says. "
            "They are spread evenly; each group has one at least. `kubectl scale` and autoscalers write it."
        ),
    )

    cel_rules = tuple(
        CelRule(
            rule=f"self.{field} == oldSelf.{field}",
            message=f"{field} cannot be changed; make another PDServiceScaler",
            field_path=f".{field}",
        )
        for field in ("service", "scenario", "role")
    )


class PDServiceScalerStatus(ApiModel):
    """What came of it."""

    conditions: tuple[Condition, ...] = Field(
        (),
        max_length=4,
        description="conditions are Active: whether the service follows it, and if not, why.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    observed_generation: int = Field(
        0, ge=0, description="observedGeneration is the generation this status is about."
    )
    replicas: int = Field(0, ge=0, description="replicas is the number of such pods there are.")
    ready_replicas: int = Field(0, ge=0, description="readyReplicas is how many of them are ready.")
    selector: str = Field("", max_length=512, description="selector finds these pods.")


class PDServiceScaler(CustomResource):
    """PDServiceScaler lets HPA, KEDA or kubectl scale one role of a PDService's scenario."""

    plural = "pdservicescalers"
    short_names = ("pdss",)
    scale = ScaleSubresource(
        spec_replicas_path=".spec.replicas",
        status_replicas_path=".status.replicas",
        label_selector_path=".status.selector",
    )
    printer_columns = (
        PrinterColumn(
            name="Service", type="string", json_path=".spec.service", description="The PDService it scales."
        ),
        PrinterColumn(
            name="Scenario", type="string", json_path=".spec.scenario", description="Whose groups it scales."
        ),
        PrinterColumn(
            name="Role", type="string", json_path=".spec.role", description="Which pods it scales."
        ),
        PrinterColumn(
            name="Desired", type="integer", json_path=".spec.replicas", description="Pods asked for."
        ),
        PrinterColumn(
            name="Ready", type="integer", json_path=".status.readyReplicas", description="Ready pods."
        ),
        PrinterColumn(
            name="Active",
            type="string",
            json_path=".status.conditions[?(@.type=='Active')].status",
            description="Whether the service follows it.",
        ),
        PrinterColumn(
            name="Reason",
            type="string",
            json_path=".status.conditions[?(@.type=='Active')].reason",
            description="Why, or why not.",
        ),
        PrinterColumn(
            name="Age",
            type="date",
            json_path=".metadata.creationTimestamp",
            description="Time since creation.",
        ),
    )

    spec: PDServiceScalerSpec = Field(description="spec is which pods are scaled, and to how many.")
    status: PDServiceScalerStatus | None = Field(None, description="status is what came of it.")
