"""A training run's state: applied, sharded, moved to another optimizer."""
