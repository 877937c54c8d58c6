"""The pure half of the local API server: functions over dicts that answer as kube-apiserver does, apart from storage and HTTP.

One write goes through these functions in this order (the order decides what `managedFields` records):

1. `patching` turns the live object and a patch into the new object (or, for apply, `managedfields.server_side_apply`).
2. Custom resources: `pruning.prune`, then `defaulting.apply_defaults`. Built-in kinds: `decoding.decode_builtin`
   (type errors are a 400; what Go would not print is dropped), then `defaulting.default_builtin`.
3. `managedfields.track_update` (not after apply). For a create of a built-in kind `old` is `decoding.empty_object(gvk)`,
   for a custom resource `{"apiVersion": ..., "kind": ...}`.
4. Built-in kinds: `admission.admit` (tolerations, priority, service account, node taints), then `admission.prepare_for_create`
   or `admission.prepare_for_update` (status and other fields that the endpoint resets, phase, quality of service class).
5. `validation.validate_metadata`, `validation.validate` for custom resources, `builtin_rules.validate_create` and
   `builtin_rules.validate_update` for the built-in kinds: lists of `fields.FieldError` (a 422).
"""
