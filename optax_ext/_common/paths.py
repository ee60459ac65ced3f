"""Names for the leaves of a parameter tree, the same in every framework, at init and at update."""

import functools
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import DictKey, GetAttrKey, KeyPath, keystr, tree_flatten_with_path

from optax_ext._common.arguments import check_expression, check_takes, count_arrays, shown


def path_string(path: tuple[Any, ...]) -> str:
  """The path of a leaf as one string, `"block/3/kernel"`.

  linen wraps its parameters in a dict with the one key `params`; that key is left out.

  Flax boxes a parameter (`nn.Partitioned`, a variable of NNX) in a node with the attribute `value`, and unboxes it
  before an optimizer's update. A path alone does not tell such a box from a module with a field `value`, so that
  `path_string` keeps `value`. Functions that see the tree leave the box out: `label_paths`, `mask`, `axes` and every
  other function of a path and a leaf. To get their names for a tree, call `label_paths(lambda path, leaf: path)(tree)`.

  >>> path_string((DictKey("params"), DictKey("Dense_0"), DictKey("kernel")))
  'Dense_0/kernel'
  """
  if isinstance(path, str):
    raise TypeError(f"path must be a path of jax.tree_util, a tuple of keys, but was {path!r}, a string already.")
  if len(path) > 1 and path[0] == DictKey("params"):
    path = path[1:]
  return keystr(path, simple=True, separator="/")


def innermost_field(path: KeyPath) -> str:
  """The name of the innermost field on a path through an optimizer's state, as `mu`; nothing where there is none."""
  return next((key.name for key in reversed(path) if isinstance(key, GetAttrKey)), "")


def named_leaves(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> list[tuple[str, Any]]:
  """The path string and the value of every leaf, in the tree's order. A box adds nothing to the path of what it holds.

  So one leaf has one name, boxed when an optimizer is initialised and unboxed when it is updated.
  """
  stop = is_box if is_leaf is None else lambda node: is_leaf(node) or is_box(node)
  leaves: list[tuple[str, Any]] = []
  for path, node in tree_flatten_with_path(tree, stop)[0]:
    if is_box(node) and not (is_leaf and is_leaf(node)):
      inside = tree_flatten_with_path(node, is_leaf)[0]
      leaves += [(path_string((*path, *below[1:])), leaf) for below, leaf in inside]
    else:
      leaves.append((path_string(path), node))
  return leaves


def is_box(node: Any) -> bool:
  return boxes(type(node))


@functools.cache
def boxes(kind: type) -> bool:
  """Whether Flax boxes parameters in a type: `nn.Partitioned` and its like, NNX variables. Flax is not imported."""
  names = [base.__name__ for base in kind.__mro__ if base.__module__.partition(".")[0] == "flax"]
  return not {"AxisMetadata", "Variable", "VariableState"}.isdisjoint(names)


def natural_key(path: str) -> tuple[tuple[int, int, str], ...]:
  """A sort key that counts: `Dense_2` before `Dense_10`.

  >>> sorted(["Dense_10/bias", "Dense_2/bias", "Conv_0/bias"], key=natural_key)
  ['Conv_0/bias', 'Dense_2/bias', 'Dense_10/bias']
  """
  parts = re.split(r"(\d+|/)", path)
  return tuple(
    (0, 0, "") if part == "/" else (1, int(part), "") if part.isdecimal() else (2, 0, part) for part in parts if part
  )


def map_with_paths(f: Callable[..., Any], tree: Any, *rest: Any) -> Any:
  """`jax.tree.map(f, tree, *rest)` where `f` takes the path string first. `None` in `tree` is `None` in the result."""
  treedef = jax.tree.structure(tree, is_leaf=_is_none)
  others = zip(*[treedef.flatten_up_to(other) for other in rest], strict=True) if rest else [()] * treedef.num_leaves
  leaves = zip(named_leaves(tree, _is_none), others, strict=True)
  return treedef.unflatten([None if leaf is None else f(path, leaf, *more) for (path, leaf), more in leaves])


def field(kind: type, steps: Any, i: int, old: Any) -> Any:
  """The i-th fields of a tree of steps of a kind; the old value where a gradient, and so the step, is `None`."""
  is_step = lambda node: node is None or isinstance(node, kind)
  return jax.tree.map(lambda step, old: old if step is None else step[i], steps, old, is_leaf=is_step)


def _is_none(node: Any) -> bool:
  return node is None


def check_no_count(tree: Any) -> None:
  """Raises `TypeError` for a step count: `optax.inject_hyperparams` takes every callable for a schedule."""
  if isinstance(tree, jax.Array) and tree.ndim == 0 and jnp.issubdtype(tree.dtype, jnp.integer):
    raise TypeError(
      "A function of the parameters was called with a step count, as a schedule is: name it, for example mask, in the "
      "static_args of optax.inject_hyperparams."
    )


def mask_paths(shown: Callable[[str, Any], bool], tree: Any) -> Any:
  """A mask for `optax.masked`, False for `None`: what has no gradient is masked among the parameters too."""
  check_no_count(tree)
  return jax.tree.map(bool, map_with_paths(shown, tree), is_leaf=_is_none)


def label_paths(label: str | Callable[[str, Any], Any]) -> Callable[[Any], Any]:
  """Parameter groups by path, for `optax.partition`, `optax.masked` and every `mask`.

  Args:
    label: A regular expression that is searched for in a leaf's path; or a function `label(path, leaf)` that returns
      the name of the leaf's group.

  Returns:
    A function from a tree to a tree of labels: booleans for a regular expression.

  Raises:
    TypeError: `label` is neither; the function is called with a step count, as `optax.inject_hyperparams` does.
    ValueError: `label` is no regular expression.

  Warns:
    UserWarning: a regular expression is found in no path of a tree. There is no warning where `optax.masked` or
      `optax.partition` hide a part of the tree: the expression may be about that part.

  Example:
    >>> groups = label_paths("embed|head")
    >>> groups({"embed": {"w": 1.0}, "block": {"w": 2.0}, "head": 3.0})
    {'block': {'w': False}, 'embed': {'w': True}, 'head': True}
    >>> tx = optax.partition({True: optax.adam(1e-4), False: optax.adam(1e-3)}, groups)
  """
  if isinstance(label, str):
    check_expression("label", label)
    expression = re.compile(label)

    def groups(tree: Any) -> Any:
      check_no_count(tree)
      warn_unmatched(expression, tree)
      return map_with_paths(lambda path, leaf: expression.search(path) is not None, tree)

    return groups
  if not callable(label):
    hint = " A mask is what label_paths(label) returns, not label_paths itself." if count_arrays(label) else ""
    raise TypeError(
      f"label must be a regular expression or a function label(path, leaf), but was {shown(label)}.{hint}"
    )
  check_takes("label", label, "path", "leaf")

  def labels(tree: Any) -> Any:
    check_no_count(tree)
    return map_with_paths(label, tree)

  return labels


def warn_unmatched(expression: re.Pattern[str], tree: Any) -> None:
  """Warns if an expression is found in no path of a whole tree: a slip of the pen makes an empty group."""
  nodes = named_leaves(tree, _is_none)
  whole = not hides_leaves(tree)  # what is hidden may match
  if whole and any(node is not None for _, node in nodes) and not any(expression.search(path) for path, _ in nodes):
    warnings.warn(
      f"The regular expression {expression.pattern!r} is found in no path of the tree, whose leaves are "
      f"{listed(path for path, _ in nodes)}: correct it.",
      stacklevel=3,
    )


def hides_leaves(tree: Any) -> bool:
  """Whether `optax.masked` or `optax.partition` shows a part of a tree only."""
  return any(map(is_masked, jax.tree.leaves(tree, is_leaf=is_masked)))


def is_masked(node: Any) -> bool:
  """Whether a node stands for what `optax.masked` or `optax.partition` hides."""
  return isinstance(node, optax.MaskedNode)


def by_path(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
  """The leaves of a tree as a dict from path string to leaf, in the tree's order.

  Raises:
    ValueError: two leaves share one name, as `{"params": {"w": x}, "w": y}`.
  """
  leaves = named_leaves(tree, is_leaf)
  table = dict(leaves)
  if len(table) < len(leaves):
    shared = [name for name, times in Counter(name for name, _ in leaves).items() if times > 1]
    raise ValueError(f"Several leaves of the tree have the same path: {listed(shared)}; rename one of each.")
  return table


def check_paths(what: str, given: Iterable[str], tree: Any, *, more: bool = False) -> None:
  """Raises `ValueError` unless `given` names every leaf of `tree` and, masked ones and `more` aside, no others."""
  nodes = by_path(tree, is_masked)
  hidden = [path for path, node in nodes.items() if is_masked(node)]
  given = set(given)
  missing = nodes.keys() - set(hidden) - given
  unknown = set() if more else {p for p in given - nodes.keys() if not any(_beneath(p, node) for node in hidden)}
  problems = []
  if missing:
    numbers = any(isinstance(nodes[path], int | float | complex) for path in missing)
    problems.append(f"it has nothing for {listed(missing)}{', Python numbers: make them arrays' if numbers else ''}")
  if unknown:
    problems.append(f"it names {listed(unknown)}, which they do not have")
  if problems:
    raise ValueError(f"{what} does not match the parameters: {' and '.join(problems)}.")


def described(tree: Any, most: int = 3) -> str:
  """How many leaves a tree has, and the first of them: `2 leaves ('bias' of shape (3,), 'kernel' of shape (2, 3))`."""
  leaves = [f"{path!r} of shape {getattr(leaf, 'shape', ())}" for path, leaf in named_leaves(tree)]
  more = f" and {len(leaves) - most} more" if len(leaves) > most else ""
  return f"{len(leaves)} {'leaf' if len(leaves) == 1 else 'leaves'} ({', '.join(leaves[:most])}{more})"


def listed(paths: Iterable[str], most: int = 5) -> str:
  """Paths in one line, in natural order: `'a', 'b' and 3 more`."""
  ordered = sorted(paths, key=natural_key)
  more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
  return ", ".join(map(repr, ordered[:most])) + more


def _beneath(path: str, ancestor: str) -> bool:
  return not ancestor or path.startswith(ancestor + "/")
