"""The pure half of the local API server: functions over dicts that answer as kube-apiserver does, apart from storage and HTTP.

One write goes through these functions in this order (the order decides what `managedFields` records). `gvk` is a
`fields.Gvk`; functions that return `None` change the object in place.

1. The new object: `patching.json_patch(obj, ops)`, `patching.merge_patch(obj, patch)`,
   `patching.strategic_merge_patch(obj, patch, schema)` return a new object and raise `fields.BadRequest` (400) or
   `patching.PatchRefused` (422). For an apply, `managedfields.server_side_apply(...)`.
2. Custom resources: `pruning.unknown_fields(obj, schema)` (for strict field validation), `pruning.prune(obj, schema)`,
   `defaulting.apply_defaults(obj, schema)`. Built-in kinds: `pruning.unknown_fields`, `decoding.decode_builtin(obj, gvk)`
   (wrong types raise `fields.BadRequest`; what Go would not print is dropped), then `defaulting.default_builtin(obj, gvk)`.
   `decoding.decode_custom(obj, gvk, schema)` does the custom resource's steps and reads its metadata as Go would.
3. `managedfields.track_update(old, new, ...)` gives the new `metadata.managedFields` (not after an apply, which sets
   them itself). For a create `old` is `decoding.empty_object(gvk)`, for a custom resource only `apiVersion` and `kind`.
   `managedfields.reset_fields(gvk, subresource, has_status=...)` names the fields that the endpoint ignores.
4. Built-in kinds: `admission.admit(obj, gvk)` on create (tolerations, priority, service account, node taints), then
   `admission.prepare_for_create(obj, gvk)` or `admission.prepare_for_update(new, old, gvk, subresource)` (the fields
   that the endpoint resets, phase, quality of service class; generations are left to the caller).
5. `validation.validate_custom_resource(obj, gvk=..., schema=..., namespaced=..., old=None)` for custom
   resources, `builtin_rules.validate_create(obj, gvk)` and `builtin_rules.validate_update(new, old, gvk, subresource)`
   for the built-in kinds, `structural.crd_errors(crd)` besides for CRDs: lists of `fields.FieldError` (a 422).

6. `managedfields.is_unchanged(old, new)` tells that nothing is to be stored, because only times of managed fields moved.

The functions share unchanged parts between what they take and what they give, above all field sets; treat stored objects
as immutable, and copy before the steps that change an object in place.

Reads use `selectors.parse_label_selector(text).matches(labels)`, `selectors.parse_field_selector(text,
supported).matches(obj)` with `selectors.supported_fields(gvk)`, and `tables.table(objects, gvk=..., now=...)`.
"""
