"""What OpenAPI does not say about the Go types of built-in kinds: which fields are printed empty, and which zeros are left out."""

from __future__ import annotations

from typing import Final

# Fields of struct type without a pointer: Go prints them as {} even when nothing is set. Both kinds of Event are one row;
# each has only some of the fields.
PRINTED_STRUCTS: Final[dict[str, tuple[str, ...]]] = {
    "APIService": ("spec", "status"),
    "ClusterRoleBinding": ("roleRef",),
    "Container": ("resources",),
    "ContainerStatus": ("state", "lastState"),
    "CronJob": ("spec", "status"),
    "CronJobSpec": ("jobTemplate",),
    "CustomResourceDefinition": ("spec", "status"),
    "CustomResourceDefinitionStatus": ("acceptedNames",),
    "DaemonSet": ("spec", "status"),
    "DaemonSetSpec": ("template", "updateStrategy"),
    "Deployment": ("spec", "status"),
    "DeploymentSpec": ("template", "strategy"),
    "EphemeralContainer": ("resources",),
    "Event": ("involvedObject", "source", "regarding", "deprecatedSource"),
    "HorizontalPodAutoscaler": ("spec", "status"),
    "HorizontalPodAutoscalerSpec": ("scaleTargetRef",),
    "Ingress": ("spec", "status"),
    "IngressStatus": ("loadBalancer",),
    "Job": ("spec", "status"),
    "JobSpec": ("template",),
    "JobTemplateSpec": ("metadata", "spec"),
    "Lease": ("spec",),
    "LimitRange": ("spec",),
    "Namespace": ("spec", "status"),
    "NetworkPolicy": ("spec",),
    "NetworkPolicySpec": ("podSelector",),
    "Node": ("spec", "status"),
    "NodeDaemonEndpoints": ("kubeletEndpoint",),
    "NodeStatus": ("daemonEndpoints", "nodeInfo"),
    "PersistentVolume": ("spec", "status"),
    "PersistentVolumeClaim": ("spec", "status"),
    "PersistentVolumeClaimSpec": ("resources",),
    "PersistentVolumeClaimTemplate": ("spec",),
    "Pod": ("spec", "status"),
    "PodDisruptionBudget": ("spec", "status"),
    "PodTemplate": ("template",),
    "PodTemplateSpec": ("metadata", "spec"),
    "ReplicaSet": ("spec", "status"),
    "ReplicaSetSpec": ("template",),
    "ReplicationController": ("spec", "status"),
    "ResourceQuota": ("spec", "status"),
    "RoleBinding": ("roleRef",),
    "Service": ("spec", "status"),
    "ServiceStatus": ("loadBalancer",),
    "StatefulSet": ("spec", "status"),
    "StatefulSetSpec": ("template", "updateStrategy"),
}

# Fields that Go prints as null, or as an empty string, when they are not set.
PRINTED_NULLS: Final[dict[str, tuple[str, ...]]] = {
    "APIServiceCondition": ("lastTransitionTime",),
    "ContainerStateRunning": ("startedAt",),
    "ContainerStateTerminated": ("startedAt", "finishedAt"),
    "CustomResourceDefinitionCondition": ("lastTransitionTime",),
    "CustomResourceDefinitionStatus": ("conditions", "storedVersions"),
    "DaemonSetCondition": ("lastTransitionTime",),
    "DeploymentCondition": ("lastUpdateTime", "lastTransitionTime"),
    "Event": (
        "eventTime",
        "firstTimestamp",
        "lastTimestamp",
        "deprecatedFirstTimestamp",
        "deprecatedLastTimestamp",
    ),
    "HorizontalPodAutoscalerCondition": ("lastTransitionTime",),
    "HorizontalPodAutoscalerStatus": ("currentMetrics",),
    "JobCondition": ("lastProbeTime", "lastTransitionTime"),
    "NamespaceCondition": ("lastTransitionTime",),
    "NodeCondition": ("lastHeartbeatTime", "lastTransitionTime"),
    "PersistentVolumeClaimCondition": ("lastProbeTime", "lastTransitionTime"),
    "PodCondition": ("lastProbeTime", "lastTransitionTime"),
    "Role": ("rules",),
    "ClusterRole": ("rules",),
    "ReplicaSetCondition": ("lastTransitionTime",),
    "StatefulSetCondition": ("lastTransitionTime",),
}
PRINTED_TEXTS: Final[dict[str, tuple[str, ...]]] = {"Event": ("reportingComponent", "reportingInstance")}

# Required fields that are pointers: absent ones are null, not an empty struct.
POINTER_STRUCTS: Final = frozenset({"LabelSelector"})

# Optional strings that are pointers: an empty one is a value. All other optional strings are left out when empty.
POINTER_STRINGS: Final = frozenset(
    {
        "appProtocol", "fsGroupChangePolicy", "holderIdentity", "hostnameOverride", "ingressClassName",
        "internalTrafficPolicy", "ipFamilyPolicy", "loadBalancerClass", "managedBy", "preemptionPolicy", "procMount",
        "runtimeClassName", "storageClassName", "trafficDistribution", "volumeAttributesClassName", "volumeMode", "zone",
    }
)  # fmt: skip
# These names are pointers only in these structs.
POINTER_STRINGS_IN: Final[dict[str, frozenset[str]]] = {
    "Endpoint": frozenset({"hostname", "nodeName"}),
    "EndpointPort": frozenset({"name", "protocol"}),
    "GRPCAction": frozenset({"service"}),
    "HostPathVolumeSource": frozenset({"type"}),
    "ServiceReference": frozenset({"path"}),
}

# Optional numbers and booleans that are not pointers: zero and false are left out. All others are kept.
VALUE_INTEGERS: Final = frozenset(
    {
        "active", "availableReplicas", "count", "currentNumberScheduled", "currentReplicas", "failed", "failureThreshold",
        "fullyLabeledReplicas", "generation", "healthCheckNodePort", "hostPort", "initialDelaySeconds",
        "minReadySeconds", "nodePort", "numberAvailable", "numberUnavailable", "observedGeneration", "periodSeconds",
        "readyReplicas", "replicas", "signal", "succeeded", "successThreshold", "timeoutSeconds", "unavailableReplicas",
        "updatedNumberScheduled", "updatedReplicas",
    }
)  # fmt: skip
# `replicas` and `timeoutSeconds` are pointers in these structs.
INTEGER_POINTERS: Final[dict[str, frozenset[str]]] = {
    "replicas": frozenset(
        {"DeploymentSpec", "ReplicaSetSpec", "ReplicationControllerSpec", "StatefulSetSpec", "ScaleSpec"}
    ),
    "timeoutSeconds": frozenset({"ClientIPConfig", "MutatingWebhook", "ValidatingWebhook"}),
}
VALUE_BOOLEANS: Final = frozenset(
    {
        "deprecated", "exclusiveMaximum", "exclusiveMinimum", "hostIPC", "hostNetwork", "hostPID", "insecureSkipTLSVerify",
        "manualSelector", "nullable", "paused", "preserveUnknownFields", "publishNotReadyAddresses", "readOnly", "stdin",
        "stdinOnce", "tty", "uniqueItems", "unschedulable", "x-kubernetes-embedded-resource", "x-kubernetes-int-or-string",
    }
)  # fmt: skip
