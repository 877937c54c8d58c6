"""Where the API server is and how to be let in: from a kubeconfig, or from the pod's service account."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kubernetes.client import Configuration
from kubernetes.config import ConfigException, incluster_config, kube_config


class NoConnection(Exception):
    """There is no usable cluster configuration; the message says where it was looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """An API server and a caller's identity."""

    server: str
    namespace: str = "default"
    ssl_context: ssl.SSLContext | None = None
    #: The Authorization header at this moment; tokens are rotated, so it is asked before each request.
    authorization: Callable[[], str | None] = lambda: None


def connect(kubeconfig: Path | None = None, *, context: str | None = None) -> Connection:
    """The connection of `kubeconfig` or $KUBECONFIG, else of the pod this runs in, else of ~/.kube/config.

    Raises:
        NoConnection: none of them is there, or it cannot be read.
    """
    configuration = Configuration()
    namespace = "default"
    try:
        if kubeconfig is None and "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ:
            incluster_config.load_incluster_config(client_configuration=configuration)
            namespace = _pod_namespace()
        else:
            file = str(kubeconfig) if kubeconfig else None
            kube_config.load_kube_config(file, context=context, client_configuration=configuration)
            contexts, active = kube_config.list_kube_config_contexts(file)
            chosen = next((c for c in contexts if c["name"] == context), active)
            namespace = chosen.get("context", {}).get("namespace") or "default"
    except (ConfigException, OSError) as error:
        raise NoConnection(
            f"no Kubernetes cluster to talk to ({error}); set KUBECONFIG, pass --kubeconfig, or run in a pod"
        ) from error
    return Connection(
        server=configuration.host.rstrip("/"),
        namespace=namespace,
        ssl_context=_ssl_context(configuration),
        authorization=lambda: configuration.get_api_key_with_prefix("BearerToken", alias="authorization"),
    )


def _pod_namespace() -> str:
    file = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
    return file.read_text().strip() if file.exists() else "default"


def _ssl_context(configuration: Configuration) -> ssl.SSLContext | None:
    if not configuration.host.startswith("https"):
        return None
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, configuration.key_file)
    return context
