"""The axes that weight vectors run along, in any of the forms that a user may give them."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_ext._common.arguments import check_takes, shown
from optax_ext._common.paths import by_path, mask_paths, natural_key
from optax_ext._network.facts import check_shape
from optax_ext._network.structure import Structure

AxesOfLeaf = tuple[int, ...] | None
Axes = Any
"""The axes that vectors run along: `axes(path, leaf)` -> tuple of ints or `None`, a tree of such values, one tuple for
all leaves of two or more axes (biases and norms have one; a tree that is one array may have, too), or a `Structure`."""


def vector_mask(axes: Axes, *, vectors: bool = True) -> Callable[[Any], Any]:
  """A mask for `optax.masked` that shows the leaves with vectors: ND-Adam gives these another learning rate.

  Args:
    axes: The axes of the vectors: a function `axes(path, leaf)` that returns a tuple of ints or `None`, a tree of such
      values, one tuple for all leaves of two or more axes, or a `Structure`.
    vectors: Whether to show the leaves with vectors, or all others.

  Returns:
    A function from a tree to a tree of booleans, `False` for `None`.

  Raises:
    TypeError, ValueError: as `project_out_params`.

  Example:
    >>> import optax
    >>> faster = optax.masked(optax.scale(50.0), vector_mask({"kernel": (0,), "bias": None}))
    >>> vector_mask({"kernel": (0,), "bias": None})({"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)})
    {'bias': False, 'kernel': True}
  """
  axes_of = resolve_axes(axes)

  def shown(path: str, leaf: Any) -> bool:
    return (axes_of(path, leaf) is not None) == vectors

  return functools.partial(mask_paths, shown)


def resolve_axes(axes: Axes) -> Callable[[str, Any], AxesOfLeaf]:
  """Any form of axes as a function of a leaf's path and the leaf, which checks what it returns."""
  given: Callable[[str, Any], Any]
  if isinstance(axes, Structure):
    given = _of_structure(axes)
  elif axes is None or _is_tuple_of_ints(axes):
    given = lambda path, leaf: axes if jnp.ndim(leaf) > 1 or path == "" else None
  elif callable(axes) and jax.tree_util.all_leaves([axes]):  # a tree can be a module, which is callable too
    check_takes("axes", axes, "path", "leaf")
    given = axes
  else:
    table = by_path(axes, lambda node: node is None or (_is_tuple_of_ints(node) and node != ()))
    for path, value in table.items():
      _check_axes(path, value)
    given = _lookup(table)

  def axes_of(path: str, leaf: Any) -> AxesOfLeaf:
    value = given(path, leaf)
    _check_axes(path, value)
    if value is None:
      return None
    ndim = jnp.ndim(leaf)
    absent = [axis for axis in value if not -ndim <= axis < ndim]
    if absent:
      raise ValueError(
        f"Axes {value} were given for leaf {path!r}, but its shape {jnp.shape(leaf)} has no axis {absent[0]}."
      )
    along = tuple(sorted({axis % ndim for axis in value}))
    if len(along) < len(value):
      raise ValueError(f"Axes {value} were given for leaf {path!r}, but they name one axis twice.")
    return along

  return axes_of


def _of_structure(structure: Structure) -> Callable[[str, Any], AxesOfLeaf]:
  known = structure.by_path()
  contracted = _lookup({path: facts.contracting_axes for path, facts in known.items()})

  def given(path: str, leaf: Any) -> AxesOfLeaf:
    axes = contracted(path, leaf)
    check_shape(known[path], leaf)
    return axes

  return given


def _lookup(table: dict[str, AxesOfLeaf]) -> Callable[[str, Any], AxesOfLeaf]:
  def given(path: str, leaf: Any) -> AxesOfLeaf:
    del leaf
    if path not in table:
      known = [repr(name) for name in sorted(table, key=natural_key)]
      others = f"only for {', '.join(known[:5])}{' and so on' * (len(known) > 5)}" if known else "nor for any other"
      raise ValueError(f"No axes were given for leaf {path!r}, {others}: add it, with None for scalars.")
    return table[path]

  return given


def _is_tuple_of_ints(value: Any) -> bool:
  return type(value) is tuple and all(
    isinstance(axis, int | np.integer) and not isinstance(axis, bool) for axis in value
  )


def _check_axes(path: str, value: Any) -> None:
  if value is not None and not (_is_tuple_of_ints(value) and value):
    hint = f"; write ({value},)" if isinstance(value, int) else ""
    raise TypeError(
      f"The axes of leaf {path!r} must be None or a tuple of one or more ints, but were {shown(value)}{hint}."
    )
