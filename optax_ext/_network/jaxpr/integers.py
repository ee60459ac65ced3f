"""Arithmetic on the small integers of a program (loop counters, positions), which decide what is indexed.

Functions of an equation's parameters, the number of enclosing loops, and the operands; these have one axis for each
loop in front of their own.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


def _broadcast_integers(p: Any, loops: int, array: np.ndarray) -> np.ndarray:
  shape = [1] * len(p["shape"])
  for size, dim in zip(array.shape[loops:], p["broadcast_dimensions"], strict=True):
    shape[dim] = size
  return np.broadcast_to(array.reshape(*array.shape[:loops], *shape), (*array.shape[:loops], *p["shape"]))


def _concatenate_integers(p: Any, loops: int, *arrays: np.ndarray) -> np.ndarray:
  front = np.broadcast_shapes(*(array.shape[:loops] for array in arrays))
  return np.concatenate([np.broadcast_to(a, (*front, *a.shape[loops:])) for a in arrays], axis=loops + p["dimension"])


def _elementwise_integers(compute: Callable[..., Any]) -> Callable[..., Any]:
  return lambda p, loops, *arrays: compute(*arrays)


INTEGERS: Mapping[str, Callable[..., Any]] = {
    name: _elementwise_integers(compute)
    for name, compute in {
        "add": np.add, "sub": np.subtract, "mul": np.multiply, "neg": np.negative, "max": np.maximum, "min": np.minimum,
        "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
        "eq": np.equal, "ne": np.not_equal,
        "rem": lambda a, b: np.fmod(a, np.where(b == 0, 1, b)), "sign": np.sign,
        "div": lambda a, b: (a // np.where(b == 0, 1, b)) + ((a % np.where(b == 0, 1, b) != 0) & ((a < 0) != (b < 0))),
        "and": lambda a, b: a & b, "or": lambda a, b: a | b, "not": lambda a: ~a, "copy": lambda a: a,
        "clamp": lambda low, x, high: np.clip(x, low, high), "stop_gradient": lambda a: a, "device_put": lambda a: a,
        "select_n": lambda which, *cases: np.choose(which.astype(int), cases),
    }.items()
} | {
    "convert_element_type": lambda p, loops, a: a.astype(p["new_dtype"]),
    "iota": lambda p, loops: np.arange(p["shape"][p["dimension"]]).reshape(
        (1,) * loops + tuple(n if d == p["dimension"] else 1 for d, n in enumerate(p["shape"]))
    ) + np.zeros(p["shape"], int),
    "broadcast_in_dim": _broadcast_integers,
    "concatenate": _concatenate_integers,
    "reshape": lambda p, loops, a: a.reshape(*a.shape[:loops], *p["new_sizes"]),
    "squeeze": lambda p, loops, a: np.squeeze(a, tuple(loops + d for d in p["dimensions"])),
    "rev": lambda p, loops, a: np.flip(a, tuple(loops + d for d in p["dimensions"])),
    "slice": lambda p, loops, a: a[(slice(None),) * loops + tuple(
        map(slice, p["start_indices"], p["limit_indices"], p["strides"] or (1,) * (a.ndim - loops))
    )],
}  # fmt: skip
