"""The custom resource that the recordings of a real kube-apiserver v1.36.2 were made with."""

from __future__ import annotations

from copy import deepcopy

import pytest

from tidewheel.local.apimachinery.fields import Gvk
from tidewheel.local.apimachinery.schema import builtin_schema, crd_schema

_CONDITION = {
    "properties": {name: {"type": "string"} for name in ("message", "reason", "status", "type")},
    "required": ["type", "status"],
    "type": "object",
}
_GADGET = {
    "properties": {
        "spec": {
            "properties": {
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                "frozen": {
                    "maxLength": 16,
                    "type": "string",
                    "x-kubernetes-validations": [
                        {"message": "frozen is immutable", "rule": "self == oldSelf"}
                    ],
                },
                "label": {"maxLength": 8, "pattern": "^[a-z]*$", "type": "string"},
                "mode": {"default": "Safe", "enum": ["Fast", "Safe"], "type": "string"},
                "ports": {
                    "items": {
                        "properties": {
                            "name": {"maxLength": 16, "type": "string"},
                            "port": {"default": 80, "type": "integer"},
                        },
                        "required": ["name"],
                        "type": "object",
                    },
                    "maxItems": 8,
                    "type": "array",
                    "x-kubernetes-list-map-keys": ["name"],
                    "x-kubernetes-list-type": "map",
                },
                "size": {"format": "int32", "maximum": 100, "minimum": 0, "type": "integer"},
                "target": {"x-kubernetes-int-or-string": True},
                "tuning": {
                    "default": {},
                    "properties": {
                        "depth": {"default": 3, "type": "integer"},
                        "note": {"nullable": True, "type": "string"},
                    },
                    "type": "object",
                },
            },
            "required": ["size"],
            "type": "object",
            "x-kubernetes-validations": [
                {"message": "Fast needs a size above zero", "rule": "self.mode != 'Fast' || self.size > 0"}
            ],
        },
        "status": {
            "properties": {
                "conditions": {
                    "items": _CONDITION,
                    "type": "array",
                    "x-kubernetes-list-map-keys": ["type"],
                    "x-kubernetes-list-type": "map",
                },
                "replicas": {"type": "integer"},
            },
            "type": "object",
        },
    },
    "required": ["spec"],
    "type": "object",
}


@pytest.fixture
def gadget_crd():
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "gadgets.conformance.example.com"},
        "spec": {
            "group": "conformance.example.com",
            "names": {
                "categories": ["toys"],
                "kind": "Gadget",
                "listKind": "GadgetList",
                "plural": "gadgets",
                "shortNames": ["gd"],
                "singular": "gadget",
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "additionalPrinterColumns": [
                        {"jsonPath": ".spec.size", "name": "Size", "type": "integer"},
                        {
                            "jsonPath": ".status.conditions[?(@.type=='Ready')].status",
                            "name": "Ready",
                            "type": "string",
                        },
                        {"jsonPath": ".metadata.creationTimestamp", "name": "Age", "type": "date"},
                    ],
                    "name": "v1alpha1",
                    "schema": {"openAPIV3Schema": deepcopy(_GADGET)},
                    "served": True,
                    "storage": True,
                    "subresources": {
                        "scale": {
                            "specReplicasPath": ".spec.size",
                            "statusReplicasPath": ".status.replicas",
                        },
                        "status": {},
                    },
                }
            ],
        },
    }


@pytest.fixture(scope="session")
def gadget_schema():
    return crd_schema(deepcopy(_GADGET))


@pytest.fixture(scope="session")
def gadget_gvk():
    return Gvk("conformance.example.com", "v1alpha1", "Gadget")


@pytest.fixture(scope="session")
def pod_schema():
    return builtin_schema("", "v1", "Pod")


@pytest.fixture
def make_gadget():
    def make(name="a", metadata=None, status=None, **spec):
        gadget = {
            "apiVersion": "conformance.example.com/v1alpha1",
            "kind": "Gadget",
            "metadata": {"name": name, "namespace": "conformance", **(metadata or {})},
            "spec": {"size": 1, **spec},
        }
        if status is not None:
            gadget["status"] = status
        return gadget

    return make


@pytest.fixture
def make_pod():
    def make(name="one", labels=None, container=None, **spec):
        metadata = {"name": name, "namespace": "conformance", **({"labels": labels} if labels else {})}
        main = {"image": "img:1", "name": "main", **(container or {})}
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": metadata,
            "spec": {"containers": [main], **spec},
        }

    return make
