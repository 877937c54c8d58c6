"""How a pod's processes reach the API: its service account's tokens, and a kubeconfig that points to them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from kubernetes.client import Configuration
from kubernetes.config import kube_config

from tidewheel.api.manifest import Manifest
from tidewheel.kube.client import Api
from tidewheel.local.subresources import tokens_of

_DEFAULT_SECONDS = 3600
#: A token is asked for anew when this much of its life is over, as the kubelet does.
_RENEW_AT = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiAddress:
    """Where the API server is, for a kubeconfig."""

    server: str
    authority: Path | None = None
    verify: bool = True

    @classmethod
    def of(cls, kubeconfig: Path | None) -> ApiAddress:
        """The address that a kubeconfig ($KUBECONFIG or ~/.kube/config without one) names."""
        configuration = Configuration()
        kube_config.load_kube_config(
            str(kubeconfig) if kubeconfig else None, client_configuration=configuration
        )
        authority = Path(configuration.ssl_ca_cert) if configuration.ssl_ca_cert else None
        return cls(
            server=configuration.host.rstrip("/"), authority=authority, verify=bool(configuration.verify_ssl)
        )


@dataclass(slots=True)
class _Token:
    text: str
    renew_at: float


class PodTokens:
    """The service account tokens of one pod, by audience and asked-for life."""

    def __init__(self, api: Api, pod: Manifest) -> None:
        self._api = api
        self._pod = pod
        self._tokens: dict[tuple[str, int], _Token] = {}

    async def refresh(self) -> None:
        """Asks for the tokens that the pod needs and that are missing or old.

        Raises:
            ApiError: the server gives none.
        """
        for audience, seconds in set(_wanted(self._pod)):
            known = self._tokens.get((audience, seconds))
            if known is None or time.monotonic() >= known.renew_at:
                text = await self._request(audience, seconds)
                renew_at = time.monotonic() + _RENEW_AT * seconds
                self._tokens[audience, seconds] = _Token(text, renew_at)

    def get(self, audience: str = "", seconds: int = _DEFAULT_SECONDS) -> str:
        """A token that `refresh` has fetched."""
        return self._tokens[audience, seconds].text

    async def _request(self, audience: str, seconds: int) -> str:
        metadata = self._pod["metadata"]
        account = self._pod["spec"].get("serviceAccountName") or "default"
        bound = {"kind": "Pod", "apiVersion": "v1", "name": metadata["name"], "uid": metadata["uid"]}
        answer = await self._api.create(
            tokens_of(account),
            {
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenRequest",
                "metadata": {"name": account, "namespace": metadata["namespace"]},
                "spec": {
                    "audiences": [audience] if audience else [],
                    "expirationSeconds": seconds,
                    "boundObjectRef": bound,
                },
            },
        )
        return str(answer["status"]["token"])


def reaches_api(pod: Manifest) -> bool:
    """Whether the pod is given credentials: it mounts a token, or does not say that it wants none."""
    return pod["spec"].get("automountServiceAccountToken") is not False or any(_projected_tokens(pod))


def write_kubeconfig(pod: Manifest, *, api: ApiAddress, token: str, path: Path) -> None:
    """Writes the pod's kubeconfig.

    Client libraries find their cluster by a token at a fixed path, which a process without a file system
    of its own cannot have. The environment variable KUBECONFIG, which they honour too, stands in for it.
    """
    secret = path.with_name("token")
    _write_private(secret, token)
    cluster: Manifest = {"server": api.server}
    if api.authority is not None:
        cluster["certificate-authority"] = str(api.authority)
    if not api.verify:
        cluster["insecure-skip-tls-verify"] = True
    context = {"cluster": "cluster", "user": "pod", "namespace": pod["metadata"]["namespace"]}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "pod",
        "clusters": [{"name": "cluster", "cluster": cluster}],
        "users": [{"name": "pod", "user": {"tokenFile": str(secret)}}],
        "contexts": [{"name": "pod", "context": context}],
    }
    _write_private(path, yaml.safe_dump(config, sort_keys=False))


def _write_private(path: Path, text: str) -> None:
    fresh = path.with_name(path.name + ".new")
    fresh.touch(mode=0o600)
    fresh.write_text(text)
    fresh.replace(path)


def _wanted(pod: Manifest) -> Iterator[tuple[str, int]]:
    for wanted in _projected_tokens(pod):
        yield wanted.get("audience", ""), int(wanted.get("expirationSeconds") or _DEFAULT_SECONDS)
    if reaches_api(pod):
        yield "", _DEFAULT_SECONDS


def _projected_tokens(pod: Manifest) -> Iterator[Manifest]:
    for volume in pod["spec"].get("volumes") or []:
        for source in (volume.get("projected") or {}).get("sources") or []:
            if "serviceAccountToken" in source:
                yield source["serviceAccountToken"]
