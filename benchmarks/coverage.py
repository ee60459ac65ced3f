"""How often the 95% bootstrap interval of the comparison holds the mean, by the number of seeds.

From the repository root, with the compare extra: python benchmarks/coverage.py > benchmarks/results/coverage.md
"""

import datetime

import numpy as np
import scipy

from optax_ext.compare.statistics import bootstrap_interval

SAMPLES = 10_000
RESAMPLES = 999


def held(seeds: int) -> float:
  """The part of the intervals of normal samples of mean 0 that hold 0."""
  samples = np.random.default_rng(0).normal(size=(SAMPLES, seeds))
  intervals = [bootstrap_interval(sample, RESAMPLES) for sample in samples]
  return float(np.mean([low <= 0 <= high for low, high in intervals]))


if __name__ == "__main__":
  facts = f"{datetime.date.today()}, scipy {scipy.__version__}; {SAMPLES} normal samples, {RESAMPLES} resamples each"
  print(f"`python benchmarks/coverage.py`, {facts}\n")
  print("| seeds | intervals that hold the mean |\n|---|---|")
  for seeds in (3, 5, 8, 30):
    print(f"| {seeds} | {held(seeds):.1%} |")
