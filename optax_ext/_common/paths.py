"""Names for the leaves of a parameter tree, the same in every framework, at init and at update."""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import DictKey, GetAttrKey, KeyPath, keystr


def path_string(path: KeyPath) -> str:
  """The path of a leaf as one string, `"block/3/kernel"`.

  Boxed parameters (Flax's `nn.Partitioned`, the variables of an NNX state) end in an attribute `value` when an
  optimizer is initialised and do not when it is updated, and linen wraps its parameters in a dict with the one key
  `params`. Both are left out, so that one leaf has one name.

  >>> path_string((DictKey("params"), DictKey("Dense_0"), DictKey("kernel"), GetAttrKey("value")))
  'Dense_0/kernel'
  """
  if path and isinstance(path[-1], GetAttrKey) and path[-1].name == "value":
    path = path[:-1]
  if len(path) > 1 and path[0] == DictKey("params"):
    path = path[1:]
  return keystr(path, simple=True, separator="/")


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

  def with_string(path: KeyPath, leaf: Any, *others: Any) -> Any:
    return None if leaf is None else f(path_string(path), leaf, *others)

  return jax.tree_util.tree_map_with_path(with_string, tree, *rest, is_leaf=lambda leaf: leaf is None)


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
  return jax.tree.map(bool, map_with_paths(shown, tree), is_leaf=lambda leaf: leaf is None)


def label_paths(label: str | Callable[[str, Any], Any]) -> Callable[[Any], Any]:
  """Parameter groups by path, for `optax.partition`, `optax.masked` and every `mask`.

  Args:
    label: A regular expression, for whether it is found in a leaf's path; or a function `label(path, leaf)` that
      returns the name of the leaf's group.

  Returns:
    A function from a tree to a tree of labels: booleans for a regular expression.

  Raises:
    TypeError: `label` is neither; the function is called with a step count, as `optax.inject_hyperparams` does.

  Example:
    >>> groups = label_paths("embed|head")
    >>> groups({"embed": {"w": 1.0}, "block": {"w": 2.0}, "head": 3.0})
    {'block': {'w': False}, 'embed': {'w': True}, 'head': True}
    >>> tx = optax.partition({True: optax.adam(1e-4), False: optax.adam(1e-3)}, groups)
  """
  if isinstance(label, str):
    pattern = re.compile(label)
    return label_paths(lambda path, leaf: pattern.search(path) is not None)
  if not callable(label):
    raise TypeError(f"label must be a regular expression or a function label(path, leaf), but was {label!r}.")

  def labels(tree: Any) -> Any:
    check_no_count(tree)
    return map_with_paths(label, tree)

  return labels


def by_path(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
  """The leaves of a tree as a dict from path string to leaf, in the tree's order.

  Raises:
    ValueError: two leaves share one name, as `{"params": {"w": x}, "w": y}`.
  """
  leaves = [(path_string(path), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree, is_leaf)[0]]
  table = dict(leaves)
  if len(table) < len(leaves):
    shared = [name for name, times in Counter(name for name, _ in leaves).items() if times > 1]
    raise ValueError(f"Several leaves of the tree have the same path: {_listed(shared)}; rename one of each.")
  return table


def check_paths(what: str, given: Iterable[str], tree: Any, *, more: bool = False) -> None:
  """Raises `ValueError` unless `given` names every leaf of `tree` and, masked ones and `more` aside, no others."""
  nodes = by_path(tree, lambda node: isinstance(node, optax.MaskedNode))
  hidden = [path for path, node in nodes.items() if isinstance(node, optax.MaskedNode)]
  given = set(given)
  missing = nodes.keys() - set(hidden) - given
  unknown = set() if more else {p for p in given - nodes.keys() if not any(_beneath(p, node) for node in hidden)}
  problems = []
  if missing:
    numbers = any(isinstance(nodes[path], int | float | complex) for path in missing)
    problems.append(f"it has nothing for {_listed(missing)}{', Python numbers: make them arrays' if numbers else ''}")
  if unknown:
    problems.append(f"it names {_listed(unknown)}, which they do not have")
  if problems:
    raise ValueError(f"{what} does not match the parameters: {' and '.join(problems)}.")


def _beneath(path: str, ancestor: str) -> bool:
  return not ancestor or path.startswith(ancestor + "/")


def _listed(paths: Iterable[str], most: int = 5) -> str:
  ordered = sorted(paths, key=natural_key)
  more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
  return ", ".join(map(repr, ordered[:most])) + more
