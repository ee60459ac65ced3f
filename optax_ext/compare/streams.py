"""Data from loaders, which need not fit on a device: a new pass for each epoch, the same batches in all runs of a seed.

A loader is whatever has a length and can be iterated anew: a torch `DataLoader`, a grain `MapDataset`, a
`tf.data.Dataset`, or a class of one's own with `__len__` and `__iter__`.
"""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from optax_ext._common.arguments import check_takes

INCOMPLETE = "leave out an incomplete last batch (drop_last=True in torch, drop_remainder=True in grain and tf.data)"


def is_stream(data: Any) -> bool:
  """Whether `data` is a loader or a function of the seed that gives one, and no tree of arrays."""
  if hasattr(data, "shape") or not (callable(data) or hasattr(data, "__iter__")):
    return False
  return isinstance(data, Iterator) or jax.tree_util.treedef_is_leaf(jax.tree.structure(data))


def first_batch(data: Any, size: int, split: str = "train", seed: int = 0) -> Any:
  """The first `size` examples of arrays, or the first batch of a loader."""
  if not is_stream(data):
    return jax.tree.map(lambda array: array[:size], data)
  for batch in opened(data, seed, split):
    return as_arrays(batch)
  raise ValueError(f"{split} has a length, but gives no batch.")


def opened(data: Any, seed: int, split: str) -> Any:
  """The loader of a seed.

  Raises:
    ValueError: it has no length, is empty, or can be iterated once alone.
  """
  called = split
  loader: Any = data
  if callable(loader):
    check_takes(split, loader, "seed")
    called, loader = f"{split}({seed})", loader(seed)
  if not hasattr(loader, "__iter__"):
    raise ValueError(f"{called} must be iterable, giving batches, but is a {type(loader).__name__}.")
  try:
    length = len(loader)
  except TypeError:
    raise ValueError(
      f"{called} must have a length, the number of its batches in an epoch, but a {type(loader).__name__} has none: "
      "wrap it in a class with __len__ and __iter__."
    ) from None
  if length < 1:
    raise ValueError(f"{called} is empty: its length, the number of its batches in an epoch, is {length}.")
  if hasattr(loader, "__next__"):
    raise ValueError(f"{called} can be iterated once alone: give what starts anew at each epoch, as a loader does.")
  return loader


def as_arrays(batch: Any) -> Any:
  """The batch with NumPy arrays, whatever kind its tensors are of."""
  return jax.tree.map(np.asarray, batch)


class Feed:
  """The batches of one seed without end, epoch by epoch.

  Args:
    data: A loader, or a function of the seed.
    seed: Which.
    like: A batch; all have its structure, shapes and dtypes.
  """

  def __init__(self, data: Any, seed: int, like: Any):
    self.loader, self.like = opened(data, seed, "train"), like
    self.length, self.place, self.pass_ = len(self.loader), 0, iter(())

  def __iter__(self) -> Iterator[Any]:
    return self

  def __next__(self) -> Any:
    """The next batch.

    Raises:
      ValueError: it differs from the others in more than its numbers, or the epoch is not as long as the loader says.
    """
    if self.place == 0:
      self.pass_ = iter(self.loader)
    self.place += 1
    try:
      batch = as_arrays(next(self.pass_))
    except StopIteration:
      raise ValueError(f"train has length {self.length}, but an epoch ended after {self.place - 1} batches.") from None
    check_alike(batch, self.like, f"Batch {self.place} of train", axis=0)
    if self.place == self.length:
      self.place = 0
      if next(self.pass_, None) is not None:
        raise ValueError(f"train has length {self.length}, but goes on after as many batches of an epoch.")
    return batch


def one_pass(data: Any, like: Any, split: str) -> Iterator[tuple[int, Any]]:
  """The batches of a loader, each with the number of its examples, which may differ."""
  for number, batch in enumerate(map(as_arrays, data), 1):
    check_alike(batch, like, f"Batch {number} of {split}", axis=1)
    yield len(jax.tree.leaves(batch)[0]), batch


def check_alike(batch: Any, like: Any, what: str, axis: int) -> None:
  """Raises `ValueError` unless a batch has the structure, the dtypes and from `axis` on the shapes of another."""
  one, other = jax.tree.structure(batch), jax.tree.structure(like)
  if one != other:
    raise ValueError(f"{what} must be a tree like the first batch, {other}, but is {one}.")
  for leaf, first in zip(jax.tree.leaves(batch), jax.tree.leaves(like), strict=True):
    if (leaf.shape[axis:], leaf.dtype) != (first.shape[axis:], first.dtype):
      hint = f": {INCOMPLETE}" if leaf.shape[1:] == first.shape[1:] and not axis else ""
      raise ValueError(
        f"{what} must have the shapes and dtypes of the first batch, but one array is {leaf.dtype} of shape "
        f"{leaf.shape} where the first has {first.dtype} of shape {first.shape}{hint}."
      )
