"""Rules for computed slices, gathers and concatenation: they pick positions, or put values side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from optax_ext._network.jaxpr import axes, constants
from optax_ext._network.jaxpr.axes import Dim, Layout, Unreadable
from optax_ext._network.jaxpr.domain import (
  Active,
  Axis,
  Constant,
  Node,
  Scaled,
  Value,
  Weight,
  deepest,
  unknown_source,
)
from optax_ext._network.jaxpr.reader import Reader, Rule, active, fed, joined, lost

NOT_READ = "it is indexed by a number that the program computes in a way that is not read"
BY_ARRAY = "it is indexed by an array of constants"


def _is_active(values: Sequence[Value]) -> bool:
  return any(type(value) is Active for value in values)


def _placed(reader: Reader, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
  """Parameters put beside, or into, a value that depends on an input: a class token, a scatter."""
  ins = [fed(value) for value in ins]
  depth = deepest(ins)
  for value in ins:
    if type(value) is Weight:
      reader.note("elementwise", value, depth - 1)
  return [active(depth, var) for var in eqn.outvars]


def concatenate(reader: Reader, eqn: Any, ins: list[Value]) -> Sequence[Value]:
  """Side by side; `stack` along a new dimension."""
  out, name = eqn.outvars[0].aval.shape, eqn.primitive.name
  if _is_active(ins):
    return [_parts_of_one(ins, out)] if type(ins[0]) is not Weight and _origins(ins) else _placed(reader, eqn, ins)
  dim, start, pieces = eqn.params["dimension" if name == "concatenate" else "axis"], 0, []
  for value, var in zip(ins, eqn.invars, strict=True):
    low, shape = [0] * len(out), list(var.aval.shape)
    low[dim] = start
    if name == "stack":
      shape.insert(dim, 1)
    where = [d for d in range(len(out)) if name == "concatenate" or d != dim]
    widened = lambda layout, shape=shape, where=where, low=low: axes.pad(axes.broadcast(layout, shape, where), low, out)
    pieces.append(reader.move(value, widened, out))
    start += shape[dim]
  return [joined(pieces)]


def _origins(ins: Sequence[Value]) -> bool:
  """Whether the activations among some values are parts of one, and the others constants: a roll, padding."""
  origins = {id(value.origin) for value in ins if type(value) is Active and value.origin}
  return len(origins) == 1 and all(type(v) is Constant or (type(v) is Active and v.origin) for v in ins)


def _parts_of_one(ins: Sequence[Value], shape: Sequence[int]) -> Active:
  """An activation that is shifted: it has the source of the whole if it has its shape."""
  first = next(value for value in ins if type(value) is Active)
  whole = first.origin
  assert whole is not None
  alike = [dim.size for dim in whole.source.layout.dims] == list(shape)
  source = whole.source._replace(direct=False) if alike else unknown_source(shape)
  return Active(deepest(ins), source, whole)


def split(reader: Reader, eqn: Any, ins: list[Value]) -> Sequence[Value]:
  """The opposite."""
  dim, start, results = eqn.params["axis"], 0, []
  for var in eqn.outvars:
    starts, shape = [0] * len(var.aval.shape), var.aval.shape
    starts[dim] = start
    cut = lambda layout, starts=starts, shape=shape: axes.slice_(layout, starts, shape, [1] * len(starts))
    results.append(reader.move(ins[0], cut, shape))
    start += shape[dim]
  return results


def unstack(reader: Reader, eqn: Any, ins: list[Value]) -> Sequence[Value]:
  """The rows along an axis, each without the axis."""
  axis = eqn.params["axis"]
  return [
    reader.move(ins[0], lambda layout, i=i: axes.row(layout, axis, i), var.aval.shape)
    for i, var in enumerate(eqn.outvars)
  ]


def dynamic_slice(reader: Reader, eqn: Any, ins: list[Value]) -> Sequence[Value]:
  """A part from computed positions on: one layer of many, or a lookup."""
  (value, *starts), sizes = ins, eqn.params["slice_sizes"]
  whole, out = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
  moving = [d for d in range(len(sizes)) if sizes[d] != whole[d]]
  if _is_active([starts[d] for d in moving]):
    return [_lookup(reader, value, moving, deepest(ins), out)]
  if type(value) is Constant:
    return [constants.UNKNOWN] if not _is_active(ins) else [active(deepest(ins), eqn.outvars[0])]
  positions = [0 if d not in moving else _position(starts[d], whole[d] - sizes[d]) for d in range(len(sizes))]
  return [reader.move(value, lambda layout: axes.slice_(layout, _checked(positions), sizes, [1] * len(sizes)), out)]


UNTOLD = object()


def _position(value: Value, last: int, at: Any = ()) -> Any:
  """A position inside the array, as jax has it."""
  assert type(value) is Constant
  if value.varies:
    return value.varies
  return UNTOLD if value.number is None else int(np.clip(value.number[at], 0, max(0, last)))


def _checked(positions: Sequence[Any]) -> list[axes.Position]:
  """The positions, all of them told."""
  if any(position is UNTOLD for position in positions):
    raise Unreadable(NOT_READ)
  return list(positions)


def _lookup(
  reader: Reader,
  value: Value,
  dims: Sequence[int],
  depth: Any,
  out: Sequence[int],
  result: Sequence[int | None] = (),
  copies: Sequence[int] = (),
) -> Active:
  """Positions that depend on an input, along `dims`; dimension i of the result comes from `result[i]`."""
  if type(value) is not Weight:
    return Active(depth, unknown_source(out))
  kinds = ["unit" if result and result[i] is not None else "place" for i in range(len(out))]
  node = Node(reader.order, depth, [Axis(kind) for kind in kinds])
  uses, pieces, chosen = [], [], []
  for leaf, layout in value.pieces:
    if layout.unreadable:
      uses.append(reader.note_leaf("lookup", leaf, layout, depth - 1))
      continue
    factors = lambda some, layout=layout: [f for dim in some for f in layout.dims[dim].factors if f.axis is not None]
    along: dict[int, list[Axis]] = {}
    for new, dim in enumerate(result):
      for f in layout.dims[dim].factors if dim is not None and dim not in dims else ():
        if f.axis is not None:
          along.setdefault(f.axis, []).append(node.axes[new])
    uses.append(
      reader.note_leaf(
        "lookup", leaf, layout, depth - 1, node=node, sums=factors(dims), batch=factors(copies), axes=along
      )
    )
    rows = [axes.filler(n) if d is None or d in dims else layout.dims[d] for n, d in zip(out, result, strict=False)]
    pieces.append((leaf, layout.moved(rows)))
    chosen += factors(dims)
  scaled = Scaled(Weight(tuple(pieces)), None, uses, tuple(chosen)) if result and pieces else None
  return Active(depth, unknown_source(out, node), None, scaled)


def gather(reader: Reader, eqn: Any, ins: list[Value]) -> Sequence[Value]:
  """Indexing with arrays: an embedding, or one layer of many."""
  value, index = ins
  numbers, sizes, out = eqn.params["dimension_numbers"], eqn.params["slice_sizes"], eqn.outvars[0].aval.shape
  batched = tuple(getattr(numbers, "operand_batching_dims", ()))
  gone = {*numbers.collapsed_slice_dims, *batched}
  kept = [d for d in range(len(sizes)) if d not in gone]
  whole = eqn.invars[0].aval.shape
  if type(index) is not Constant or type(value) is not Weight:
    if not _is_active(ins):  # constants picked by parameters
      return [joined(ins)] if type(index) is not Weight else reader.unknown(eqn, ins, "it is an index")
    from_dims: list[int | None] = [None] * len(out)
    for new, d in zip(numbers.offset_dims, kept, strict=True):
      from_dims[new] = d
    if type(index) is Weight:
      reader.note("unseen", index, deepest(ins), reason="it is an index")
    if type(index) is Constant:
      return [_rows_of_active(value, numbers, out, deepest(ins))]
    looked_up = [d for d in numbers.start_index_map if sizes[d] != whole[d]]
    return [_lookup(reader, value, looked_up, deepest(ins), out, from_dims, batched)]
  rank = eqn.invars[1].aval.ndim
  if rank == 1 and not batched:
    positions: list[Any] = [0] * len(sizes)
    for i, d in enumerate(numbers.start_index_map):
      positions[d] = _position(index, whole[d] - sizes[d], (..., i))

    def picked(layout: Layout) -> Layout | None:
      at = _checked(positions)
      for d in sorted(gone, reverse=True):
        cut = axes.row(layout, d, at[d])
        if cut is None:
          return None
        layout = cut
      rest = [d for d in range(len(sizes)) if d not in gone]
      return axes.slice_(layout, [at[d] for d in rest], [sizes[d] for d in rest], [1] * len(rest))

    return [reader.move(value, picked, out)]
  return [reader.move(value, lambda layout: _constant_rows(layout, index, numbers, sizes, out), out)]


def _rows_of_active(value: Value, numbers: Any, out: Sequence[int], depth: Any) -> Active:
  """Positions of an activation, picked by constants."""
  origin = value.origin or value if type(value) is Active else None
  return Active(depth, unknown_source(out), origin)


def _constant_rows(layout: Layout, index: Constant, numbers: Any, sizes: Sequence[int], out: Sequence[int]) -> Layout:
  """Rows of a parameter picked by an array of constants: some or all of them, each once, in any order."""
  one = len(numbers.start_index_map) == 1 and numbers.collapsed_slice_dims == numbers.start_index_map
  if index.number is None or not one or getattr(numbers, "operand_batching_dims", ()):
    raise Unreadable(BY_ARRAY)
  [dim], table = numbers.start_index_map, index.number[..., 0]
  places = [d for d in range(len(out)) if d not in numbers.offset_dims]
  rest = iter([d for d in range(len(sizes)) if d != dim])
  new = _by_table(layout, dim, table)
  if isinstance(new, Layout):  # one row of positions
    layout, new = new, [new.dims[dim]]
  dims = [new.pop(0) if d in places else layout.dims[next(rest)] for d in range(len(out))]
  return layout.moved(dims)


def _by_table(layout: Layout, dim: int, table: np.ndarray) -> Layout | list[Dim]:
  """The dimension that an array of positions picks from, or, of a table, a dimension for each of its own.

  In a table of which each line holds all positions, each line is the whole axis in an order of its own.
  """
  if table.ndim == 1:
    whole = np.array_equal(table, np.arange(layout.dims[dim].size))
    return layout if whole else _reordered(layout, dim, table)
  old = layout.dims[dim]
  for along, size in enumerate(table.shape):
    lines = np.moveaxis(table, along, -1).reshape(-1, size)
    if len(old.factors) == 1 and old.is_full and size == old.size and np.all(np.sort(lines) == np.arange(size)):
      line = Dim((old.factors[0].reordered(lines[0]),), 0, size)
      return [line if d == along else axes.filler(n) for d, n in enumerate(table.shape)]
  raise Unreadable(BY_ARRAY)


def _reordered(layout: Layout, dim: int, index: np.ndarray) -> Layout:
  """Some positions of a dimension, each once; an even step forward is a slice."""
  old, steps = layout.dims[dim], np.unique(np.diff(index))
  if len(index) < 2 or len(set(index.tolist())) < len(index):
    raise Unreadable(BY_ARRAY)
  if steps.size == 1 and steps[0] > 0:
    starts, lengths, strides = [0] * len(layout.dims), [d.size for d in layout.dims], [1] * len(layout.dims)
    starts[dim], lengths[dim], strides[dim] = int(index[0]), len(index), int(steps[0])
    cut = axes.slice_(layout, starts, lengths, strides)
    assert cut is not None
    return cut
  if len(old.factors) != 1 or not old.is_full:
    raise Unreadable(BY_ARRAY)
  new = Dim((old.factors[0].reordered(index),), 0, len(index))
  return layout.moved([new if d == dim else other for d, other in enumerate(layout.dims)])


def dynamic_update_slice(reader: Reader, eqn: Any, ins: list[Value]) -> Sequence[Value]:
  """A part replaced."""
  target, update, *starts = ins
  if _is_active(ins):
    return _placed(reader, eqn, ins)
  shapes = [v.aval.shape for v in eqn.invars[:2]]
  positions = [_position(s, whole - part) for s, whole, part in zip(starts, *shapes, strict=True)]

  def widened(layout: Layout) -> Layout:
    at = _checked(positions)
    if any(isinstance(start, axes.Moving) for start in at):
      raise Unreadable("a loop writes it to several places")
    return axes.pad(layout, at, shapes[0])  # type: ignore[arg-type]

  return [joined([target, reader.move(update, widened, shapes[0])])]


def scatter(reader: Reader, eqn: Any, ins: list[Value]) -> Sequence[Value]:
  """Positions replaced, or added to: the entries of a weight stay where they are, what is put among them is lost."""
  if _is_active(ins):
    return _placed(reader, eqn, ins)
  target, positions, put = ins
  why = f"it enters {eqn.primitive.name}, whose positions are not followed"
  if type(target) is not Weight or type(positions) is not Constant:
    raise Unreadable(why)
  mine = {leaf for leaf, _ in target.pieces}
  others = lost([put], why).pieces if type(put) is Weight else ()
  return [Weight((*target.pieces, *(piece for piece in others if piece[0] not in mine)))]


RULES: Mapping[str, Rule] = {
  "concatenate": concatenate,
  "stack": concatenate,
  "split": split,
  "unstack": unstack,
  "dynamic_slice": dynamic_slice,
  "gather": gather,
  "dynamic_update_slice": dynamic_update_slice,
} | dict.fromkeys(["scatter", "scatter-add", "scatter-sub", "scatter-mul", "scatter-max", "scatter-min"], scatter)
