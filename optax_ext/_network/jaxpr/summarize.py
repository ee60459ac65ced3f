"""Turns the uses of each parameter in a computation into facts about it. Knows axes and uses, nothing of jax."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from optax_ext._common.paths import natural_key
from optax_ext._network.jaxpr.axes import Factor, Layout, Moving
from optax_ext._network.jaxpr.domain import Axis, Node

NEVER = 2**40  # the depth of what does not take place


@dataclasses.dataclass(eq=False, slots=True)
class Use:
  """One place of the computation where a leaf meets a value that depends on an input.

  Attributes:
    leaf: Number of the leaf.
    kind: `"product"`, `"bias"` (added to a product), `"positions"` (added to what has no product's axes alone),
      `"elementwise"`, `"lookup"`, `"backward"` (in a derivative), `"unseen"`; `""` for a use that another one replaces.
    order: Place in the program.
    site: The equation, the same in all iterations of a loop.
    depth: Products before it.
    layout: Where the leaf's axes are in the value that is used.
    node: The product, or the one that a bias is added to, or a lookup.
    sums: Factors that the product sums over; those of lookups that are looked up.
    batch: Factors that index copies.
    axes: For axes of the leaf, those of the node's result that they lie along.
    window: Which part of the product's weight the leaf fills: along its copies, and along its other axes.
    groups: Into how many groups the product's outputs divide.
    macs: Multiply-accumulates, all copies together.
    reason: Why it is unseen.
  """

  leaf: int
  kind: str
  order: int
  site: Any
  depth: int
  layout: Layout
  node: Node | None = None
  sums: Sequence[Factor] = ()
  batch: Sequence[Factor] = ()
  axes: dict[int, list[Axis]] = dataclasses.field(default_factory=dict)
  window: tuple[Any, Any] = ((), ())
  groups: int = 1
  macs: float = 0
  reason: str = ""


class Findings(NamedTuple):
  """What the uses say of one leaf, named as in `LeafFacts`. Without `seen` only `note` and `uses` mean something."""

  seen: bool
  layer: str | None = None
  depth: int | np.ndarray = 0
  contracting_axes: tuple[int, ...] | None = None
  stacked_axes: tuple[int, ...] = ()
  scanned_axes: tuple[int, ...] = ()
  connections: int = 0
  macs: int = 0
  groups: int = 1
  normalised: bool = False
  uses: tuple[str, ...] = ()
  note: str = ""


def summarize(
  paths: Sequence[str], shapes: Sequence[tuple[int, ...]], trained: Sequence[bool], uses: Sequence[Use]
) -> list[Findings]:
  """The findings about every leaf, in order; what is not trained, a mask or a counter, is no layer beside what is."""
  of_leaf: list[list[Use]] = [[] for _ in paths]
  for use in uses:
    if use.kind == "bias" and any(a.kind == "place" and not a.is_copy for along in use.axes.values() for a in along):
      use.kind = "positions"
    if use.kind == "product" and use.node is not None and not trained[use.leaf]:
      members = [member for member in use.node.members if trained[member.leaf]]
      if members:
        use.kind, use.node.members = "elementwise", members
    if use.kind:
      of_leaf[use.leaf].append(use)
  products = [[use for use in mine if use.kind == "product"] for mine in of_leaf]
  main = [min(mine, key=lambda use: (use.depth, use.order), default=None) for mine in products]
  weights = [
    None if use is None else _Weight(use, shape, mine) for use, shape, mine in zip(main, shapes, products, strict=True)
  ]
  sizes = [0 if weight is None else weight.connections for weight in weights]
  nodes = [None if use is None else use.node for use in main]
  layers = [None if use is None else _layer(use, paths, sizes, nodes) for use in main]
  return [_findings(*what, layers, paths) for what in zip(range(len(paths)), shapes, of_leaf, weights, strict=True)]


class _Weight:
  """What the product of least depth, and the others, say of the axes of a leaf."""

  def __init__(self, use: Use, shape: tuple[int, ...], products: list[Use]):
    self.groups = use.groups
    self.normalised = all(other.node is not None and other.node.normalised for other in products)
    if use.layout.unreadable:
      self.scanned = self.stacked = self.contracting = ()
      self.connections, self.copies = math.prod(shape), 1
      self.note = f"its axes are not known: {use.layout.unreadable}"
      return
    layout, self.note = use.layout, ""
    summed = {f.axis for f in use.sums}
    self.scanned = tuple(sorted(layout.picked - layout.placed - summed))
    batch = {f.axis for f in use.batch if f.axis is not None and _size(use.batch, f.axis) == shape[f.axis]}
    sums = use.sums or [f for f in layout.inner if layout.placed]  # W = A·B: B's own sum is inside, the input meets A
    self.contracting = tuple(axis for axis in range(len(shape)) if _is_summed(axis, shape[axis], sums, products))
    first = min(self.contracting, default=len(shape))
    copies = {axis for axis, along in use.axes.items() if axis < first and along and all(a.is_copy for a in along)}
    self.stacked = tuple(sorted({*self.scanned, *batch, *(copies - set(self.contracting))}))
    count = math.prod(size for axis, size in enumerate(shape) if axis not in self.stacked)
    self.connections, self.copies = count, max(1, math.prod(shape[axis] for axis in self.stacked))
    partial = sorted({f.axis for f in sums if f.axis is not None} - set(self.contracting))
    if partial:
      self.contracting = ()
      self.note = f"axis {partial[0]} is only partly contracted"
    elif any(_summed(other) != _summed(use) for other in products if other.node is use.node):
      self.contracting = ()
      self.note = "one product contracts it in two ways"


def _summed(use: Use) -> set[int]:
  return {f.axis for f in use.sums if f.axis is not None}


def _is_summed(axis: int, size: int, sums: Sequence[Factor], products: list[Use]) -> bool:
  """Whether an axis is summed over as a whole, in one product or in several that share it."""
  if not any(f.axis == axis for f in sums):
    return False
  if _size(sums, axis) == size:
    return True
  covered = np.zeros(size, bool)
  for use in products:
    positions = np.array([0 if isinstance(at := use.layout.base.get(axis, 0), Moving) else at])
    for f in [f for f in use.sums if f.axis == axis]:
      positions = np.add.outer(positions, f.positions()).ravel()
    if any(f.axis == axis for f in use.sums):
      covered[positions[(positions >= 0) & (positions < size)]] = True
  return bool(covered.all())


def _size(factors: Sequence[Factor], axis: int) -> int:
  return math.prod(f.size for f in factors if f.axis == axis)


def _layer(use: Use, paths: Sequence[str], sizes: Sequence[int], nodes: Sequence[Node | None]) -> tuple[int, int]:
  """The leaf that a product's layer is named for, and the layer's connections.

  Where leaves fill the weight side by side (an LSTM's gates), all count; where they fill the same part of it (W + A·B),
  the larger, a product of parameters for the sum of its factors. A leaf whose own layer is another product (its
  `nodes`) gives no name.
  """
  assert use.node is not None
  parts: dict[Any, list[Use]] = {}
  for member in use.node.members:
    if member.window[0] == use.window[0]:
      parts.setdefault(member.window[1], []).append(member)
  winners: set[int] = set()
  for members in parts.values():
    whole = {m.leaf for m in members if m.sums and not m.layout.inner}
    inner = {m.leaf for m in members if m.layout.inner and any(dim.axes for dim in m.layout.dims)}
    largest = {max(whole, key=lambda leaf: (sizes[leaf], -order[leaf]))} if (order := _natural(whole, paths)) else set()
    candidates = [largest, inner - whole, {m.leaf for m in members} if not whole | inner else set()]
    winners |= max(candidates, key=lambda leaves: sum(sizes[leaf] for leaf in leaves))
  winners = winners or {use.leaf}
  named = [leaf for leaf in winners if nodes[leaf] is use.node] or [use.leaf]
  return min(named, key=lambda leaf: natural_key(paths[leaf])), sum(sizes[leaf] for leaf in winners)


def _natural(leaves: set[int], paths: Sequence[str]) -> dict[int, int]:
  return {leaf: i for i, leaf in enumerate(sorted(leaves, key=lambda leaf: natural_key(paths[leaf])))}


def _findings(
  leaf: int,
  shape: tuple[int, ...],
  uses: list[Use],
  weight: _Weight | None,
  layers: Sequence[tuple[int, int] | None],
  paths: Sequence[str],
) -> Findings:
  unseen = sorted({use.reason for use in uses if use.kind == "unseen"})
  seen = [use for use in uses if use.kind != "unseen"]
  told = _told(uses)
  if not seen:
    return Findings(False, uses=told, note="; ".join(unseen) or "it is never used")
  notes = [f"besides what is shown, {reason}" for reason in unseen]
  layer: tuple[int, int] | None = None
  contracting: tuple[int, ...] = ()
  macs = 0
  if weight is not None:
    layer, contracting, stacked, scanned = layers[leaf], weight.contracting, weight.stacked, weight.scanned
    macs = int(sum({id(use.node): use.macs for use in uses if use.kind == "product"}.values()) / weight.copies)
    notes += [weight.note] * bool(weight.note)
  else:
    first = min(seen, key=lambda use: (use.kind == "backward", use.depth, use.order))
    scanned = tuple(sorted(first.layout.picked - first.layout.placed))
    looked_up = min((f.axis for f in first.sums if f.axis is not None), default=len(shape))
    copies = {
      axis for axis, along in first.axes.items() if axis < looked_up and along and all(a.is_copy for a in along)
    }
    stacked = tuple(sorted({*scanned, *copies, *(f.axis for f in first.batch if f.axis is not None)}))
    if first.kind == "bias":
      layer = _layer_of_bias(first, layers)
  depth, missing = _depth(shape, scanned, seen)
  if missing:
    notes.append(f"{missing} of its {math.prod(shape[axis] for axis in scanned)} layers are never used")
  return Findings(
      True, None if layer is None else paths[layer[0]], depth, contracting or None, stacked, scanned,
      0 if layer is None else layer[1], macs, 1 if weight is None else weight.groups,
      weight is not None and weight.normalised, told, "; ".join(notes),
  )  # fmt: skip


def _layer_of_bias(use: Use, layers: Sequence[tuple[int, int] | None]) -> tuple[int, int] | None:
  """The layer of the product that a bias is added to."""
  assert use.node is not None
  members = [member for member in use.node.members if layers[member.leaf] is not None] or use.node.members
  return layers[members[0].leaf] if members else None


def _told(uses: Sequence[Use]) -> tuple[str, ...]:
  """For the table: each use with its depth, those of the same place in a loop with the least and the largest."""
  of_site: dict[Any, list[Use]] = {}
  for use in sorted(uses, key=lambda use: (use.depth, use.order)):
    of_site.setdefault((use.kind, use.site), []).append(use)
  told = []
  for (kind, _), mine in of_site.items():
    low, high = mine[0].depth, mine[-1].depth
    told.append(f"{kind}@{low}" + (f"..{high}" if high > low else ""))
  return tuple(told)


def _depth(shape: tuple[int, ...], scanned: tuple[int, ...], uses: list[Use]) -> tuple[int | np.ndarray, int]:
  """The least depth of each layer in the leaf, and how many of them have no use.

  The depth of a weight is that of its products and lookups, whatever else it is used for (a penalty, a determinant).
  """
  if any(use.kind == "product" for use in uses):
    uses = [use for use in uses if use.kind in ("product", "lookup")]
  uses = [use for use in uses if use.kind != "backward"] or uses
  if not scanned:
    return min(use.depth for use in uses), 0
  depth = np.full([shape[axis] for axis in scanned], NEVER)
  for use in uses:
    if set(scanned) <= use.layout.picked - use.layout.placed:
      where: Any = [use.layout.base[axis] for axis in scanned]
      at = tuple(slice(None) if isinstance(position, Moving) else position for position in where)
      depth[at] = np.minimum(depth[at], use.depth)
    else:
      depth = np.minimum(depth, use.depth)
  missing = depth == NEVER
  depth[missing] = 0 if missing.all() else depth[~missing].min()
  return depth, int(missing.sum())
