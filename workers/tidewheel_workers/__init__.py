"""What runs inside the pods: torch engines, serving processes and their wire formats."""
