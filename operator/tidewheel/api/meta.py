"""The names Tidewheel puts on objects: labels, annotations, field managers, ports and mount paths."""

from __future__ import annotations

GROUP = "tidewheel.dev"

#: Labels every child of a custom resource carries.
LABEL_SERVICE = f"{GROUP}/service"
LABEL_GROUP = f"{GROUP}/group"
#: The scenario that a group serves; pods of groups for everybody have none.
LABEL_SCENARIO = f"{GROUP}/scenario"
LABEL_ROLE = f"{GROUP}/role"
LABEL_REVISION = f"{GROUP}/revision"
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
LABEL_NAME = "app.kubernetes.io/name"
LABEL_INSTANCE = "app.kubernetes.io/instance"
LABEL_COMPONENT = "app.kubernetes.io/component"
LABEL_PART_OF = "app.kubernetes.io/part-of"
MANAGED_BY = "tidewheel"

#: W3C trace context of whoever applied the object; a reconcile links to it.
ANNOTATION_TRACEPARENT = f"{GROUP}/traceparent"
#: Digest of the last published map. Changing it on a pod makes the kubelet refresh its volumes at once.
ANNOTATION_MAP_DIGEST = f"{GROUP}/map-digest"
#: When a published map got its present content; RFC 3339 with milliseconds.
ANNOTATION_PUBLISHED = f"{GROUP}/published-at"
#: Role flips: whether the pod is made for both compute roles, which one it is to take, when that began, and its place in
#: the role that it has, where its name tells another one.
ANNOTATION_MAY_FLIP = f"{GROUP}/may-flip"
ANNOTATION_FLIPS_TO = f"{GROUP}/flips-to"
ANNOTATION_FLIP_BEGAN = f"{GROUP}/flip-began"
ANNOTATION_PLACE = f"{GROUP}/place"
#: Digest of what the operator last applied to a child; an equal digest needs no write.
ANNOTATION_APPLIED = f"{GROUP}/applied"

MANAGER_PDSERVICE = f"{GROUP}/pdservice"
MANAGER_PDSERVICE_STATUS = f"{GROUP}/pdservice-status"
MANAGER_SCALER = f"{GROUP}/pdservicescaler"
MANAGER_SCALER_STATUS = f"{GROUP}/pdservicescaler-status"

HTTP_PORT = 8000
KV_PORT = 7001

RANKS_KEY = "ranktable.json"
RANKS_PATH = f"/etc/tidewheel/ranks/{RANKS_KEY}"
ROUTES_KEY = "routes.json"
ROUTES_PATH = f"/etc/tidewheel/routes/{ROUTES_KEY}"
MODEL_PATH = "/models"
#: The condition of a node whose accelerators as a whole are not to be trusted while it is False.
NODE_DEVICES_HEALTHY = f"{GROUP}/DevicesHealthy"
#: Its reason when the fault is expected to pass by itself; any other asks for a substitute.
NODE_RECOVERING = "Recovering"
#: Where a node's health file is mounted; see tidewheel.api.health.
DEVICE_HEALTH_DIRECTORY = "/etc/tidewheel/device-health"
#: The container the operator builds; a template's container of this name is merged into it.
WORKER_CONTAINER = "worker"
