"""The resources every Kubernetes cluster has, as rows: what kube-apiserver v1.36 shows in discovery."""

from __future__ import annotations

from collections.abc import Iterator

from tidewheel.local.apiserver.registry import STORAGE_VERBS, Resource, ScalePaths, Subresource

GET_PATCH_UPDATE = ("get", "patch", "update")
CONNECT = ("create", "get")
PROXY = ("create", "delete", "get", "patch", "update")

# Subresources whose kind is not the object's own: name -> (kind, verbs, group, version).
SPECIAL: dict[str, tuple[str, tuple[str, ...], str, str]] = {
    "nodes/proxy": ("NodeProxyOptions", PROXY, "", ""),
    "namespaces/finalize": ("Namespace", ("update",), "", ""),
    "pods/attach": ("PodAttachOptions", CONNECT, "", ""),
    "pods/binding": ("Binding", ("create",), "", ""),
    "pods/eviction": ("Eviction", ("create",), "policy", "v1"),
    "pods/exec": ("PodExecOptions", CONNECT, "", ""),
    "pods/log": ("Pod", ("get",), "", ""),
    "pods/portforward": ("PodPortForwardOptions", CONNECT, "", ""),
    "pods/proxy": ("PodProxyOptions", PROXY, "", ""),
    "serviceaccounts/token": ("TokenRequest", ("create",), "authentication.k8s.io", "v1"),
    "services/proxy": ("ServiceProxyOptions", PROXY, "", ""),
}

# group/version, then lines of: plural Kind scope(N|C) shortNames categories subresources verbs; "-" is nothing.
TABLE = """
/v1
bindings Binding N - - - create
componentstatuses ComponentStatus C cs - - get,list
configmaps ConfigMap N cm - - *
endpoints Endpoints N ep - - *
events Event N ev - - *
limitranges LimitRange N limits - - *
namespaces Namespace C ns - finalize,status create,delete,get,list,patch,update,watch
nodes Node C no - proxy,status *
persistentvolumeclaims PersistentVolumeClaim N pvc - status *
persistentvolumes PersistentVolume C pv - status *
pods Pod N po all attach,binding,ephemeralcontainers,eviction,exec,log,portforward,proxy,resize,status *
podtemplates PodTemplate N - - - *
replicationcontrollers ReplicationController N rc all scale,status *
resourcequotas ResourceQuota N quota - status *
secrets Secret N - - - *
serviceaccounts ServiceAccount N sa - token *
services Service N svc all proxy,status *
apiregistration.k8s.io/v1
apiservices APIService C - api-extensions status *
apps/v1
controllerrevisions ControllerRevision N - - - *
daemonsets DaemonSet N ds all status *
deployments Deployment N deploy all scale,status *
replicasets ReplicaSet N rs all scale,status *
statefulsets StatefulSet N sts all scale,status *
events.k8s.io/v1
events Event N ev - - *
authentication.k8s.io/v1
selfsubjectreviews SelfSubjectReview C - - - create
tokenreviews TokenReview C - - - create
authorization.k8s.io/v1
localsubjectaccessreviews LocalSubjectAccessReview N - - - create
selfsubjectaccessreviews SelfSubjectAccessReview C - - - create
selfsubjectrulesreviews SelfSubjectRulesReview C - - - create
subjectaccessreviews SubjectAccessReview C - - - create
autoscaling/v2
horizontalpodautoscalers HorizontalPodAutoscaler N hpa all status *
autoscaling/v1
horizontalpodautoscalers HorizontalPodAutoscaler N hpa all status *
batch/v1
cronjobs CronJob N cj all status *
jobs Job N - all status *
certificates.k8s.io/v1
certificatesigningrequests CertificateSigningRequest C csr - approval,status *
networking.k8s.io/v1
ingressclasses IngressClass C - - - *
ingresses Ingress N ing - status *
ipaddresses IPAddress C ip - - *
networkpolicies NetworkPolicy N netpol - - *
servicecidrs ServiceCIDR C - - status *
policy/v1
poddisruptionbudgets PodDisruptionBudget N pdb - status *
rbac.authorization.k8s.io/v1
clusterrolebindings ClusterRoleBinding C - - - *
clusterroles ClusterRole C - - - *
rolebindings RoleBinding N - - - *
roles Role N - - - *
storage.k8s.io/v1
csidrivers CSIDriver C - - - *
csinodes CSINode C - - - *
csistoragecapacities CSIStorageCapacity N - - - *
storageclasses StorageClass C sc - - *
volumeattachments VolumeAttachment C - - status *
volumeattributesclasses VolumeAttributesClass C vac - - *
admissionregistration.k8s.io/v1
mutatingadmissionpolicies MutatingAdmissionPolicy C - api-extensions - *
mutatingadmissionpolicybindings MutatingAdmissionPolicyBinding C - api-extensions - *
mutatingwebhookconfigurations MutatingWebhookConfiguration C - api-extensions - *
validatingadmissionpolicies ValidatingAdmissionPolicy C - api-extensions status *
validatingadmissionpolicybindings ValidatingAdmissionPolicyBinding C - api-extensions - *
validatingwebhookconfigurations ValidatingWebhookConfiguration C - api-extensions - *
apiextensions.k8s.io/v1
customresourcedefinitions CustomResourceDefinition C crd,crds api-extensions status *
scheduling.k8s.io/v1
priorityclasses PriorityClass C pc - - *
coordination.k8s.io/v1
leases Lease N - - - *
node.k8s.io/v1
runtimeclasses RuntimeClass C - - - *
discovery.k8s.io/v1
endpointslices EndpointSlice N - - - *
resource.k8s.io/v1
deviceclasses DeviceClass C - - - *
resourceclaims ResourceClaim N - - status *
resourceclaimtemplates ResourceClaimTemplate N - - - *
resourceslices ResourceSlice C - - - *
flowcontrol.apiserver.k8s.io/v1
flowschemas FlowSchema C - - status *
prioritylevelconfigurations PriorityLevelConfiguration C - - status *
"""

SINGULARS = {"endpoints": "endpoints"}

COUNTS_GENERATION = frozenset(
    {
        "cronjobs", "customresourcedefinitions", "daemonsets", "deployments", "endpointslices", "flowschemas",
        "ingressclasses", "ingresses", "jobs", "mutatingadmissionpolicies", "mutatingadmissionpolicybindings",
        "mutatingwebhookconfigurations", "networkpolicies", "poddisruptionbudgets", "pods", "priorityclasses",
        "prioritylevelconfigurations", "replicasets", "replicationcontrollers", "resourceslices", "statefulsets",
        "validatingadmissionpolicies", "validatingadmissionpolicybindings", "validatingwebhookconfigurations",
    }
)  # fmt: skip

# A plain DELETE of these answers with the object instead of a Status.
RETURNS_DELETED = frozenset(
    {
        "persistentvolumeclaims", "persistentvolumes", "pods", "podtemplates", "resourcequotas", "serviceaccounts",
        "services",
    }
)  # fmt: skip

WORKLOAD_SCALE = ScalePaths(
    spec_replicas=("spec", "replicas"), status_replicas=("status", "replicas"), selector=None
)


def builtin_resources() -> Iterator[Resource]:
    """Every built-in resource, in the order of discovery."""
    group = version = ""
    for line in TABLE.strip().splitlines():
        words = line.split()
        if len(words) == 1:
            group, _, version = line.rpartition("/")
            continue
        yield _resource(group, version, *words)


def _resource(
    group: str,
    version: str,
    plural: str,
    kind: str,
    scope: str,
    short_names: str,
    categories: str,
    subresources: str,
    verbs: str,
) -> Resource:
    below = tuple(_subresource(plural, kind, name) for name in _split(subresources))
    return Resource(
        group=group,
        version=version,
        plural=plural,
        kind=kind,
        singular=SINGULARS.get(plural, kind.lower()),
        namespaced=scope == "N",
        list_kind=f"{kind}List",
        short_names=_split(short_names),
        categories=_split(categories),
        verbs=STORAGE_VERBS if verbs == "*" else _split(verbs),
        subresources=below,
        has_status=any(one.name == "status" for one in below),
        scale=WORKLOAD_SCALE if any(one.name == "scale" for one in below) else None,
        # The events of events.k8s.io are the core events in another dress.
        storage="events" if plural == "events" else f"{plural}.{group}" if group else plural,
        counts_generation=plural in COUNTS_GENERATION,
        returns_deleted=plural in RETURNS_DELETED and not group,
    )


def _subresource(plural: str, kind: str, name: str) -> Subresource:
    if name == "scale":
        return Subresource(name=name, kind="Scale", verbs=GET_PATCH_UPDATE, group="autoscaling", version="v1")
    own = (kind, GET_PATCH_UPDATE, "", "")
    special, verbs, group, version = SPECIAL.get(f"{plural}/{name}", own)
    return Subresource(name=name, kind=special, verbs=verbs, group=group, version=version)


def _split(words: str) -> tuple[str, ...]:
    return () if words == "-" else tuple(words.split(","))
