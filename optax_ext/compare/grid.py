"""Where to look: grids of learning rates, their extension and refinement, quasi-random trials, and the choice."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

HALF_DECADE = 10**0.5
REFINEMENT = 10**0.25
MOST_EXTENSIONS = 3  # a side


@dataclasses.dataclass(frozen=True)
class Range:
  """Values of one setting. `kind` is "linear"; "log"; or "complement", logarithmic in 1 − x, for decay rates near 1."""

  low: float
  high: float
  kind: str = "log"

  def __post_init__(self):
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
  if points < 1 or not centre > 0 or not ratio > 1:
    raise ValueError(
      f"A grid needs at least 1 point, a centre above 0 and a ratio above 1, but got points={points}, centre={centre}, "
      f"ratio={ratio}."
    )
  return [centre * ratio**k for k in range(-(points // 2), points - points // 2)]


def quasi_random(spaces: Mapping[str, Range], trials: int) -> list[dict[str, float]]:
  """Trials that fill the product of the ranges evenly: the additive recurrence xₙ = ½ + n·φ⁻ʲ mod 1.

  φ is the root of φ^{d+1} = φ + 1 for d ranges, and j = 1…d.

  References:
    Roberts, `The unreasonable effectiveness of quasirandom sequences
    <https://extremelearning.com.au/unreasonable-effectiveness-of-quasirandom-sequences/>`_, 2018
  """
  phi = 2.0
  for _ in range(60):
    phi = (1 + phi) ** (1 / (len(spaces) + 1))
  return [
    {name: space.at((0.5 + n * phi**-j) % 1) for j, (name, space) in enumerate(spaces.items(), 1)}
    for n in range(1, trials + 1)
  ]


def choose(badness: Mapping[float, float]) -> float | None:
  """The learning rate of the least mean badness; of equal ones the smallest. NaN and infinity are not eligible."""
  eligible = {rate: value for rate, value in badness.items() if math.isfinite(value)}
  return min(sorted(eligible), key=lambda rate: eligible[rate]) if eligible else None


def edge(best: float, rates: Sequence[float]) -> int:
  """1 where the best rate is the highest, −1 where it is the lowest, else 0. A grid of one point has no edge."""
  return 0 if len(rates) == 1 else (best == max(rates)) - (best == min(rates))


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
