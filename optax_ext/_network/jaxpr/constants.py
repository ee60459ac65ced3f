"""Arithmetic on the small integers of a program (loop counters, positions), which decide what is indexed.

NumPy computes, not the primitives themselves: jax compiles each primitive for each shape, which takes 20 ms. Tracing a
whole model hardly takes as long.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from optax_ext._network.jaxpr.domain import Constant

MANY = 4096  # numbers that are read, and iterations that a counter is followed for
UNKNOWN, UNIFORM = Constant(), Constant(uniform=True)


def constant(value: Any) -> Constant:
  """Of a constant that stands in the program; small integers are read."""
  if not hasattr(value, "dtype") or not hasattr(value, "ndim"):
    value = np.asarray(value)
  uniform = value.ndim == 0
  if value.size > MANY or not _is_integer(value.dtype):
    return UNIFORM if uniform else UNKNOWN
  return Constant(np.asarray(value), uniform)


def compute(eqn: Any, ins: list[Constant]) -> list[Constant]:
  """The results of an equation that depends on nothing."""
  out: Any = eqn.outvars[0].aval if eqn.outvars else None
  shape = getattr(out, "shape", ())
  uniform = not shape or (bool(ins) and all(value.uniform for value in ins) and len(eqn.outvars) == 1)
  if varies := [value.varies for value in ins if value.varies]:
    return [Constant(uniform=uniform, varies=max(varies))] * len(eqn.outvars)
  numbers = [value.number for value in ins]
  rule = _RULES.get(eqn.primitive.name)
  if rule is None or any(number is None for number in numbers) or math.prod(shape) > MANY or not _is_integer(out.dtype):
    return [UNIFORM if uniform else UNKNOWN] * len(eqn.outvars)
  results = rule(eqn.params, *numbers)
  return [Constant(np.asarray(x), uniform) for x in (results if len(eqn.outvars) > 1 else [results])]


def _is_integer(dtype: Any) -> bool:
  return jnp.issubdtype(dtype, np.integer) or jnp.issubdtype(dtype, np.bool_)


def _broadcast(p: Any, array: np.ndarray) -> np.ndarray:
  shape = [1] * len(p["shape"])
  for size, dim in zip(array.shape, p["broadcast_dimensions"], strict=True):
    shape[dim] = size
  return np.broadcast_to(array.reshape(shape), p["shape"])


def _iota(p: Any) -> np.ndarray:
  along = [n if d == p["dimension"] else 1 for d, n in enumerate(p["shape"])]
  return np.broadcast_to(np.arange(p["shape"][p["dimension"]]).reshape(along), p["shape"])


def _slice(p: Any, a: np.ndarray) -> np.ndarray:
  return a[tuple(map(slice, p["start_indices"], p["limit_indices"], p["strides"] or (1,) * a.ndim))]


def _dynamic_slice(p: Any, a: np.ndarray, *starts: np.ndarray) -> np.ndarray:
  at = [int(np.clip(s, 0, n - size)) for s, n, size in zip(starts, a.shape, p["slice_sizes"], strict=True)]
  return a[tuple(slice(start, start + size) for start, size in zip(at, p["slice_sizes"], strict=True))]


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  b = np.where(b == 0, 1, b)
  return (a // b) + ((a % b != 0) & ((a < 0) != (b < 0)))


_ELEMENTWISE: Mapping[str, Callable[..., Any]] = {
  "add": np.add, "sub": np.subtract, "mul": np.multiply, "neg": np.negative, "max": np.maximum, "min": np.minimum,
  "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
  "eq": np.equal, "ne": np.not_equal, "div": _divide,
  "rem": lambda a, b: np.fmod(a, np.where(b == 0, 1, b)), "sign": np.sign,
  "and": lambda a, b: a & b, "or": lambda a, b: a | b, "not": lambda a: ~a,
  "copy": lambda a: a, "stop_gradient": lambda a: a, "device_put": lambda a: a,
  "clamp": lambda low, x, high: np.clip(x, low, high),
  "select_n": lambda which, *cases: np.choose(which.astype(int), cases),
}  # fmt: skip
_RULES: Mapping[str, Callable[..., Any]] = {
  name: lambda p, *arrays, compute=compute: compute(*arrays) for name, compute in _ELEMENTWISE.items()
} | {
  "convert_element_type": lambda p, a: a.astype(p["new_dtype"]),
  "iota": _iota,
  "broadcast_in_dim": _broadcast,
  "concatenate": lambda p, *arrays: np.concatenate(arrays, axis=p["dimension"]),
  "stack": lambda p, *arrays: np.stack(arrays, axis=p["axis"]),
  "reshape": lambda p, a: a.reshape(p["new_sizes"]),
  "transpose": lambda p, a: a.transpose(p["permutation"]),
  "squeeze": lambda p, a: np.squeeze(a, p["dimensions"]),
  "rev": lambda p, a: np.flip(a, p["dimensions"]),
  "split": lambda p, a: np.split(a, np.cumsum(p["sizes"])[:-1], p["axis"]),
  "unstack": lambda p, a: list(np.moveaxis(a, p["axis"], 0)),
  "slice": _slice,
  "dynamic_slice": _dynamic_slice,
}
