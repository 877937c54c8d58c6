"""How many prefills and decodes a scenario needs, from what was measured and what a device can do."""
