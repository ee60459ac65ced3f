"""Checks of arguments, made once when an optimizer is built.

Only Python and NumPy scalars are checked. A `jax.Array`, concrete or traced, passes: its value belongs to the program
(`optax.inject_hyperparams` turns every number into one).
"""

import math
import numbers
import re
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np

Scalar = float | jax.Array


def is_concrete(value: Any) -> TypeGuard[float]:
  """Whether `value` is a Python or NumPy number whose value may be read while building."""
  if isinstance(value, np.ndarray | np.generic):  # bfloat16 and its like are no np.floating
    real = jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)
    return value.ndim == 0 and real
  return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_number(name: str, value: Any, interval: str = "[0, inf)") -> None:
  """Raises unless `value` is a jax array or a number inside `interval`, such as `"[0, 1)"`.

  Raises:
    TypeError: `value` is not a number.
    ValueError: it is one, but NaN or outside the interval.
  """
  if isinstance(value, jax.Array):
    return
  if not is_concrete(value):
    raise TypeError(f"{name} must be a number in {interval}, but was {value!r} of type {type(value).__name__}.")
  low, high = (float(bound) for bound in interval[1:-1].split(","))
  above = low < value or (interval[0] == "[" and low == value)
  below = value < high or (interval[-1] == "]" and high == value)
  if math.isnan(value) or not (above and below):
    raise ValueError(f"{name} must be a number in {interval}, but was {value!r}.")


def check_rate(name: str, value: Any) -> None:
  """Raises unless `value` is a schedule (a callable of the count) or a number that is not negative."""
  if not callable(value):
    try:
      check_number(name, value)
    except TypeError:
      raise TypeError(
        f"{name} must be a number in [0, inf) or a schedule (a callable of the step count), but was {value!r} of "
        f"type {type(value).__name__}."
      ) from None


def check_function(name: str, value: Any, such_as: str) -> None:
  """Raises `TypeError` unless `value` can be called, as what `such_as` returns can."""
  if not callable(value):
    raise TypeError(f"{name} must be a function, such as {such_as}, but was {value!r}.")


def check_dtype(name: str, value: Any, kind: Any = jnp.floating) -> None:
  """Raises `TypeError` unless `value` is `None` or stands for a dtype of the given kind."""
  try:
    known = value is None or jnp.issubdtype(jnp.dtype(value), kind)
  except TypeError:
    known = False
  if not known:
    raise TypeError(f"{name} must be a floating-point dtype, such as jnp.bfloat16, or None, but was {value!r}.")


def check_expression(name: str, expression: Any) -> None:
  """Raises `TypeError` or `ValueError` unless a value is a regular expression, as a string."""
  if not isinstance(expression, str):
    raise TypeError(f"{name} must be a regular expression, as a string, but was {expression!r}.")
  try:
    re.compile(expression)
  except re.error as error:
    raise ValueError(f"{name} must be a regular expression, but {expression!r} is none: {error}.") from error
