"""The planned cost of a comparison, in runs and steps."""

import dataclasses
from collections.abc import Sequence

from optax_ext.compare.progress import counted
from optax_ext.compare.protocol import Protocol
from optax_ext.compare.statistics import ENOUGH
from optax_ext.compare.tuning import race_steps

REFINED = 2  # trials beside the best of a grid


@dataclasses.dataclass(frozen=True)
class Design:
  """The runs that are planned. Extended grids add to them, early stopping takes away.

  Attributes:
    protocol: Of each run.
    optimizers: How many.
    rates: In the largest grid.
    trials: Of track B.
    track: "A" or "B".
    quick: Whether rates are halved on the way.
    tuning: Seeds.
    reporting: Seeds.
  """

  protocol: Protocol
  optimizers: int
  rates: int
  trials: int
  track: str
  quick: bool
  tuning: Sequence[int]
  reporting: Sequence[int]

  @property
  def trials_to_the_end(self) -> int:
    """Trials of an optimizer that are planned as whole runs."""
    if self.quick:
      return 0
    return self.trials if self.track == "B" else self.rates + REFINED

  def steps(self, single_rate: float) -> int:
    """Training steps over all runs."""
    whole = self.trials_to_the_end * len(self.tuning) + (2 if single_rate else 1) * len(self.reporting)
    race = race_steps(self.protocol, self.rates) * len(self.tuning) if self.quick else 0
    return self.optimizers * (whole * self.protocol.steps + race)

  def lines(self, single_rate: float) -> list[str]:
    """What is going to be done, and whether that can decide anything."""
    seeds, each = counted(len(self.tuning), "tuning seed"), len(self.reporting)
    tried = f"{self.trials_to_the_end} trials × {seeds}"
    if self.quick:
      tried = (
        f"{self.rates} rates × {seeds}, half of which end at an eighth of the steps, half of "
        "the others at a quarter, half of those at a half,"
      )
    reported = f"{'2 × ' if single_rate else ''}{counted(each, 'reporting seed')}"
    steps, whole = self.steps(single_rate), self.protocol.steps
    runs = f"as many steps as {steps / whole:.0f}" if self.quick else f"{steps // whole}"
    cost = f"{counted(self.optimizers, 'optimizer')} × ({tried} + {reported}): {runs} runs of at most {whole:,} steps"
    few = f"no difference can be decided with {counted(each, 'reporting seed')}: {ENOUGH} are needed"
    return [cost, few] if each < ENOUGH else [cost]
