"""Checks of arguments, made once when an optimizer is built.

Only Python and NumPy scalars are checked. A `jax.Array`, concrete or traced, passes: its value belongs to the program
(`optax.inject_hyperparams` turns every number into one).
"""

import inspect
import math
import numbers
import re
import warnings
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


def shown(value: Any) -> str:
  """A value in an error's sentence, in a few words: arrays are not printed.

  >>> shown({"kernel": jnp.ones((64, 64)), "bias": jnp.ones(64)}), shown(shown), shown(0.9)
  ('a dict of 2 arrays', 'the function shown', '0.9')
  """
  if isinstance(value, type) or inspect.isroutine(value):
    return f"the {'class' if isinstance(value, type) else 'function'} {getattr(value, '__name__', value)}"
  kind = type(value).__name__
  if hasattr(value, "shape") and hasattr(value, "dtype") and value.shape != ():
    return f"an array of shape {value.shape}"
  if arrays := count_arrays(value):
    return f"a {kind} of {arrays} array{'s' * (arrays > 1)}"
  if all(hasattr(value, method) for method in ("init", "update")):
    return "a transformation that is built already"
  text = repr(value)
  return text if len(text) <= 80 and "\n" not in text else f"a {kind}"


def module_of_flax(value: Any) -> str:
  """The package of Flax, "linen" or "nnx", that a model is a module of, or nothing. Flax is not imported."""
  kinds = [base.__module__.split(".") for base in type(value).__mro__ if base.__name__ == "Module"]
  return next((names[1] for names in kinds if names[0] == "flax"), "")


def count_arrays(tree: Any) -> int:
  """How many arrays a tree holds; 0 for an array itself."""
  return 0 if jax.tree_util.all_leaves([tree]) else sum(hasattr(leaf, "shape") for leaf in jax.tree.leaves(tree))


def check_number(name: str, value: Any, interval: str = "[0, inf)") -> None:
  """Raises unless `value` is a jax array or a number inside `interval`, such as `"[0, 1)"`.

  Raises:
    TypeError: `value` is not a number.
    ValueError: it is one, but NaN or outside the interval.
  """
  if isinstance(value, jax.Array):
    return
  if not is_concrete(value):
    raise TypeError(f"{name} must be a number in {interval}, but was {shown(value)}.")
  low, high = (float(bound) for bound in interval[1:-1].split(","))
  above = low < value or (interval[0] == "[" and low == value)
  below = value < high or (interval[-1] == "]" and high == value)
  if math.isnan(value) or not (above and below):
    raise ValueError(f"{name} must be a number in {interval}, but was {value!r}.")


def check_whole(name: str, value: Any, least: int = 1) -> None:
  """Raises `ValueError` unless `value` is a whole number, of Python or NumPy, of at least `least`."""
  if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
    raise ValueError(f"{name} must be a whole number of at least {least}, but was {shown(value)}{static(name, value)}.")


def static(name: str, value: Any) -> str:
  """What to do where a number that a program cannot change has become an array of the program."""
  if not isinstance(value, jax.Array):
    return ""
  return f": in optax.inject_hyperparams, which makes arrays of numbers, list {name!r} in static_args"


A_SCHEDULE = "a schedule (a callable of the step count)"


def check_rate(name: str, value: Any) -> None:
  """Raises unless `value` is a schedule (a callable of the count) or a number that is not negative."""
  if not callable(value):
    try:
      check_number(name, value)
    except TypeError:
      raise TypeError(f"{name} must be a number in [0, inf) or {A_SCHEDULE}, but was {shown(value)}.") from None
  elif module_of_flax(value):
    raise TypeError(
      f"{name} must be a number in [0, inf) or {A_SCHEDULE}, but was the model {type(value).__name__}: an optimizer "
      "gets to know the parameters by tx.init(params)."
    )


def check_order(name: str, learning_rate: Any, b1: Any, b2: Any) -> None:
  """Warns of decay rates in the places before their own, as `exadam(0.9, 0.999, 1e-3)`: each number alone is legal."""
  if all(map(is_concrete, (learning_rate, b1, b2))) and 0.5 <= learning_rate < 1 and b1 >= b2 > 0:
    warnings.warn(
      f"{name} has learning_rate={learning_rate}, b1={b1} and b2={b2}, as if decay rates had been given first: the "
      f"order is {name}(learning_rate, b1, b2, ...).",
      stacklevel=3,
    )


def check_function(name: str, value: Any, such_as: str, *takes: str) -> None:
  """Raises `TypeError` unless `value` is a function of the arguments in `takes`, as what `such_as` returns.

  Functions that return one of these, as `constant_gain`, are told apart by what their signature says that they return.
  """
  if not callable(value):
    raise TypeError(f"{name} must be a function, such as {such_as}, but was {shown(value)}.")
  made = getattr(value, "__annotations__", {}).get("return", jax.Array)
  maker = inspect.isfunction(value) and value.__module__.startswith("optax_ext.") and made is not jax.Array
  if maker and "<locals>" not in value.__qualname__:
    raise TypeError(f"{name} must be a function, such as {such_as}, but was {shown(value)} itself: call it.")
  check_takes(name, value, *takes)


def check_takes(name: str, function: Any, *takes: str) -> None:
  """Raises `TypeError` for a function that cannot be called with as many arguments as `takes` names."""
  try:
    signature = inspect.signature(function).replace(return_annotation=inspect.Signature.empty)
  except ValueError:  # of a builtin
    return
  try:
    signature.bind(*takes)
  except TypeError:
    expected = f"{name} must be a function of ({', '.join(takes)})"
    raise TypeError(f"{expected}, but was {shown(function)}, which takes {signature}.") from None


def check_transformation(name: str, value: Any, otherwise: str = "") -> None:
  """Raises `TypeError` unless `value` has the methods of an optax transformation."""
  if not all(callable(getattr(value, method, None)) for method in ("init", "update")):
    hint = ": call it" if callable(value) else ""
    raise TypeError(
      f"{name} must be an optax transformation, such as optax.adam(1e-3){otherwise}, but was {shown(value)}{hint}."
    )


def check_dtype(name: str, value: Any, kind: Any = jnp.floating) -> None:
  """Raises `TypeError` unless `value` is `None` or stands for a dtype of the given kind."""
  try:
    known = value is None or jnp.issubdtype(jnp.dtype(value), kind)
  except (TypeError, ValueError):
    known = False
  if not known:
    raise TypeError(f"{name} must be a floating-point dtype, such as jnp.bfloat16, or None, but was {shown(value)}.")


def check_expression(name: str, expression: Any) -> None:
  """Raises `TypeError` or `ValueError` unless a value is a regular expression, as a string."""
  if not isinstance(expression, str):
    raise TypeError(f"{name} must be a regular expression, as a string, but was {shown(expression)}.")
  try:
    re.compile(expression)
  except re.error as error:
    raise ValueError(f"{name} must be a regular expression, but {expression!r} is none: {error}.") from error
