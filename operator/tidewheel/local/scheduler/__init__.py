"""A small scheduler: which node a pod fits, which fits best, and a loop that binds."""
