"""Field numbers of the Kubernetes messages that typed clients send as protobuf, as in k8s.io's generated.proto files."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

# One message a line: number, name, and after a colon what it is: a scalar, `map`, or another message; text when nothing
# is said. `int` and `bool` are plain Go fields, which are sent even when they are unset; `int?` and `bool?` are
# pointers, whose zero means something. `*` marks a list, `ignored` what a client has no say in.
TABLE = """
ClusterRole: 1 metadata:ObjectMeta, 2 rules:PolicyRule*
ClusterRoleBinding: 1 metadata:ObjectMeta, 2 subjects:Subject*, 3 roleRef:RoleRef
ConfigMap: 1 metadata:ObjectMeta, 2 data:map, 3 binaryData:bytesmap, 4 immutable:bool?
Container: 1 name, 2 image, 3 command*, 4 args*, 5 workingDir, 6 ports:ContainerPort*, 7 env:EnvVar*, 8 resources:Empty, 13 terminationMessagePath, 14 imagePullPolicy, 16 stdin:bool, 17 stdinOnce:bool, 18 tty:bool, 20 terminationMessagePolicy
ContainerPort: 1 name, 2 hostPort:int, 3 containerPort:int, 4 protocol, 5 hostIP
CronJob: 1 metadata:ObjectMeta, 2 spec:CronJobSpec, 3 status:ignored
CronJobSpec: 1 schedule, 2 startingDeadlineSeconds:int?, 3 concurrencyPolicy, 4 suspend:bool?, 5 jobTemplate:JobTemplateSpec, 6 successfulJobsHistoryLimit:int?, 7 failedJobsHistoryLimit:int?, 8 timeZone
DeleteOptions: 1 gracePeriodSeconds:int?, 2 preconditions:Preconditions, 3 orphanDependents:bool?, 4 propagationPolicy, 5 dryRun*
Deployment: 1 metadata:ObjectMeta, 2 spec:DeploymentSpec, 3 status:ignored
DeploymentSpec: 1 replicas:int?, 2 selector:LabelSelector, 3 template:PodTemplateSpec, 4 strategy:DeploymentStrategy, 5 minReadySeconds:int, 6 revisionHistoryLimit:int?, 7 paused:bool, 9 progressDeadlineSeconds:int?
DeploymentStrategy: 1 type
Empty:
EnvVar: 1 name, 2 value
Eviction: 1 metadata:ObjectMeta, 2 deleteOptions:DeleteOptions
Job: 1 metadata:ObjectMeta, 2 spec:JobSpec, 3 status:ignored
JobSpec: 1 parallelism:int?, 2 completions:int?, 3 activeDeadlineSeconds:int?, 4 selector:LabelSelector, 5 manualSelector:bool?, 6 template:PodTemplateSpec, 7 backoffLimit:int?, 8 ttlSecondsAfterFinished:int?
JobTemplateSpec: 1 metadata:ObjectMeta, 2 spec:JobSpec
LabelSelector: 1 matchLabels:map, 2 matchExpressions:LabelSelectorRequirement*
LabelSelectorRequirement: 1 key, 2 operator, 3 values*
Namespace: 1 metadata:ObjectMeta, 2 spec:Empty, 3 status:ignored
NonResourceAttributes: 1 path, 2 verb
ObjectMeta: 1 name, 2 generateName, 3 namespace, 4 selfLink:ignored, 5 uid, 6 resourceVersion, 7 generation:int, 8 creationTimestamp:time, 9 deletionTimestamp:time, 10 deletionGracePeriodSeconds:int?, 11 labels:map, 12 annotations:map, 13 ownerReferences:OwnerReference*, 14 finalizers*, 17 managedFields:ignored
OwnerReference: 1 kind, 3 name, 4 uid, 5 apiVersion, 6 controller:bool?, 7 blockOwnerDeletion:bool?
PodDisruptionBudget: 1 metadata:ObjectMeta, 2 spec:PodDisruptionBudgetSpec, 3 status:ignored
PodDisruptionBudgetSpec: 1 minAvailable:intstr, 2 selector:LabelSelector, 3 maxUnavailable:intstr
PodSpec: 2 containers:Container*, 3 restartPolicy, 4 terminationGracePeriodSeconds:int?, 6 dnsPolicy, 7 nodeSelector:map, 8 serviceAccountName, 9 serviceAccount, 10 nodeName, 11 hostNetwork:bool, 12 hostPID:bool, 13 hostIPC:bool, 14 securityContext:Empty, 16 hostname, 17 subdomain, 19 schedulerName, 20 initContainers:Container*, 24 priorityClassName
PodTemplateSpec: 1 metadata:ObjectMeta, 2 spec:PodSpec
PolicyRule: 1 verbs*, 2 apiGroups*, 3 resources*, 4 resourceNames*, 5 nonResourceURLs*
Preconditions: 1 uid, 2 resourceVersion
ResourceAttributes: 1 namespace, 2 verb, 3 group, 4 version, 5 resource, 6 subresource, 7 name
Role: 1 metadata:ObjectMeta, 2 rules:PolicyRule*
RoleBinding: 1 metadata:ObjectMeta, 2 subjects:Subject*, 3 roleRef:RoleRef
RoleRef: 1 apiGroup, 2 kind, 3 name
Secret: 1 metadata:ObjectMeta, 2 data:bytesmap, 3 type, 4 stringData:map, 5 immutable:bool?
SelfSubjectAccessReview: 1 metadata:ObjectMeta, 2 spec:SelfSubjectAccessReviewSpec, 3 status:ignored
SelfSubjectAccessReviewSpec: 1 resourceAttributes:ResourceAttributes, 2 nonResourceAttributes:NonResourceAttributes
SelfSubjectReview: 1 metadata:ObjectMeta, 2 status:ignored
SelfSubjectRulesReview: 1 metadata:ObjectMeta, 2 spec:SelfSubjectRulesReviewSpec, 3 status:ignored
SelfSubjectRulesReviewSpec: 1 namespace
Service: 1 metadata:ObjectMeta, 2 spec:ServiceSpec, 3 status:ignored
ServicePort: 1 name, 2 protocol, 3 port:int, 4 targetPort:intstr, 5 nodePort:int
ServiceSpec: 1 ports:ServicePort*, 2 selector:map, 3 clusterIP, 4 type, 5 externalIPs*, 7 sessionAffinity, 8 loadBalancerIP, 10 externalName, 11 externalTrafficPolicy, 12 healthCheckNodePort:int, 13 publishNotReadyAddresses:bool
ServiceAccount: 1 metadata:ObjectMeta
Subject: 1 kind, 2 apiGroup, 3 name, 4 namespace
TokenRequest: 1 metadata:ObjectMeta, 2 spec:TokenRequestSpec, 3 status:ignored
TokenRequestSpec: 1 audiences*, 4 expirationSeconds:int?
"""

# The kinds that stand alone in a body; all other messages are parts of these.
KINDS = frozenset(
    {
        "ClusterRole", "ClusterRoleBinding", "ConfigMap", "CronJob", "DeleteOptions", "Deployment", "Eviction", "Job",
        "Namespace", "PodDisruptionBudget", "Role", "RoleBinding", "Secret", "SelfSubjectAccessReview",
        "SelfSubjectReview", "SelfSubjectRulesReview", "Service", "ServiceAccount", "TokenRequest",
    }
)  # fmt: skip


class Field(NamedTuple):
    """How one field number is read: `kind` is a scalar's name or that of another message."""

    name: str
    kind: str
    repeated: bool


@cache
def messages() -> Mapping[str, Mapping[int, Field]]:
    """The table, by message name and field number."""
    found: dict[str, dict[int, Field]] = {}
    for line in TABLE.strip().splitlines():
        message, _, fields = line.partition(":")
        found[message] = dict(_field(words.strip()) for words in fields.split(",") if words.strip())
    return found


def _field(words: str) -> tuple[int, Field]:
    number, _, rest = words.partition(" ")
    repeated = rest.endswith("*")
    name, _, kind = rest.rstrip("*").partition(":")
    return int(number), Field(name, kind or "text", repeated)
