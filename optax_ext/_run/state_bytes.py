"""The memory of an optimizer's state, counted from shapes before any of it is allocated."""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import KeyPath, tree_flatten_with_path

from optax_ext._common.arguments import shown
from optax_ext._common.dtypes import is_numeric
from optax_ext._common.paths import innermost_field, named_leaves, natural_key, path_string
from optax_ext._common.tables import aligned

SHARED = "(all)"  # in place of a leaf's path: counts, random keys, injected hyperparameters


@dataclasses.dataclass(frozen=True)
class ArrayBytes:
  """One array of an optimizer's state, and its size.

  Attributes:
    path: The path of its parameter; `"(all)"` for an array of no parameter.
    kind: The field that holds it: `"mu"`, `"nu"`, `"trace"`, `"scale"`, `"count"`.
    shape: Its shape.
    dtype: Its dtype, by name.
    nbytes: Its size in bytes.
  """

  path: str
  kind: str
  shape: tuple[int, ...]
  dtype: str
  nbytes: int


@dataclasses.dataclass(frozen=True)
class StateBytes:
  """The bytes of an optimizer's state, array by array. Printing it shows a table: a line for each parameter, a column
  for each kind.

  Attributes:
    arrays: The arrays of the state.
    num_params: The number of elements of all parameters.
  """

  arrays: tuple[ArrayBytes, ...]
  num_params: int

  @property
  def total(self) -> int:
    """Bytes of the whole state."""
    return sum(array.nbytes for array in self.arrays)

  @property
  def per_param(self) -> float:
    """Bytes of state for each element of the parameters."""
    return self.total / max(self.num_params, 1)

  def by_path(self) -> dict[str, int]:
    """Bytes for each parameter, in natural order of their paths; `"(all)"` last."""
    ordered = sorted({array.path for array in self.arrays}, key=lambda path: (path == SHARED, natural_key(path)))
    return {path: _sum(array for array in self.arrays if array.path == path) for path in ordered}

  def by_kind(self) -> dict[str, int]:
    """Bytes for each kind of array, in the order of the state."""
    kinds: Counter[str] = Counter()
    for array in self.arrays:
      kinds[array.kind] += array.nbytes
    return dict(kinds)

  def __str__(self) -> str:
    """A table in bytes."""
    cells: Counter[tuple[str, str]] = Counter()
    for array in self.arrays:
      cells[array.path, array.kind] += array.nbytes
    kinds, paths = self.by_kind(), self.by_path()
    rows = [["path", *kinds, "bytes"]]
    rows += [[path, *(_count(cells[path, kind]) for kind in kinds), _count(n)] for path, n in paths.items()]
    rows.append(["total", *map(_count, kinds.values()), _count(self.total)])
    summary = f"{self.per_param:.2f} bytes of state for each of {_count(self.num_params)} parameters"
    return "\n".join([*aligned(rows, str.rjust), summary])


def state_bytes(tx: Any, params: Any) -> StateBytes:
  """Counts the bytes of `tx.init(params)` by parameter and kind, from shapes alone: no memory is allocated.

  Args:
    tx: Any optax transformation, or anything with its method `init`.
    params: The parameters; `jax.ShapeDtypeStruct`s do. Only shapes and dtypes are read.

  Returns:
    A `StateBytes`. An array belongs to the parameter whose path ends the array's own path through the state, like the
    moments of every optimizer. All other arrays count as `"(all)"`. On a mesh these are the bytes of all devices
    together.

  Raises:
    TypeError: `tx` has no `init`, or a leaf of `params` is no array.

  Example:
    >>> import optax
    >>> from optax_ext import quantize_state
    >>> of_shape = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    >>> params = {"kernel": of_shape(256, 128), "bias": of_shape(128)}
    >>> print(state_bytes(quantize_state(optax.adam(1e-3)), params))
    path    count      mu      nu  scale   bytes
    bias        0     512     512      8   1,032
    kernel      0  32,768  32,768  2,048  67,584
    (all)       4       0       0      0       4
    total       4  33,280  33,280  2,056  68,620
    2.09 bytes of state for each of 32,896 parameters
  """
  if not callable(getattr(tx, "init", None)):
    raise TypeError(f"tx must be an optax transformation, such as optax.adam(1e-3), but was {shown(tx)}.")
  for path, leaf in named_leaves(params):
    if not is_numeric(leaf):
      raise TypeError(f"params must be a tree of arrays, but its leaf {path!r} is {shown(leaf)}.")
  abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), params)
  leaves = tree_flatten_with_path(abstract)[0]
  known = {path: leaf.ndim for path, leaf in leaves}
  arrays = [_array(path, leaf, known) for path, leaf in tree_flatten_with_path(jax.eval_shape(tx.init, abstract))[0]]
  return StateBytes(tuple(arrays), sum(math.prod(leaf.shape) for _, leaf in leaves))


def _array(path: KeyPath, leaf: Any, params: dict[KeyPath, int]) -> ArrayBytes:
  """A leaf of the state. `params` has the rank of each parameter; a single array as parameters has the path ()."""
  ends_in_param = lambda end: end in params and (end != () or params[end] == leaf.ndim)
  start = next((i for i in range(len(path) + 1) if ends_in_param(path[i:])), None)
  before = path if start is None else path[:start]
  kind = innermost_field(before) or "state"
  of = SHARED if start is None else path_string(path[start:])
  return ArrayBytes(of, kind, leaf.shape, str(leaf.dtype), math.prod(leaf.shape) * leaf.dtype.itemsize)


def _sum(arrays: Iterable[ArrayBytes]) -> int:
  return sum(array.nbytes for array in arrays)


def _count(number: int) -> str:
  return f"{number:,}"
