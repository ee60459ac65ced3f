"""Grids of learning rates: extension, refinement, quasi-random trials, and the choice of the best."""

import dataclasses
import itertools
import math
import numbers
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.stats

from optax_ext._common.arguments import check_number

HALF_DECADE = 10**0.5
MOST_EXTENSIONS = 3  # a side


@dataclasses.dataclass(frozen=True)
class Range:
  """Values of one setting. `kind` is "linear"; "log"; or "complement", logarithmic in 1 − x, for decay rates near 1."""

  low: float
  high: float
  kind: str = "log"

  def __post_init__(self) -> None:
    for name in ("low", "high"):
      check_number(name, getattr(self, name), "(-inf, inf)")
    fits = {"linear": True, "log": self.low > 0, "complement": self.high < 1}
    if self.kind not in fits:
      raise ValueError(f"kind must be one of {', '.join(fits)}, but was {self.kind!r}.")
    if not (self.low <= self.high and fits[self.kind]):
      raise ValueError(f"A {self.kind} range from {self.low} to {self.high} is empty or leaves the logarithm's domain.")

  def at(self, part: float) -> float:
    """The value at `part` in [0, 1] of the way from low to high."""
    if self.kind == "linear":
      return self.low + part * (self.high - self.low)
    if self.kind == "log":
      return self.low * (self.high / self.low) ** part
    return 1 - (1 - self.low) * ((1 - self.high) / (1 - self.low)) ** part


def grid(centre: float, points: int, ratio: float = HALF_DECADE) -> list[float]:
  """`points` learning rates in steps of `ratio` around `centre`, ascending; the centre is always among them."""
  if not isinstance(points, numbers.Integral) or points < 1 or not 0 < centre < math.inf or not 1 < ratio < math.inf:
    raise ValueError(
      "A grid needs a whole number of at least 1 point, a finite centre above 0 and a finite ratio above 1, but got "
      f"points={points}, centre={centre}, ratio={ratio}."
    )
  return [float(centre * ratio**k) for k in range(-(points // 2), points - points // 2)]


def quasi_random(spaces: Mapping[str, Range], trials: int) -> list[dict[str, float]]:
  """Trials that fill the product of the ranges evenly: a scrambled Halton sequence. More trials go on with the same."""
  rows = scipy.stats.qmc.Halton(len(spaces), rng=0).random(trials).tolist()
  parts = [dict(zip(spaces, row, strict=True)) for row in rows]
  return [{name: space.at(part[name]) for name, space in spaces.items()} for part in parts]


def edges(badness: Mapping[float, float]) -> list[int]:
  """1 where the highest rate is as good as any, −1 where the lowest is. A grid of one point has no edge."""
  best, rates = min(badness.values()), sorted(badness)
  return [side for side in (1, -1) if badness[rates[-1 if side > 0 else 0]] == best and len(rates) > 1]


def gap(rates: Sequence[float], rate: float, side: int, ratio: float) -> float:
  """The ratio between a rate and its neighbour above (`side` 1) or below, else the other one.

  Without neighbours, and where it is the same but for rounding, that is `ratio`. `rates` are ascending.
  """
  place = rates.index(rate)
  lower = [i for i in (place, place - 1) if 0 <= i < len(rates) - 1][::side]
  found = rates[lower[0] + 1] / rates[lower[0]] if lower else ratio
  return ratio if math.isclose(found, ratio) else found


def width(badness: Mapping[float, float], best: float, margin: float) -> tuple[float, bool]:
  """Decades of learning rate around the best where the metric is within `margin` (relative) of the best.

  And whether it still is at an end of the grid, so that there may be more of them.

  Between two grid points the metric is interpolated linearly in the logarithm of the rate. Where the range reaches the
  end of the grid, or a rate that is not eligible, it ends there.
  """
  rates = sorted(badness)
  limit = badness[best] + margin * abs(badness[best])
  place, decades, open_ended = rates.index(best), 0.0, False
  for side in (rates[place:], rates[place::-1]):
    for inner, outer in itertools.pairwise(side):
      step = abs(math.log10(outer / inner))
      if badness[outer] <= limit:
        decades += step
        continue
      if math.isfinite(badness[outer]):
        decades += step * (limit - badness[inner]) / (badness[outer] - badness[inner])
      break
    else:
      open_ended = True
  return float(np.round(decades, 12)), open_ended
