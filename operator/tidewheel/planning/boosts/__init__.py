"""Boosts: rounds by the clock, their measured windows and rewards, and which scenarios have more pods because of them."""
