"""From a gradient to a direction: gains, debias rules, ratios, and the transformation that owns the moments."""
