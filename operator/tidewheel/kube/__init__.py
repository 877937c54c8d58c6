"""The seam to the Kubernetes API: client, errors, election, events."""
