"""Facts about the mesh that a function runs on: inside `jax.shard_map` it sees one device's part of an array."""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from optax_ext._common.arguments import check_takes, shown

WHOLE = contextvars.ContextVar("WHOLE", default=False)  # whether each device of a shard_map holds whole leaves
Names = str | tuple[str, ...] | None
AxisName = Names | Callable[[str, Any], Names]


def resolve_names(axis_name: AxisName) -> Callable[[str, Any], tuple[str, ...]]:
  """Any form of `axis_name` as a function of a leaf's path and the leaf that returns a tuple of names."""

  def check(names: Any) -> tuple[str, ...]:
    names = (names,) if isinstance(names, str) else () if names is None else names
    if not (isinstance(names, tuple) and all(isinstance(name, str) for name in names)):
      raise TypeError(f"axis_name must give a name of a mesh axis, a tuple of names or None, but was {shown(names)}.")
    return names

  if callable(axis_name):
    check_takes("axis_name", axis_name, "path", "leaf")
    return lambda path, leaf: check(axis_name(path, leaf))
  names = check(axis_name)
  return lambda path, leaf: names


@contextlib.contextmanager
def whole_leaves() -> Iterator[None]:
  """While a `shard_map` is traced whose devices hold whole leaves, each of other runs: no array is a part."""
  token = WHOLE.set(True)
  try:
    yield
  finally:
    WHOLE.reset(token)


def split_axes(names: tuple[str, ...]) -> tuple[str, ...]:
  """Those of the names along which a function sees a part: none outside `shard_map`, where arrays are whole.

  Raises:
    ValueError: the mesh of this `shard_map` has no axis of a name.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if not names or not in_shard_map():
    return ()
  if unknown := sorted(set(names) - set(mesh.axis_names)):
    raise ValueError(f"axis_name gave {unknown[0]!r}, but the mesh of this shard_map has the axes {mesh.axis_names}.")
  return tuple(name for name in names if name in mesh.manual_axes)


def in_shard_map() -> bool:
  """Whether a function sees one device's part of an array."""
  return bool(jax.sharding.get_abstract_mesh().manual_axes) and not WHOLE.get()


def whole_size(part: Any) -> tuple[Any, Any]:
  """The least and the largest number of elements that an array may have of which a function sees a part.

  They are the same where the program knows along which mesh axes arrays vary: outside of `shard_map`, and inside with
  `check_vma=True`.
  """
  mesh, size = jax.sharding.get_abstract_mesh(), math.prod(jnp.shape(part))
  parts = lambda names: math.prod(mesh.shape[name] for name in names)
  if not in_shard_map():
    return size, size
  if any(_varying(jax.lax.axis_index(name)) for name in mesh.manual_axes):
    return (whole := size * parts(_varying(jnp.asarray(part)))), whole
  return size, size * parts(mesh.manual_axes)


def _varying(x: jax.Array) -> frozenset[str]:
  """The mesh axes along which an array varies; none in a `shard_map` that does not track that."""
  kind = jax.typeof(x)
  return kind.vma if getattr(kind, "vma", None) is not None else kind.manual_axis_type.varying  # since jax 0.10


def explicit_sharding(x: jax.Array) -> jax.sharding.NamedSharding | None:
  """The sharding that is part of an array's type, where its mesh has explicit axes."""
  sharding = jax.typeof(x).sharding
  return sharding if jax.sharding.AxisType.Explicit in (sharding.mesh.axis_types or ()) else None
