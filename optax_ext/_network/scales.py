"""Step scales of all leaves, from a rule or a tree of numbers."""

from typing import Any

import jax
import numpy as np

from optax_ext._common.arguments import shown
from optax_ext._common.paths import by_path


def check_rule(rule: Any) -> None:
  """Raises `TypeError` unless `rule` is a rule or a tree of numbers."""
  leaves = jax.tree.leaves(rule)
  numbers = all(
    isinstance(leaf, float | int | np.ndarray | np.number | jax.Array) and not isinstance(leaf, bool) for leaf in leaves
  )
  if not is_rule(rule) and not (leaves and numbers):
    raise TypeError(
      "rule must be a rule, such as ByDepth() or any object with a method scales(structure), or a tree of numbers like "
      f"the parameters, but was {shown(rule)}."
    )


def is_rule(rule: Any) -> bool:
  """Whether it has the method `scales(structure)`."""
  return callable(getattr(rule, "scales", None)) and not isinstance(rule, type)


def scales_by_path(rule: Any, structure: Any) -> dict[str, Any]:
  """The step scale of each leaf, from a rule or from a tree of numbers."""
  return by_path(rule.scales(structure) if is_rule(rule) else rule)
