"""The API models: the only source of the CRDs, defaults, validation, label and reason names."""
