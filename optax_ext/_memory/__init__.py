"""State and weights in few bytes: stochastic rounding, 8-bit codes."""
