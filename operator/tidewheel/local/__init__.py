"""A cluster on one machine for development, tests and demonstrations."""
