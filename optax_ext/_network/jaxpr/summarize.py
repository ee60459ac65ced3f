"""From the uses of each parameter in a computation to the facts about it. Knows of axes and uses, not of jax."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from optax_ext._common.paths import natural_key
from optax_ext._network.jaxpr.layouts import Factor, Layout

NEVER = 2**40  # the depth of what does not take place


@dataclasses.dataclass(eq=False)
class Axis:
  """An axis of the result of a product, or of a lookup.

  Attributes:
    kind: `"unit"` if it comes from the parameter alone, `"copy"` if it is a batch axis of the product, `"place"` if it
      comes from the activation alone (the examples, the positions in an image).
    parent: The axis of an earlier result that it continues.
    copied: Whether a later product takes it as a batch axis: so does the output of `vmap`, whose first layer sees one
      input for all copies and has no batch axis itself.
  """

  kind: str
  parent: "Axis | None" = None
  copied: bool = False

  def mark(self) -> None:
    """Notes that a product downstream takes the axis as a batch axis."""
    axis: Axis | None = self
    while axis is not None and not axis.copied:
      axis.copied, axis = True, axis.parent

  @property
  def is_copy(self) -> bool:
    """Whether it counts copies of a layer."""
    return self.kind == "copy" or self.copied or (self.parent is not None and self.parent.is_copy)


@dataclasses.dataclass(eq=False)
class Node:
  """A product or a lookup; `axes` are those of its result, `members` the leaves that its weight was computed from."""

  order: int
  depth: Any
  axes: list[Axis]
  members: list["Use"] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(eq=False)
class Use:
  """One place of the computation where a leaf meets a value that depends on an input.

  Attributes:
    leaf: Number of the leaf.
    kind: `"product"`, `"bias"` (added to a product), `"elementwise"`, `"lookup"` or `"unseen"`.
    order: Place in the program.
    depth: Products before it; an int, or an array with one axis per enclosing loop and a last one for loops left.
    layout: Where the leaf's axes are in the value that is used; arrays as `depth`.
    node: The product, or the one that a bias is added to, or a lookup.
    sums: Factors that the product sums over; those of lookups that are looked up.
    batch: Factors that index copies.
    axes: For axes of the leaf, those of the node's result that they lie along.
    window: Which part of the product's weight the leaf fills: along its copies, and along its other axes.
    macs: Multiply-accumulates, all copies and iterations together.
    reason: Why it is unseen.
  """

  leaf: int
  kind: str
  order: int
  depth: Any
  layout: Layout
  node: Node | None = None
  sums: Sequence[Factor] = ()
  batch: Sequence[Factor] = ()
  axes: dict[int, list[Axis]] = dataclasses.field(default_factory=dict)
  window: tuple[Any, Any] = ((), ())
  macs: float = 0
  reason: str = ""

  def leave_loop(self, length: int) -> "Use":
    """The use seen from outside the innermost loop.

    A leaf that the loop indexes has one use for each iteration, all others the one of least depth.
    """
    present, depth = self.layout.present, self.depth
    times = length if present is None else length * float(np.mean(present))
    if present is not None:
      depth = np.where(present, depth, NEVER)
    if any(_varies(at) for at in self.layout.base.values()):
      arrays = np.broadcast_arrays(depth, np.zeros((length, 1), int), *self.layout.base.values())
      flat = [array.reshape(*array.shape[:-2], -1) for array in arrays]
      layout = dataclasses.replace(self.layout, base=dict(zip(self.layout.base, flat[2:], strict=True)), present=None)
      return dataclasses.replace(self, depth=flat[0], layout=layout, macs=self.macs * times)
    layout = dataclasses.replace(
      self.layout.per_loop(lambda at: at[..., 0, :] if np.ndim(at) > 1 else at), present=None
    )
    return dataclasses.replace(
      self, depth=depth.min(axis=-2) if np.ndim(depth) > 1 else depth, layout=layout, macs=self.macs * times
    )

  @property
  def is_indexed(self) -> bool:
    """Whether the innermost loop indexes the leaf."""
    return any(_varies(at) for at in [*self.layout.base.values(), self.layout.present])

  def least(self) -> int:
    """Its least depth."""
    return int(np.min(self.depth))

  def described(self) -> str:
    """For the table: the kind, and the depths."""
    depth = np.unique(self.depth)
    depth = depth[depth < NEVER]  # iterations that use it
    return f"{self.kind}@{depth[0]}" + (f"..{depth[-1]}" if depth.size > 1 else "")


def _varies(at: Any) -> bool:
  return np.ndim(at) > 1 and at.shape[-2] > 1


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
  uses: tuple[str, ...] = ()
  note: str = ""


def summarize(paths: Sequence[str], shapes: Sequence[tuple[int, ...]], uses: Sequence[Use]) -> list[Findings]:
  """The findings about every leaf, in order."""
  of_leaf: list[list[Use]] = [[] for _ in paths]
  for use in uses:
    if use.least() < NEVER:
      of_leaf[use.leaf].append(use)
  products = [[use for use in mine if use.kind == "product"] for mine in of_leaf]
  main = [min(mine, key=lambda use: (use.least(), use.order), default=None) for mine in products]
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
    layout, self.note = use.layout, ""
    placed = {axis for dim in layout.dims for axis in dim.axes}
    self.scanned = tuple(sorted(layout.picked - placed))
    batch = {
      axis for axis in placed if _size(use.batch, axis) == shape[axis] and any(f.axis == axis for f in use.batch)
    }
    sums = use.sums or [f for f in layout.inner if placed]  # W = A·B: B's own sum is inside, the input meets A
    self.contracting = tuple(axis for axis in range(len(shape)) if self._is_summed(axis, shape[axis], sums, products))
    first = min(self.contracting, default=len(shape))
    copies = {axis for axis, along in use.axes.items() if axis < first and along and all(a.is_copy for a in along)}
    self.stacked = tuple(sorted({*self.scanned, *batch, *(copies - set(self.contracting))}))
    count = math.prod(size for axis, size in enumerate(shape) if axis not in self.stacked)
    self.connections, self.copies = count, max(1, math.prod(shape[axis] for axis in self.stacked))
    partial = sorted({f.axis for f in sums if f.axis is not None} - set(self.contracting))
    if partial:
      self.contracting = ()
      self.note = f"axis {partial[0]} is only partly contracted"
    elif any(set(self._sums(other)) != set(self._sums(use)) for other in products if other.node is use.node):
      self.contracting = ()
      self.note = "one product contracts it in two ways"

  @staticmethod
  def _sums(use: Use) -> list[int]:
    return [f.axis for f in use.sums if f.axis is not None]

  @staticmethod
  def _is_summed(axis: int, size: int, sums: Sequence[Factor], products: list[Use]) -> bool:
    """Whether an axis is summed over as a whole, in one product or in several that share it."""
    if not any(f.axis == axis for f in sums):
      return False
    if _size(sums, axis) == size:
      return True
    covered = np.zeros(size, bool)
    for use in products:
      positions = np.unique(use.layout.base.get(axis, 0))
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
  told = tuple(use.described() for use in sorted(uses, key=lambda use: (use.least(), use.order)))
  unseen = sorted({use.reason for use in uses if use.kind == "unseen"})
  seen = [use for use in uses if use.kind != "unseen"]
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
    first = min(seen, key=lambda use: (use.least(), use.order))
    placed = {axis for dim in first.layout.dims for axis in dim.axes}
    scanned = tuple(sorted(first.layout.picked - placed)) if first.kind != "lookup" else ()
    looked_up = min((f.axis for f in first.sums if f.axis is not None), default=len(shape))
    copies = {
      axis for axis, along in first.axes.items() if axis < looked_up and along and all(a.is_copy for a in along)
    }
    stacked = tuple(sorted({*scanned, *copies, *(f.axis for f in first.batch if f.axis is not None)}))
    if first.kind == "bias" and not any(
      a.kind == "place" and not a.is_copy for along in first.axes.values() for a in along
    ):
      assert first.node is not None
      beside = [use for use in first.node.members if use.window[0][0] == first.window[0][0]]  # in the same iterations
      layer = layers[(beside or first.node.members)[0].leaf]
  depth, missing = _depth(shape, scanned, seen)
  if missing:
    notes.append(f"{missing} of its {math.prod(shape[axis] for axis in scanned)} layers are never used")
  return Findings(
      True, None if layer is None else paths[layer[0]], depth, contracting or None, stacked, scanned,
      0 if layer is None else layer[1], macs, told, "; ".join(notes),
  )  # fmt: skip


def _depth(shape: tuple[int, ...], scanned: tuple[int, ...], uses: list[Use]) -> tuple[int | np.ndarray, int]:
  """The least depth of each layer in the leaf, and how many of them have no use."""
  if not scanned:
    return min(use.least() for use in uses), 0
  depth = np.full([shape[axis] for axis in scanned], NEVER)
  for use in uses:
    placed = {axis for dim in use.layout.dims for axis in dim.axes}
    if set(scanned) <= use.layout.picked - placed:
      at = np.broadcast_arrays(use.depth, *(use.layout.base[axis] for axis in scanned))
      np.minimum.at(depth, tuple(at[1:]), at[0])
    else:
      depth = np.minimum(depth, use.least())
  missing = depth == NEVER
  depth[missing] = 0 if missing.all() else depth[~missing].min()
  return depth, int(missing.sum())
