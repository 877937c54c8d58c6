"""The controllers a cluster is expected to bring along, just big enough for development: Deployments, Jobs, endpoints."""
