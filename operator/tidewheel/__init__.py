"""Tidewheel: a Kubernetes operator and control plane for fleets of mixed accelerators."""

__version__ = "0.1.0"
