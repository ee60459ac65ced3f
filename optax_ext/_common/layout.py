"""One sentence for a step whose gradients, state and parameters do not belong together.

Without it a state that another optimizer made gives `EmptyState has no attribute inner_state`, and a layer that was
added to the model an error from deep inside `jax.tree.map`.
"""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import keystr, tree_flatten_with_path

from optax_ext._common.paths import boxes, is_masked, listed, named_leaves, natural_key


def with_layout_errors(
  init: optax.TransformInitFn,
  update: Callable[..., tuple[Any, Any]],
  check: Callable[[Any, Any], None] = lambda state, params: None,
) -> optax.GradientTransformationExtraArgs:
  """A transformation whose `update`, where it fails, says what does not match: the gradients, or its state.

  Only a step that has failed compares the two, so that all others cost nothing. What `check(state, params)` raises
  before a step stays as it is.
  """

  def explained(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
    check(state, params)
    try:
      return update(updates, state, params, **extra_args)
    except (AttributeError, TypeError, ValueError) as error:
      if params is not None and (difference := _difference_of_leaves(updates, params)):
        raise ValueError(f"The gradients do not match the parameters: {difference}.") from error
      if difference := _difference_from(init, state, updates if params is None else params):
        raise ValueError(difference) from error
      raise

  return optax.GradientTransformationExtraArgs(init, explained)


def _difference_of_leaves(tree: Any, wanted: Any) -> str:
  """What leaves a tree of arrays lacks, or has too many, or has in another shape; where it may, a leaf is `None`."""
  got, wanted = (dict(named_leaves(of, _is_hidden)) for of in (tree, wanted))
  hidden = {path for of in (got, wanted) for path, leaf in of.items() if _is_hidden(leaf)}
  if hidden and got.keys() != wanted.keys():
    return ""  # what is hidden on one side may be a whole tree on the other
  parts = []
  if missing := wanted.keys() - got.keys():
    parts.append(f"they have nothing for {listed(missing)}")
  if unknown := got.keys() - wanted.keys():
    parts.append(f"they also have {listed(unknown)}")
  for path in () if parts else sorted(wanted.keys() - hidden, key=natural_key):
    shapes = [getattr(leaves[path], "shape", ()) for leaves in (got, wanted)]
    if shapes[0] != shapes[1]:
      return f"{path!r} has shape {shapes[0]} there and {shapes[1]} here"
  if without := {} if parts else {path for path in wanted if got[path] is None and wanted[path] is not None}:
    return f"{listed(without)} has None in place of a gradient, which not every optimizer takes"
  return " and ".join(parts)


def _difference_from(init: optax.TransformInitFn, state: Any, params: Any) -> str:
  """Where a state differs from a new one; nothing where it does not, or where none can be made of these parameters."""
  try:
    with warnings.catch_warnings(action="ignore"):
      wanted = jax.eval_shape(init, params)
  except Exception:
    return ""
  if difference := _difference("state", jax.tree.structure(state), jax.tree.structure(wanted)):
    return difference
  for (path, got), leaf in zip(tree_flatten_with_path(state)[0], jax.tree.leaves(wanted), strict=True):
    if jnp.shape(got) != leaf.shape:
      return _of_other_parameters(
        f"state{keystr(path)} has shape {jnp.shape(got)}, where the optimizer has {leaf.shape}"
      )
  return ""


def _of_another_optimizer(difference: str) -> str:
  return (
    f"The state is none of this optimizer: {difference}. Another optimizer has made it, or the same one with "
    "other arguments, such as a weight decay, a mask or a schedule: give convert_moments(state, tx.init(params), "
    "...), which keeps moments in floating point."
  )


def _of_other_parameters(difference: str) -> str:
  return (
    f"The state is of other parameters: {difference}. Where the model has changed, start with a new state, "
    "tx.init(params)."
  )


def _difference(path: str, got: Any, wanted: Any) -> str:
  """A sentence about the first difference of two structures of trees, in their order."""
  got, wanted = _unboxed(got), _unboxed(wanted)
  if got == wanted:
    return ""
  (kind, names), (wanted_kind, wanted_names) = _node(got), _node(wanted)
  if kind is not wanted_kind:
    return _of_another_optimizer(f"{path} is of type {_name(kind)}, where the optimizer has {_name(wanted_kind)}")
  if names != wanted_names and kind in (dict, list):
    paths, wanted_paths = ({name for name, _ in _leaves(of)} for of in (got, wanted))
    missing, unknown = wanted_paths - paths, paths - wanted_paths
    parts = [f"has nothing for {listed(missing)}"] * bool(missing) + [f"also has {listed(unknown)}"] * bool(unknown)
    return _of_other_parameters(f"{path} {' and '.join(parts)}")
  if len(names) != len(wanted_names):
    kinds, wanted_kinds = (", ".join(_name(_node(child)[0]) for child in of.children()) for of in (got, wanted))
    return _of_another_optimizer(
      f"{path} has {len(names)} parts ({kinds}), where the optimizer has {len(wanted_names)} ({wanted_kinds})"
    )
  if names != wanted_names:
    return _of_another_optimizer(f"{path} has the keys {names}, where the optimizer has {wanted_names}")
  pairs = zip(names, got.children(), wanted.children(), strict=True)
  parts = [_difference(path + name, child, wanted_child) for name, child, wanted_child in pairs]
  return next(filter(None, parts), "")


def _is_hidden(node: Any) -> bool:
  return node is None or is_masked(node)


def _leaves(structure: Any) -> list[tuple[str, Any]]:
  return named_leaves(structure.unflatten(range(structure.num_leaves)))


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
