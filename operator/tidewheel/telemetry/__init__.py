"""Traces, metrics and logs, shared by the control plane and the workers."""
