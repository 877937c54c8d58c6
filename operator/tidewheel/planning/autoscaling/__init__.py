"""From the windows that were seen of a PDService to the pods that each of its scenarios should have."""
