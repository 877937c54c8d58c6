"""What `benchmarks/forwarding.py` compares: services of real processes, the local queues, and the load."""
