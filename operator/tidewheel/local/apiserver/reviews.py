"""Questions about who may do what: everyone may do everything on a cluster that only this machine can reach."""

from __future__ import annotations

from typing import Any

Manifest = dict[str, Any]

USER: Manifest = {"username": "kubernetes-admin", "groups": ["system:masters", "system:authenticated"]}


def answer_review(kind: str, review: Manifest) -> Manifest | None:
    """The review with its status filled in, or None when it is no review."""
    match kind:
        case "SelfSubjectAccessReview" | "SubjectAccessReview" | "LocalSubjectAccessReview":
            status: Manifest = {"allowed": True, "reason": "the local API server allows everything"}
        case "SelfSubjectRulesReview":
            status = {
                "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}],
                "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
                "incomplete": False,
            }
        case "SelfSubjectReview":
            status = {"userInfo": USER}
        case "TokenReview":
            status = {
                "authenticated": True,
                "user": USER,
                "audiences": (review.get("spec") or {}).get("audiences") or [],
            }
        case _:
            return None
    metadata = {"creationTimestamp": None, **(review.get("metadata") or {})}
    return {**review, "metadata": metadata, "status": status}
