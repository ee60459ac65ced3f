"""A clear error for a state that another optimizer made, in place of `EmptyState has no attribute inner_state`."""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import optax

from optax_ext._common.paths import boxes


def with_layout_errors(
  init: optax.TransformInitFn, update: Callable[..., tuple[Any, Any]]
) -> optax.GradientTransformationExtraArgs:
  """A transformation whose `update`, where it fails, says what its state has in another layout than `init` makes.

  Only a step that has failed compares the two, so that all others cost nothing.
  """

  def explained(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
    try:
      return update(updates, state, params, **extra_args)
    except (AttributeError, TypeError, ValueError) as error:
      if difference := _difference_from(init, state, updates if params is None else params):
        raise ValueError(
          f"The state is none of this optimizer: {difference}. Another optimizer has made it, or the same one with "
          "other arguments, such as a weight decay, a mask or a schedule: give convert_moments(state, tx.init(params), "
          "...), which keeps moments in floating point."
        ) from error
      raise

  return optax.GradientTransformationExtraArgs(init, explained)


def _difference_from(init: optax.TransformInitFn, state: Any, params: Any) -> str:
  """Where the layout of a state differs; nothing where it does not, or where none can be made of these parameters."""
  try:
    with warnings.catch_warnings(action="ignore"):
      wanted = jax.eval_shape(init, params)
  except Exception:
    return ""
  return _difference("state", jax.tree.structure(state), jax.tree.structure(wanted))


def _difference(path: str, got: Any, wanted: Any) -> str:
  """The first difference of two structures of trees, in their order."""
  got, wanted = _unboxed(got), _unboxed(wanted)
  if got == wanted:
    return ""
  (kind, names), (wanted_kind, wanted_names) = _node(got), _node(wanted)
  if kind is not wanted_kind:
    return f"{path} is of type {_name(kind)}, where the optimizer has {_name(wanted_kind)}"
  if len(names) != len(wanted_names):
    kinds, wanted_kinds = (", ".join(_name(_node(child)[0]) for child in of.children()) for of in (got, wanted))
    return f"{path} has {len(names)} parts ({kinds}), where the optimizer has {len(wanted_names)} ({wanted_kinds})"
  if names != wanted_names:
    return f"{path} has the keys {names}, where the optimizer has {wanted_names}"
  pairs = zip(names, got.children(), wanted.children(), strict=True)
  parts = [_difference(path + name, child, wanted_child) for name, child, wanted_child in pairs]
  return next(filter(None, parts), "")


def _unboxed(structure: Any) -> Any:
  """What is in the box of one of Flax's parameters: boxed at init, unboxed at update."""
  while (data := structure.node_data()) and boxes(data[0]) and len(structure.children()) == 1:
    (structure,) = structure.children()
  return structure


def _node(structure: Any) -> tuple[Any, list[str]]:
  """The type of the outermost node, `None` for an array, and how its parts are reached from it."""
  data = structure.node_data()
  if data is None:
    return None, []
  kind, static = data
  if fields := getattr(kind, "_fields", None):
    return kind, [f".{field}" for field in fields]
  keys = static if kind is dict else range(len(structure.children()))
  return kind, [f"[{key!r}]" for key in keys]


def _name(kind: Any) -> str:
  return "array" if kind is None else kind.__name__
