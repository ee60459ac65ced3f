"""A fair comparison of optimizers: each tuned alike, then judged on fresh paired seeds."""

from optax_ext.compare.experiment import Comparison, compare
from optax_ext.compare.grid import Range
from optax_ext.compare.optimizers import Optimizer
from optax_ext.compare.problem import Problem, batches, keys
from optax_ext.compare.protocol import EarlyStopping, Protocol, ReduceOnPlateau, warmup_cosine
from optax_ext.compare.result import Arm
from optax_ext.compare.statistics import Difference, paired

__all__ = [
  "Arm",
  "Comparison",
  "Difference",
  "EarlyStopping",
  "Optimizer",
  "Problem",
  "Protocol",
  "Range",
  "ReduceOnPlateau",
  "batches",
  "compare",
  "keys",
  "paired",
  "warmup_cosine",
]


def __dir__() -> list[str]:
  """The public names, without the modules that they come from."""
  return __all__
