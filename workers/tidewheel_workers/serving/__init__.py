"""The serving processes: gateway, prefill server, decode server, KV transfer."""
