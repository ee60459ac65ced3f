"""ND-Adam: weight vectors of unit length, moved along the sphere."""
