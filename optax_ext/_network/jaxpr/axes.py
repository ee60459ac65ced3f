"""Axis arithmetic: where the axes of a parameter are in a value computed from it.

A value's dimension is a list of *factors*, major to minor: a reshape that splits an axis of 6 into (2, 3) makes two
factors of it, one that merges them puts both into one dimension. Position i of a factor is position `stride·i` of the
leaf's axis, or `stride[i]` where its rows come in an order of their own, and the leaf is read from `base` on, which
slices move. Plain numbers: nothing here knows of jax.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class Unreadable(Exception):  # noqa: N818 (a finding, not a failure)
  """The axes cannot be kept track of; the message says why, as the end of a sentence about the parameter."""


class Moving(NamedTuple):
  """A position that each iteration of a loop, which is read once, has for its own."""

  loop: int


Position = int | Moving
NOWHERE = -1  # stands for an axis, in a base, where a loop picks other leaves in other iterations


class Factor(NamedTuple):
  """Part of an axis of a leaf; `axis` is `None` where the value repeats the leaf, or holds something else."""

  axis: int | None
  stride: int | tuple[int, ...]
  size: int

  def positions(self) -> np.ndarray:
    """Along the leaf's axis, relative to its base."""
    return np.array(self.stride) if isinstance(self.stride, tuple) else self.stride * np.arange(self.size)

  def reordered(self, index: np.ndarray) -> "Factor":
    """Positions picked by an array, in its order."""
    return Factor(self.axis, tuple(self.positions()[index].tolist()), len(index))

  def part(self, start: int, size: int, step: int = 1) -> tuple["Factor", dict[int, Any]]:
    """Every `step`th position from `start` on, and how far the leaf's base moves."""
    if isinstance(self.stride, tuple):
      return self.reordered(start + step * np.arange(size)), {}
    return Factor(self.axis, self.stride * step, size), _shifts(self, start)


class Dim(NamedTuple):
  """A dimension of a value. The leaf fills it from `start` on; around it is what was concatenated or padded."""

  factors: tuple[Factor, ...]
  start: int
  size: int

  @property
  def extent(self) -> int:
    """How much of the dimension the leaf fills."""
    return math.prod(factor.size for factor in self.factors)

  @property
  def is_full(self) -> bool:
    """Whether the leaf fills all of it."""
    return self.extent == self.size

  @property
  def axes(self) -> tuple[int, ...]:
    """The leaf's axes in it."""
    return tuple(factor.axis for factor in self.factors if factor.axis is not None)


def filler(size: int) -> Dim:
  """A dimension along which the leaf is repeated."""
  return Dim((Factor(None, 0, size),), 0, size)


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
  """Where the axes of one leaf are in one value.

  Attributes:
    dims: Of the value.
    base: First position along those axes that were sliced or indexed.
    picked: Axes that one position was picked from.
    inner: Factors that were summed over in a product with other parameters.
    unreadable: Why nothing is known of the axes, if nothing is.
  """

  dims: tuple[Dim, ...]
  base: Mapping[int, Position] = dataclasses.field(default_factory=dict)
  picked: frozenset[int] = frozenset()
  inner: tuple[Factor, ...] = ()
  unreadable: str = ""

  def key(self) -> tuple[Any, ...]:
    """Equal for equal layouts."""
    return (
      self.dims,
      tuple(sorted(self.base.items(), key=lambda item: item[0])),
      self.picked,
      self.inner,
      self.unreadable,
    )

  @property
  def varies(self) -> bool:
    """Whether each iteration of a loop picks other positions."""
    return any(isinstance(at, Moving) for at in self.base.values())

  @property
  def placed(self) -> set[int]:
    """The axes that lie along dimensions of the value."""
    return {factor.axis for dim in self.dims for factor in dim.factors if factor.axis is not None}

  def moved(self, dims: Sequence[Dim], shifts: Mapping[int, Position] | None = None) -> "Layout":
    """With other dimensions, and read from further on."""
    base = {**self.base, **_added(self.base, shifts)} if shifts else self.base
    return Layout(tuple(dims), base, self.picked, self.inner, self.unreadable)


def lost(why: str) -> Layout:
  """Of a leaf of whose axes nothing is known."""
  return Layout((), unreadable=why)


def _added(base: Mapping[int, Position], shifts: Mapping[int, Position]) -> dict[int, Position]:
  def added(at: Position, by: Position) -> Position:
    return by if isinstance(by, Moving) else at if isinstance(at, Moving) else at + by

  return {axis: added(base.get(axis, 0), by) for axis, by in shifts.items()}


def identity(shape: Sequence[int]) -> Layout:
  """Of the leaf itself."""
  return Layout(tuple(Dim((Factor(axis, 1, size),), 0, size) for axis, size in enumerate(shape)))


def select(layout: Layout, order: Sequence[int]) -> Layout:
  """Dimensions in another order, or fewer."""
  return layout.moved([layout.dims[dim] for dim in order])


def drop(layout: Layout, dims: Sequence[int]) -> Layout:
  """Without some dimensions: summed over, or of size 1."""
  picked = {axis for dim in dims for axis in _single(layout, dim)}
  layout = select(layout, [dim for dim in range(len(layout.dims)) if dim not in dims])
  return dataclasses.replace(layout, picked=layout.picked | picked) if picked else layout


def _single(layout: Layout, dim: int) -> list[int]:
  """The axes that a dimension of size 1 has one position of."""
  return [axis for axis in layout.dims[dim].axes if layout.dims[dim].size == 1 and axis in layout.base]


def broadcast(layout: Layout, shape: Sequence[int], where: Sequence[int]) -> Layout:
  """Repeated to `shape`; dimension i becomes dimension `where[i]`."""
  dims = [filler(size) for size in shape]
  for old, new in zip(layout.dims, where, strict=True):
    if old.size == shape[new]:
      dims[new] = old
  return layout.moved(dims)


def tile(layout: Layout, times: Sequence[int]) -> Layout:
  """Repeated as a whole along each dimension."""
  if any(n > 1 and not dim.is_full for n, dim in zip(times, layout.dims, strict=True)):
    raise Unreadable("it is repeated together with what is concatenated to it")
  repeated = [
    dim if n == 1 else Dim((Factor(None, 0, n), *dim.factors), 0, n * dim.size)
    for n, dim in zip(times, layout.dims, strict=True)
  ]
  return layout.moved(repeated)


def reverse(layout: Layout, dims: Sequence[int]) -> Layout:
  """Some dimensions from back to front."""
  new, shifts = list(layout.dims), {}
  for dim in dims:
    old = layout.dims[dim]
    back = [f.part(f.size - 1, f.size, -1) for f in old.factors]
    for axis, shift in (item for _, of in back for item in of.items()):
      shifts[axis] = shifts.get(axis, 0) + shift
    new[dim] = Dim(tuple(f for f, _ in back), old.size - old.start - old.extent, old.size)
  return layout.moved(new, shifts)


def pad(layout: Layout, low: Sequence[int], sizes: Sequence[int]) -> Layout:
  """With something else around it, `low[i]` before dimension i, to the new `sizes`; negative padding cuts."""
  cut = [max(0, -before) for before in low]
  kept = [
    min(dim.size - c, size - max(0, before)) for dim, c, before, size in zip(layout.dims, cut, low, sizes, strict=True)
  ]
  inside = slice_(layout, cut, kept, [1] * len(cut))
  if inside is None:
    raise Unreadable("padding leaves nothing of it")
  dims = [d._replace(start=d.start + max(0, b), size=size) for d, b, size in zip(inside.dims, low, sizes, strict=True)]
  return inside.moved(dims)


def slice_(layout: Layout, starts: Sequence[Position], sizes: Sequence[int], strides: Sequence[int]) -> Layout | None:
  """A part of the value; `None` where it holds nothing of the leaf."""
  for dim, (start, size, stride) in enumerate(zip(starts, sizes, strides, strict=True)):
    old = layout.dims[dim]
    if size == old.size:
      continue
    if isinstance(start, Moving):
      if size > 1 and (len(old.factors) != 1 or not old.is_full or isinstance(old.factors[0].stride, tuple)):
        raise Unreadable("a loop reads parts of it that its axes cannot be followed through")
      factors = tuple(factor._replace(size=size) for factor in old.factors)
      layout = layout.moved(_replaced(layout.dims, dim, Dim(factors, 0, size)), _moves(old, start))
    elif stride != 1:
      if len(old.factors) != 1 or not old.is_full:
        raise Unreadable("a strided slice mixes its axes")
      f, shifts = old.factors[0].part(start, size, stride)
      layout = layout.moved(_replaced(layout.dims, dim, Dim((f,), 0, size)), shifts)
    else:
      first, last = max(start, old.start), min(start + size, old.start + old.extent)
      if first >= last:
        return None
      factors, shifts = _take(old.factors, first - old.start, last - first)
      layout = layout.moved(_replaced(layout.dims, dim, Dim(factors, first - start, size)), shifts)
  return layout


def row(layout: Layout, dim: int, index: Position) -> Layout | None:
  """One position along a dimension, which is gone; `None` where that holds nothing of the leaf."""
  old = layout.dims[dim]
  if isinstance(index, Moving):
    shifts = _moves(old, index)
  elif not 0 <= (index := index - old.start) < old.extent:
    return None
  else:
    shifts: dict[int, Position] = dict.fromkeys(old.axes, 0)
    minor = old.extent
    for factor in old.factors:
      minor //= factor.size
      shifts |= _added(shifts, _shifts(factor, index // minor % factor.size))
  layout = layout.moved([other for i, other in enumerate(layout.dims) if i != dim], shifts)
  return dataclasses.replace(layout, picked=layout.picked | set(old.axes))


def _moves(dim: Dim, start: Moving) -> dict[int, Position]:
  """A loop's position along a dimension; where the leaf fills a part only, in some iterations it is not there."""
  return dict.fromkeys(dim.axes if dim.is_full else (*dim.axes, NOWHERE), start)


def stacked(rows: Sequence[Layout]) -> Layout | None:
  """Rows put together along a new first dimension, if they are neighbours along one axis of the leaf, evenly spaced."""
  first = rows[0]
  moving = {axis for row in rows for axis in row.base if row.base[axis] != first.base.get(axis, 0)}
  alike = all((r.dims, r.picked, r.inner) == (first.dims, first.picked, first.inner) for r in rows)
  if not alike or first.unreadable or len(moving) != 1 or any(row.varies for row in rows):
    return None
  [axis] = moving
  steps = {b.base[axis] - a.base[axis] for a, b in itertools.pairwise(rows)}  # type: ignore[operator]
  if len(steps) != 1 or axis not in first.picked:
    return None
  front = Dim((Factor(axis, steps.pop(), len(rows)),), 0, len(rows))
  return dataclasses.replace(first, dims=(front, *first.dims), picked=first.picked - moving)


def reshape(layout: Layout, shape: Sequence[int]) -> Layout:
  """Axes split and merged, in the smallest blocks of dimensions that hold equally many positions."""
  picked = {axis for dim in range(len(layout.dims)) for axis in _single(layout, dim)}
  old = [dim._replace(factors=()) if _single(layout, i) else dim for i, dim in enumerate(layout.dims)]
  new, dims = list(shape), []
  if 0 in new:
    raise Unreadable("a value computed from it is empty")
  while old or new:
    block, sizes = [], []
    while not block or not sizes or math.prod(d.size for d in block) != math.prod(sizes):
      if new and (not sizes or not old or math.prod(d.size for d in block) > math.prod(sizes)):
        sizes.append(new.pop(0))
      elif old:
        block.append(old.pop(0))
      else:
        break
      if not old and not new and (not block or not sizes):
        break
    while old and old[0].size == 1 and not (new and new[0] == 1):
      block.append(old.pop(0))
    while new and new[0] == 1 and not (old and old[0].size == 1):
      sizes.append(new.pop(0))
    dims += [block[0]] if len(block) == 1 and sizes == [block[0].size] else _refactor(block, sizes)
  layout = layout.moved(dims)
  return dataclasses.replace(layout, picked=layout.picked | picked) if picked else layout


def _refactor(block: list[Dim], sizes: list[int]) -> list[Dim]:
  """The dimensions of one block, cut anew into `sizes`."""
  start, inner = 0, math.prod(dim.size for dim in block)
  for position, dim in enumerate(block):
    inner //= dim.size
    start += dim.start * inner
    if dim.extent > 1 and not all(later.is_full for later in block[position + 1 :]):
      raise Unreadable("a reshape mixes its axes with what is concatenated to it")
  factors = [factor for dim in block for factor in dim.factors]
  windows, extent, inner = [], math.prod(factor.size for factor in factors), math.prod(sizes)
  for size in sizes:  # where the part that the leaf fills begins in each new dimension, and how long it is there
    inner //= size
    if start % inner == 0 and extent % inner == 0:
      windows.append((start // inner, extent // inner))
      start, extent = 0, inner
    elif start // inner == (start + extent - 1) // inner:
      windows.append((start // inner, 1))
      start %= inner
    else:
      raise Unreadable("a reshape mixes its axes with what is concatenated to it")
  dims = []
  for (start, extent), size in zip(windows, sizes, strict=True):
    dims.append(Dim(_merged(_consume(factors, extent)), start, size))
  if factors and sizes:  # only factors of size 1 are left
    dims[-1] = dims[-1]._replace(factors=_merged([*dims[-1].factors, *factors]))
  return dims


def _consume(factors: list[Factor], size: int) -> list[Factor]:
  """Takes factors of total `size` off the front, splitting the last one if need be."""
  taken = []
  if size == 1 and factors and factors[0].size == 1:
    return [factors.pop(0)]
  while size > 1:
    first = factors.pop(0)
    if size % first.size == 0:
      taken.append(first)
      size //= first.size
    elif first.size % size == 0 and not isinstance(first.stride, tuple):
      rest = first.size // size
      taken.append(Factor(first.axis, first.stride * rest, size))
      factors.insert(0, first._replace(size=rest))
      size = 1
    else:
      raise Unreadable("a reshape cuts across its axes")
  return taken


def _merged(factors: Sequence[Factor]) -> tuple[Factor, ...]:
  """Factors that continue one another as one."""
  result: list[Factor] = []
  for factor in factors:
    last = result[-1] if result else None
    follows = last and last.axis == factor.axis and not isinstance(factor.stride, tuple)
    if last and follows and last.size > 1 < factor.size and last.stride == factor.stride * factor.size:
      result[-1] = factor._replace(size=last.size * factor.size)
    else:
      result.append(factor)
  return tuple(result)


def _take(factors: tuple[Factor, ...], offset: int, count: int) -> tuple[tuple[Factor, ...], dict[int, int]]:
  """Positions `offset` to `offset + count` of a dimension, and how far they are from its first."""
  if count == math.prod(factor.size for factor in factors):
    return factors, {}
  first, rest = factors[0], factors[1:]
  inner = math.prod(factor.size for factor in rest)
  if offset % inner == 0 and count % inner == 0:
    first, shifts = first.part(offset // inner, count // inner)
    return (first, *rest), shifts
  if offset // inner == (offset + count - 1) // inner:  # one position of the major factor
    taken, shifts = _take(rest, offset % inner, count)
    return taken, {**shifts, **{a: s + shifts.get(a, 0) for a, s in _shifts(first, offset // inner).items()}}
  raise Unreadable("a slice cuts across its axes")


def _shifts(factor: Factor, position: Any) -> dict[int, Any]:
  if factor.axis is None:
    return {}
  one = position * factor.stride if isinstance(factor.stride, int) else np.array(factor.stride)[position]
  return {factor.axis: one}


def _replaced(dims: tuple[Dim, ...], at: int, dim: Dim) -> list[Dim]:
  return [dim if i == at else old for i, old in enumerate(dims)]


def merge(*pieces: Sequence[tuple[int, Layout]]) -> tuple[tuple[int, Layout], ...]:
  """All `(leaf, layout)` pieces, once each, without those that say less than another of the same leaf.

  Weight normalisation divides a weight by its norm: the norm's piece has lost axes that the weight's still has.
  """
  if len(pieces) == 1:
    return tuple(pieces[0])
  found: dict[int, list[Layout]] = {}
  for leaf, layout in (piece for some in pieces for piece in some):
    known = found.setdefault(leaf, [])
    if not any(_covers(other, layout) for other in known):
      known[:] = [other for other in known if not _covers(layout, other)] + [layout]
  return tuple((leaf, layout) for leaf, layouts in found.items() for layout in layouts)


def _covers(larger: Layout, smaller: Layout) -> bool:
  if larger is smaller or larger.key() == smaller.key():
    return True
  if larger.unreadable or smaller.unreadable:
    return False
  nothing = [not dim.axes for dim in smaller.dims]
  if all(nothing) and not smaller.picked:
    return bool(larger.placed)
  same = all(empty or a == b for empty, a, b in zip(nothing, smaller.dims, larger.dims, strict=True))
  whole = larger.placed - smaller.placed
  at = lambda layout, axis: layout.base.get(axis, 0)
  return (
    same
    and all(axis in whole or at(smaller, axis) == at(larger, axis) for axis in smaller.placed | smaller.picked)
    and smaller.picked <= larger.picked | whole
  )
