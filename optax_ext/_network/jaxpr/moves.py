"""Rules for reshape, transpose, slice, pad and sums over dimensions: they change dimensions and keep the content."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optax_ext._network.jaxpr import axes
from optax_ext._network.jaxpr.axes import Layout, Unreadable
from optax_ext._network.jaxpr.domain import Active, Spread, Value
from optax_ext._network.jaxpr.products import sum_of_scaled
from optax_ext._network.jaxpr.reader import Reader, Rule

Move = Callable[[Layout, Any, Sequence[int]], Layout | None]  # from the equation's parameters and the result's shape


def _slice(layout: Layout, p: Any, shape: Sequence[int]) -> Layout | None:
  return axes.slice_(layout, p["start_indices"], shape, p["strides"] or [1] * len(shape))


def _pad(layout: Layout, p: Any, shape: Sequence[int]) -> Layout:
  if any(inside for _, _, inside in p["padding_config"]):
    raise Unreadable("it is padded between its entries")
  return axes.pad(layout, [low for low, _, _ in p["padding_config"]], shape)


def _reshape(layout: Layout, p: Any, shape: Sequence[int]) -> Layout:
  return axes.reshape(layout if p.get("dimensions") is None else axes.select(layout, p["dimensions"]), shape)


MOVES: Mapping[str, Move] = {
  "transpose": lambda layout, p, shape: axes.select(layout, p["permutation"]),
  "reshape": _reshape,
  "broadcast_in_dim": lambda layout, p, shape: axes.broadcast(layout, p["shape"], p["broadcast_dimensions"]),
  "squeeze": lambda layout, p, shape: axes.drop(layout, p["dimensions"]),
  "slice": _slice,
  "rev": lambda layout, p, shape: axes.reverse(layout, p["dimensions"]),
  "pad": _pad,
  "tile": lambda layout, p, shape: axes.tile(layout, p["reps"]),
}


def move(reader: Reader, eqn: Any, ins: list[Value], change: Move) -> Sequence[Value]:
  """Of the first operand; what is padded with is a number."""
  shape = eqn.outvars[0].aval.shape
  return [reader.move(ins[0], lambda layout: change(layout, eqn.params, shape), shape)]


def reduce(reader: Reader, eqn: Any, ins: list[Value]) -> Sequence[Value]:
  """Sums, maxima and the like over dimensions, which may be statistics of a product's units, or a product's sum."""
  [value], dims, shape = ins, eqn.params["axes"], eqn.outvars[0].aval.shape
  if eqn.primitive.name == "reduce_sum" and (product := sum_of_scaled(reader, value, dims, shape)) is not None:
    return [product]
  result = reader.move(value, lambda layout: axes.drop(layout, dims), shape, lossy=True)
  if type(result) is Active and type(value) is Active:
    result.spread = value.spread or _over_places(value, dims)
  return [result]


def _over_places(value: Active, dims: Sequence[int]) -> Spread | None:
  """The statistic of a product's units that is taken over all of its places."""
  node, layout = value.source.node, value.source.layout
  if node is None or not node.members or not value.source.alone:
    return None
  gone = [node.axes[a] for d in dims for a in layout.dims[d].axes if a >= 0]
  kept = [node.axes[a] for d, dim in enumerate(layout.dims) if d not in dims for a in dim.axes if a >= 0]
  units = [axis for axis in node.axes if axis.kind == "unit"]
  whole = gone and not any(axis.kind == "unit" for axis in gone) and all(any(a is u for a in kept) for u in units)
  return Spread(node, "") if whole and units else None


RULES: Mapping[str, Rule] = {
  **{name: functools.partial(move, change=change) for name, change in MOVES.items()},
  **dict.fromkeys([f"reduce_{kind}" for kind in ("sum", "max", "min", "prod", "and", "or", "xor")], reduce),
}
