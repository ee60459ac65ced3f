"""Symbolic array sizes: `jax.export` has them in place of numbers, and no constant compares with them."""

from typing import Any

import numpy as np


def is_number(size: Any) -> bool:
  """Whether a size is known while the program is traced; `jax.export.symbolic_shape` makes sizes that are not."""
  return isinstance(size, int | np.integer)


def unknown(shape: tuple[Any, ...]) -> str:
  """Why no kernel can be made for a shape; nothing where all sizes are known."""
  return "" if all(map(is_number, shape)) else f"its shape {shape} is not known while the program is traced"


def at_least(size: Any, bound: int) -> bool:
  """Whether a size reaches a bound. A symbol does: programs with a free size are exported for large arrays."""
  return not is_number(size) or size >= bound
