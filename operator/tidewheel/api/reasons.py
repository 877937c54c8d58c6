"""Every condition type and reason Tidewheel reports, with what it means and what to do: the documented table."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ConditionType(StrEnum):
    """The conditions of a PDService, and of what belongs to one."""

    READY = "Ready"
    PROGRESSING = "Progressing"
    DEGRADED = "Degraded"
    #: Of a PDServiceScaler.
    ACTIVE = "Active"


class Reason(StrEnum):
    """Why a condition stands as it does. A worker's own start-up errors use the same words."""

    # Ready
    SERVING = "Serving"
    STARTING = "Starting"
    SUSPENDED = "Suspended"
    NO_GROUP_READY = "NoGroupReady"
    GATEWAY_NOT_READY = "GatewayNotReady"
    SCALED_TO_ZERO = "ScaledToZero"
    INVALID_SPEC = "InvalidSpec"
    UNKNOWN_ACCELERATOR = "UnknownAccelerator"
    UNSCHEDULABLE = "Unschedulable"
    IMAGE_UNAVAILABLE = "ImageUnavailable"
    POD_REFUSED = "PodRefused"
    PORT_TAKEN = "PortTaken"
    NAME_TAKEN = "NameTaken"
    CRASH_LOOP = "CrashLoop"
    OUT_OF_MEMORY = "OutOfMemory"
    MODEL_NOT_FOUND = "ModelNotFound"
    MODEL_UNREADABLE = "ModelUnreadable"
    MODEL_UNSUPPORTED = "ModelUnsupported"
    MODEL_DOWNLOAD_FAILED = "ModelDownloadFailed"
    DEVICE_UNAVAILABLE = "DeviceUnavailable"
    DEVICE_UNHEALTHY = "DeviceUnhealthy"
    NODE_LOST = "NodeLost"
    PEERS_UNVERIFIED = "PeersUnverified"
    # Progressing
    ROLLING_OUT = "RollingOut"
    SCALING = "Scaling"
    SETTLED = "Settled"
    # Degraded
    SCENARIO_DOWN = "ScenarioDown"
    REPLACING_MEMBERS = "ReplacingMembers"
    ALL_MEMBERS_HEALTHY = "AllMembersHealthy"
    # Active
    SCALED = "Scaled"
    REPLICAS_BOUNDED = "ReplicasBounded"
    SERVICE_NOT_FOUND = "ServiceNotFound"
    SCENARIO_HAS_NO_GROUPS = "ScenarioHasNoGroups"
    SCALED_BY_OPERATOR = "ScaledByOperator"
    SCALER_CONFLICT = "ScalerConflict"
    SCENARIO_IS_COMBINED = "ScenarioIsCombined"


@dataclass(frozen=True, slots=True)
class ReasonHelp:
    """One row of the documented table."""

    means: str
    do: str


REASON_HELP: dict[Reason, ReasonHelp] = {
    Reason.SERVING: ReasonHelp("at least one group and one gateway answer requests", "nothing"),
    Reason.STARTING: ReasonHelp(
        "pods are starting or loading the model", "wait; `kubectl describe` shows which"
    ),
    Reason.SUSPENDED: ReasonHelp("spec.suspend is true; no pods run", "set spec.suspend to false"),
    Reason.NO_GROUP_READY: ReasonHelp(
        "no group has both a ready prefill and a ready decode pod, and no combined one a ready decode pod",
        "look at the pods' conditions and logs",
    ),
    Reason.GATEWAY_NOT_READY: ReasonHelp("no gateway pod is ready", "look at the gateway pods' logs"),
    Reason.SCALED_TO_ZERO: ReasonHelp("spec.groups is 0", "raise spec.groups"),
    Reason.INVALID_SPEC: ReasonHelp(
        "the spec cannot be read as a PDService", "correct the field named in the message"
    ),
    Reason.UNKNOWN_ACCELERATOR: ReasonHelp(
        "the role names an accelerator the operator has no row for",
        "use one of the names in the message, or add a row to `accelerators` in the chart's values",
    ),
    Reason.UNSCHEDULABLE: ReasonHelp(
        "no node fits a pod; the message is the scheduler's", "lower the request, or add a node that has it"
    ),
    Reason.IMAGE_UNAVAILABLE: ReasonHelp(
        "a container's image cannot be pulled", "correct the image, or give its registry's pull secret"
    ),
    Reason.POD_REFUSED: ReasonHelp(
        "the API server refused a child: quota, pod security or an admission rule",
        "the message names the rule; change the spec's template or the namespace's policy",
    ),
    Reason.PORT_TAKEN: ReasonHelp(
        "the node port, or the port a worker listens on, belongs to something else",
        "choose another spec.gateway.service.nodePort, or leave it out",
    ),
    Reason.NAME_TAKEN: ReasonHelp(
        "an object of a child's name exists and belongs to someone else", "rename or delete that object"
    ),
    Reason.CRASH_LOOP: ReasonHelp("a container keeps failing", "`kubectl logs --previous` of the pod named"),
    Reason.OUT_OF_MEMORY: ReasonHelp("a container was killed for memory", "raise the role's memory limit"),
    Reason.MODEL_NOT_FOUND: ReasonHelp(
        "the model source names nothing that is there", "correct spec.model.source, or put the model there"
    ),
    Reason.MODEL_UNREADABLE: ReasonHelp(
        "the model's files are damaged or incomplete", "fetch the model again"
    ),
    Reason.MODEL_UNSUPPORTED: ReasonHelp(
        "the built-in engine cannot run this architecture or weight type",
        "use a Llama-family model, or run another engine through the role's template",
    ),
    Reason.MODEL_DOWNLOAD_FAILED: ReasonHelp(
        "the model could not be downloaded; pods may have no way to the hub",
        "allow egress to the hub, or put the model on a volume and use source.volume",
    ),
    Reason.DEVICE_UNAVAILABLE: ReasonHelp(
        "the pod sees no device of the accelerator its role asks for",
        "check the node's driver and device plugin",
    ),
    Reason.DEVICE_UNHEALTHY: ReasonHelp(
        "the node's detector says that a device of the pod is sick, by its health file or the node's condition "
        "`tidewheel.dev/DevicesHealthy`; a fault that is said to recover by itself is waited for",
        "mend or cordon the node; one substitute takes the pod's place meanwhile",
    ),
    Reason.NODE_LOST: ReasonHelp(
        "the pod's node is gone, or has not been ready for a minute",
        "look at the node; one substitute takes the pod's place meanwhile",
    ),
    Reason.PEERS_UNVERIFIED: ReasonHelp(
        "prefill and decode of a group cannot reach each other, or hold different models",
        "check network policies on the KV port, and that both roles run one image",
    ),
    Reason.ROLLING_OUT: ReasonHelp("groups of the new revision replace those of the old", "wait"),
    Reason.SCALING: ReasonHelp("pods are being added or drained", "wait"),
    Reason.SETTLED: ReasonHelp("what runs is what the spec asks for", "nothing"),
    Reason.SCENARIO_DOWN: ReasonHelp(
        "a scenario with groups of its own has none that serves; the message says who takes its requests",
        "look at the pods of its groups: `kubectl get pods -l tidewheel.dev/scenario=NAME`",
    ),
    Reason.REPLACING_MEMBERS: ReasonHelp(
        "a pod failed and one substitute takes its place; the others serve on",
        "look at the event for the cause",
    ),
    Reason.ALL_MEMBERS_HEALTHY: ReasonHelp("no pod is failed or missing", "nothing"),
    Reason.SCALED: ReasonHelp("the service has, or gets, as many pods as the scaler asks for", "nothing"),
    Reason.REPLICAS_BOUNDED: ReasonHelp(
        "each group has 1 to 64 pods of a role, so the number asked for cannot be had",
        "change the number of groups, or the autoscaler's bounds",
    ),
    Reason.SERVICE_NOT_FOUND: ReasonHelp(
        "the PDService that the scaler names is not there, or its spec cannot be read",
        "make it, or delete the scaler",
    ),
    Reason.SCENARIO_HAS_NO_GROUPS: ReasonHelp(
        "the scenario that the scaler names is not there, or is served by the groups for everybody",
        "give the scenario groups, or delete the scaler",
    ),
    Reason.SCALED_BY_OPERATOR: ReasonHelp(
        "spec.scaling.mode of the PDService is Auto: two would decide the same number",
        "set the mode to Off or Advise, or delete the scaler",
    ),
    Reason.SCALER_CONFLICT: ReasonHelp(
        "another, older PDServiceScaler scales the same pods", "delete one of the two"
    ),
    Reason.SCENARIO_IS_COMBINED: ReasonHelp(
        "disaggregation of the scenario is Never: its decode pods compute the prompts, and it has no prefill pods",
        "delete the scaler, scale decode, or set disaggregation to Always",
    ),
}
