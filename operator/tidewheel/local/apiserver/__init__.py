"""A Kubernetes API server for one machine: storage, discovery, REST handlers and watches over HTTP."""

from tidewheel.local.apiserver.server import ApiServer

__all__ = ["ApiServer"]
