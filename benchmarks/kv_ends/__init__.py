"""The two processes of the KV transfer benchmark: a prefill's end and a decode's, without HTTP, led over pipes."""
