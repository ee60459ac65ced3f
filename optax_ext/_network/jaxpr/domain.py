"""What is known of a value while a program is read without its numbers, in and out of loops. Knows nothing of jax."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from optax_ext._network.jaxpr import layouts
from optax_ext._network.jaxpr.layouts import Dim, Factor, Layout, Unreadable
from optax_ext._network.jaxpr.summarize import NEVER, Axis, Node

Pieces = tuple[tuple[int, Layout], ...]  # (number of the leaf, where its axes are)


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
  """The product, or lookup, that a value comes from last, and where the axes of its result are now.

  `direct` says that only shapes, casts, sums and constant factors came after it, so that a parameter added is its bias.
  """

  node: Node
  layout: Layout
  direct: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Learned:
  """A product of parameters. If a bias is added to it, one of its operands is an input that is learned (a query).

  Attributes:
    layout: Where the dimensions of its result are now, as axes.
    result: For each of them, the dimension of each operand that it comes from.
    read: Number of the operand that is the weight -> the value, read as that of a layer.
  """

  layout: Layout
  result: Sequence[tuple[int | None, int | None]]
  read: Callable[[int], "Value"]

  def moved(self, change: Callable[[Layout], Layout | None], move: Callable[["Value"], "Value"]) -> "Learned | None":
    """After its dimensions changed."""
    try:
      layout = change(self.layout)
    except Unreadable:
      return None
    return None if layout is None else Learned(layout, self.result, lambda weight: move(self.read(weight)))

  def weight_of(self, bias: Layout) -> int | None:
    """The operand whose own dimensions are those of a bias; `None` where it is none, as it varies along others."""

    def of(side: int) -> list[Dim]:
      alone = [{axis for axis in dim.axes if self.result[axis][1 - side] is None} for dim in self.layout.dims]
      return [dim for dim, axes in zip(bias.dims, alone, strict=True) if axes]

    for weight in (1, 0):
      along, across = of(weight), of(1 - weight)
      varies = any(dim.axes for dim in along) and all(dim.axes for dim in along if dim.size > 1)
      if varies and across and not any(dim.axes for dim in across):
        return weight
    return None


@dataclasses.dataclass(frozen=True, eq=False)
class Value:
  """What is known of one value of the program.

  Attributes:
    depth: Products on the longest path from the inputs; `None` for a value that depends on none.
    pieces: The parameters that it is computed from, where it depends on no input.
    known: The numbers themselves, for small integers that depend on nothing; loop axes come first.
    uniform: Whether it is one constant number, or that number repeated.
    source: Of a value that depends on an input.
    learned: Of a product of parameters alone.
  """

  depth: Any = None
  pieces: Pieces = ()
  known: np.ndarray | None = None
  uniform: bool = False
  source: Source | None = None
  learned: Learned | None = None

  @property
  def is_active(self) -> bool:
    """Whether it depends on an input."""
    return self.depth is not None


CONSTANT = Value()
UNIFORM = Value(uniform=True)


def deepest(values: Sequence[Value]) -> Any:
  """The depth of what is computed from several values; `None` if it depends on no input."""
  depths = [value.depth for value in values if value.depth is not None]
  if not depths:
    return None
  most = depths[0]
  for depth in depths[1:]:
    most = np.maximum(most, depth) if np.ndim(most) or np.ndim(depth) else max(most, depth)
  return most


def latest(values: Sequence[Value]) -> Source | None:
  """The source of a sum: of the deepest of the values, the first product among equals."""
  found = [
    (int(np.max(value.depth)), value.source.direct, -value.source.node.order, value.source)
    for value in values
    if value.source
  ]
  return max(found, key=lambda entry: entry[:3])[3] if found else None


def moved(source: Source | None, change: Callable[[Layout], Layout | None], lossy: bool) -> Source | None:
  """The source of a value whose dimensions change; `lossy` if sums are taken, so that no bias can follow."""
  if source is None:
    return None
  try:
    layout = change(source.layout)
  except Unreadable:
    return None
  return None if layout is None else Source(source.node, layout, source.direct and not lossy)


def aligned(layout: Layout, source: Source) -> dict[int, list[Axis]]:
  """For each axis of a leaf, the axes of the source's result that it lies along."""
  aligned: dict[int, list[Axis]] = {}
  if len(layout.dims) != len(source.layout.dims):
    return aligned
  for mine, theirs in zip(layout.dims, source.layout.dims, strict=True):
    one_by_one = [f.size for f in mine.factors] == [f.size for f in theirs.factors]
    for i, f in enumerate(mine.factors):
      along = theirs.factors[i : i + 1] if one_by_one else theirs.factors
      if f.axis is not None and f.size > 1:
        aligned.setdefault(f.axis, []).extend(source.node.axes[g.axis] for g in along if g.axis is not None)
  return aligned


def constant_rows(
  layout: Layout,
  known: np.ndarray | None,
  numbers: Any,
  sizes: Sequence[int],
  out: Sequence[int],
  rank: int,
  loops: int,
) -> Layout:
  """Rows of a parameter picked by an array of constants: some or all of them, each once, in any order."""
  if (
    known is None
    or rank != 2
    or len(numbers.start_index_map) != 1
    or numbers.collapsed_slice_dims != numbers.start_index_map
  ):
    raise Unreadable("it is indexed by an array of constants")
  [dim] = numbers.start_index_map
  index = known.reshape(-1)
  [where] = [d for d in range(len(out)) if d not in numbers.offset_dims]
  if not np.array_equal(index, np.arange(layout.dims[dim].size)):
    if known.shape[:loops] != (1,) * loops:
      raise Unreadable("it is indexed by an array of constants")
    layout = _reordered(layout, dim, index)
  rest = [d for d in range(len(sizes)) if d != dim]
  return layouts.select(layout, [*rest[:where], dim, *rest[where:]])


def _reordered(layout: Layout, dim: int, index: np.ndarray) -> Layout:
  """Some positions of a dimension, each once; an even step forward is a slice."""
  old, steps = layout.dims[dim], np.unique(np.diff(index))
  if len(index) < 2 or len(set(index)) < len(index):
    raise Unreadable("it is indexed by an array of constants")
  if steps.size == 1 and steps[0] > 0:
    starts, lengths, strides = [0] * len(layout.dims), [d.size for d in layout.dims], [1] * len(layout.dims)
    starts[dim], lengths[dim], strides[dim] = int(index[0]), len(index), int(steps[0])
    cut = layouts.slice_(layout, starts, lengths, strides)
    assert cut is not None
    return cut
  if len(old.factors) != 1 or not old.is_full:
    raise Unreadable("it is indexed by an array of constants")
  new = Dim((old.factors[0].reordered(index),), 0, len(index))
  return layout.moved([new if d == dim else other for d, other in enumerate(layout.dims)])


def stacked_rows(layout: Layout, places: np.ndarray, length: int, at: int) -> Layout:
  """A leaf that a loop picks rows of, put together again."""
  if layout.present is not None and np.ndim(layout.present) > at:
    raise Unreadable("a loop puts it beside other parameters")
  moving = {axis: base for axis, base in layout.base.items() if np.ndim(base) > at and base.shape[at] > 1}
  front = layouts.filler(length)
  for axis, base in moving.items():
    steps = np.unique(np.diff(np.take(base, places, axis=at), axis=at))
    if len(moving) > 1 or steps.size != 1:
      raise Unreadable("a loop reorders it")
    front = Dim((Factor(axis, int(steps[0]), length),), 0, length)
  first = lambda b: np.take(b, places[:1] if b.shape[at] > 1 else [0], axis=at).take(0, axis=at)
  base = {axis: first(b) if np.ndim(b) > at else b for axis, b in layout.base.items()}
  picked = layout.picked - moving.keys()
  return dataclasses.replace(layout, dims=(front, *layout.dims), base=base, picked=picked)


def iterate(depths: list[Any], gains: list[np.ndarray], length: int, level: int) -> tuple[list[Any], list[Any]]:
  """The depths that carried values have in each iteration, along the loop's axis, and after the last.

  Depths come in as outside, or with the loop's axis of size 1; `gains` with that axis and the rehearsal's.
  """
  now, history = [np.asarray(d)[..., 0] if np.ndim(d) else np.asarray(d) for d in depths], []
  for i in range(length):
    history.append(now)
    rows = [gain[..., min(i, gain.shape[-2] - 1), :] for gain in gains]
    now = [
      functools.reduce(np.maximum, [row[..., -1], *(row[..., j] + depth for j, depth in enumerate(history[-1]))])
      for row in rows
    ]

  def along_loop(values: list[Any]) -> np.ndarray:
    stacked = np.stack(np.broadcast_arrays(*values), axis=-1)
    return stacked.reshape((1,) * (level - stacked.ndim) + stacked.shape)

  return [along_loop([step[k] for step in history]) for k in range(len(now))], [
    d if d.ndim and d.size > 1 else int(d.ravel()[0]) for d in now
  ]


def settled(gain: np.ndarray, own: int, entering: Any) -> Any:
  """The depth of a carried value that starts as a constant: once more around the loop, it makes the result no deeper.

  So recurrent weights are as deep as those of what their products are added to. `gain` is the value's row of the
  rehearsal's matrix, `own` its column; `entering` is the depth where the loop does not feed it back, or gives it no
  other input.
  """
  if entering is None:
    return None
  around, others = gain[..., own], gain[..., -1]
  depth = np.where(np.minimum(around, others) < 0, entering, np.maximum(others - around, 0))
  return depth if depth.size > 1 else int(depth.ravel()[0])


def entered(value: Value, level: int) -> Value:
  """A value seen from inside one more loop, the `level`th."""
  if value.known is not None:
    shape = value.known.shape
    return dataclasses.replace(value, known=value.known.reshape(*shape[: level - 1], 1, *shape[level - 1 :]))
  if not value.pieces:
    return dataclasses.replace(value, depth=for_one_more_loop(value.depth)) if np.ndim(value.depth) else value
  pieces = tuple((leaf, layout.per_loop(for_one_more_loop)) for leaf, layout in value.pieces)
  return dataclasses.replace(value, pieces=pieces, learned=None)


def for_one_more_loop(array: Any) -> Any:
  """What differs from one iteration to the next, with a last axis for one more loop; a plain number as it is."""
  return array[..., None] if np.ndim(array) else array


def left(depth: Any, level: int) -> Any:
  """A depth seen from outside the loop: that of its deepest iteration."""
  if not np.ndim(depth) or depth.ndim <= level:
    return depth
  outer = depth.max(axis=-1)
  return outer if outer.ndim else int(outer)


def carried_out(value: Value, level: int) -> Value:
  """A value of the innermost loop, whose axis is number `level`, seen from outside."""
  if value.known is not None:
    if value.known.shape[level] > 1:
      return CONSTANT
    return dataclasses.replace(
      value, known=value.known.reshape(value.known.shape[:level] + value.known.shape[level + 1 :])
    )

  def outer(array: Any) -> Any:
    if np.ndim(array) <= level:
      return array
    if array.shape[level] > 1:
      raise Unreadable("a loop carries it out")
    return array[..., 0]

  pieces = []
  for leaf, layout in value.pieces:
    try:
      pieces.append((leaf, layout.per_loop(outer)))
    except Unreadable as why:
      pieces.append((leaf, Layout((), unreadable=str(why))))
  return dataclasses.replace(value, depth=left(value.depth, level), pieces=tuple(pieces), learned=None)


def unprobed(array: Any) -> Any:
  """Without the axis that a rehearsal adds, which comes before the last one."""
  return array[..., 0, :] if np.ndim(array) > 1 else array


def only_where(value: Value, taken: np.ndarray) -> Value:
  """A value that exists in those iterations alone where `taken`, one axis for each loop, is true."""
  here = lambda layout: taken if layout.present is None else taken & layout.present
  pieces = tuple((leaf, dataclasses.replace(layout, present=here(layout))) for leaf, layout in value.pieces)
  depth = None if value.depth is None else np.where(taken, value.depth, -NEVER)
  return dataclasses.replace(value, depth=depth, pieces=pieces, learned=None)


def as_unreadable(value: Value, why: str) -> Pieces:
  """The parameters of a value whose axes are lost."""
  return layouts.merge(*([(leaf, Layout((), unreadable=why))] for leaf, _ in value.pieces)) if value.pieces else ()


def simplest(array: np.ndarray) -> Any:
  """One number as an int, several as they are."""
  return int(array.ravel()[0]) if array.size == 1 else array
