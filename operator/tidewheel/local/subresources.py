"""Collections below one object, to which a client posts: a pod's binding, a service account's token."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

from tidewheel.api.manifest import PODS, Resource

SERVICE_ACCOUNTS = Resource("", "v1", "serviceaccounts", "ServiceAccount")


@dataclass(frozen=True, slots=True, order=True)
class _Below(Resource):
    path_below: str = ""

    def path(
        self, namespace: str | None = None, name: str | None = None, subresource: str | None = None
    ) -> str:
        """The collection's path, `name` and `subresource` after it as in any other."""
        tail = "".join(f"/{quote(part, safe='')}" for part in (name, subresource) if part)
        return f"/api/v1/namespaces/{quote(namespace or '', safe='')}/{self.path_below}{tail}"


def binding_of(pod: str) -> Resource:
    """Where a pod is bound to a node."""
    return _Below("", "v1", PODS.plural, "Binding", path_below=f"pods/{quote(pod, safe='')}/binding")


def tokens_of(account: str) -> Resource:
    """Where a service account's tokens are asked for."""
    below = f"serviceaccounts/{quote(account, safe='')}/token"
    return _Below("", "v1", SERVICE_ACCOUNTS.plural, "TokenRequest", path_below=below)
