"""Which scenarios get the boost slots of a round: bandits whose reward recovers while a scenario is left alone."""
