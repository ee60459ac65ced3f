"""The abstract values of the reader: a constant, a weight or an activation. Knows nothing of jax."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from optax_ext._network.jaxpr import axes
from optax_ext._network.jaxpr.axes import Dim, Layout, Moving, Unreadable

ELSEWHERE = -1  # the axis of a factor along which a value varies, for reasons that its source does not know
Pieces = tuple[tuple[int, Layout], ...]  # (number of the leaf, where its axes are)
Change = Callable[[Layout], Layout | None]


@dataclasses.dataclass(eq=False, slots=True)
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


@dataclasses.dataclass(eq=False, slots=True)
class Node:
  """A product or a lookup.

  Attributes:
    order: Place in the program.
    depth: Products before it.
    axes: Of its result.
    members: The uses of the leaves that its weight was computed from; of a lookup none.
    normalised: Whether what follows divides each unit by a spread of its own.
  """

  order: int
  depth: Any
  axes: list[Axis]
  members: list[Any] = dataclasses.field(default_factory=list)
  normalised: bool = False


class Source(NamedTuple):
  """Where an activation comes from last, and where the axes of that result are now.

  Attributes:
    node: The product or lookup; `None` for an input, and for what mixes too much to say.
    layout: Of the node's result, whose axes are those of a leaf here.
    direct: Whether only shapes, casts, sums and constant factors came after, so that a parameter added is its bias.
    alone: Whether twice the node's result makes a multiple here, too. So it is until something from elsewhere is added
      or multiplied, or a function such as tanh is applied.
  """

  node: Node | None
  layout: Layout
  direct: bool = False
  alone: bool = True


@dataclasses.dataclass(eq=False, slots=True)
class Constant:
  """What depends on no parameter and on no input.

  Attributes:
    number: Itself, if it is a few small integers.
    uniform: Whether it is one number, or that number repeated.
    varies: The loop, read once, of which each iteration has its own.
  """

  number: np.ndarray | None = None
  uniform: bool = False
  varies: Moving | None = None


@dataclasses.dataclass(eq=False, slots=True)
class Weight:
  """What is computed from parameters, and from no input.

  Attributes:
    pieces: Of which leaves, in which layouts.
    query: Where it is a product of parameters, either of which an added bias may show to be a learned input.
    fed: Where it is a product with a constant: the same value read as what a layer makes of a constant input.
    root: `"root"` if it is a root, as of a running variance, `"inverse"` if it is the inverse of one.
  """

  pieces: Pieces
  query: "Query | None" = None
  fed: "Callable[[], Value] | None" = None
  root: str = ""


@dataclasses.dataclass(eq=False, slots=True)
class Active:
  """What depends on an input.

  Attributes:
    depth: Products on the longest path from the inputs; an array of such where a loop is rehearsed.
    source: Where it comes from last.
    origin: The value of which it is a part, or which it is shifted; itself by default.
    scaled: Where it is an activation times a weight, or a row of a weight that was looked up: these.
    spread: Where it is computed from one product's results, over all places: the product and what was computed.
  """

  depth: Any
  source: Source
  origin: "Active | None" = None
  scaled: "Scaled | None" = None
  spread: "Spread | None" = None


Value = Constant | Weight | Active


class Spread(NamedTuple):
  """A statistic of each unit of a product; `kind` says whether it is a `"root"`, or the `"inverse"` of one."""

  node: Node
  kind: str


@dataclasses.dataclass(eq=False, slots=True)
class Scaled:
  """Weights that meet an activation element by element: a product, once a shared dimension is summed over.

  Attributes:
    weight: In the layout of the value.
    active: The activation; `None` where the value itself is a row that an input chose.
    uses: The uses that were noted, and are replaced once it is a product.
    chosen: Factors of the axes that an input chose positions of.
    node: The product that it is part of already, as a sum of shifted activations.
  """

  weight: Weight
  active: Active | None
  uses: list[Any]
  chosen: tuple[axes.Factor, ...] = ()
  node: Node | None = None


@dataclasses.dataclass(eq=False, slots=True)
class Query:
  """A product of parameters. If a bias is added to it, one of its operands is an input that is learned (a query).

  Attributes:
    layout: Where the dimensions of its result are now, as axes.
    result: For each of them, the dimension of each operand that it comes from.
    read: Number of the operand that is the weight -> the value, read as that of a layer.
  """

  layout: Layout
  result: Sequence[tuple[int | None, int | None]]
  read: Callable[[int], Value]

  def moved(self, change: Change, move: Callable[[Value], Value]) -> "Query | None":
    """After its dimensions changed."""
    try:
      layout = change(self.layout)
    except Unreadable:
      return None
    return None if layout is None else Query(layout, self.result, lambda weight: move(self.read(weight)))

  def weight_of(self, bias: Layout) -> int | None:
    """The operand whose own dimensions are those of a bias; `None` where it is none, as it varies along others."""

    def of(side: int) -> list[Dim]:
      alone = [{axis for axis in dim.axes if self.result[axis][1 - side] is None} for dim in self.layout.dims]
      return [dim for dim, own in zip(bias.dims, alone, strict=True) if own]

    for weight in (1, 0):
      along, across = of(weight), of(1 - weight)
      varies = any(dim.axes for dim in along) and all(dim.axes for dim in along if dim.size > 1)
      if varies and across and not any(dim.axes for dim in across):
        return weight
    return None


def unknown_source(shape: Sequence[int], node: Node | None = None) -> Source:
  """Of a value about whose dimensions nothing is known but that it may vary along all of them."""
  return Source(node, axes.identity(shape))


def deepest(values: Sequence[Value]) -> Any:
  """The depth of what is computed from several values, of which one at least depends on an input."""
  depths = [value.depth for value in values if type(value) is Active]
  most = depths[0]
  for depth in depths[1:]:
    most = max(most, depth) if type(most) is int and type(depth) is int else np.maximum(most, depth)
  return most


def latest(actives: Sequence[Active]) -> Source:
  """The source of a sum: of the deepest of the values, the first product among equals, where it varies too."""
  if len(actives) == 1:
    return actives[0].source

  def rank(value: Active) -> tuple[Any, ...]:
    node = value.source.node
    return np.max(value.depth), node is not None, value.source.direct, 0 if node is None else -node.order

  chosen = max(actives, key=rank).source
  if any(value.source.node is not chosen.node or not value.source.alone for value in actives):
    chosen = chosen._replace(alone=False)
  dims = list(chosen.layout.dims)
  for value in actives:
    if value.source.layout is not chosen.layout:
      for i, (mine, theirs) in enumerate(zip(dims, value.source.layout.dims, strict=True)):
        if not mine.axes and theirs.axes:
          dims[i] = Dim((axes.Factor(ELSEWHERE, 1, mine.size),), 0, mine.size)
  return chosen if dims == list(chosen.layout.dims) else chosen._replace(layout=chosen.layout.moved(dims))


def moved_source(source: Source, change: Change, shape: Sequence[int], lossy: bool = False) -> Source:
  """The source of a value whose dimensions change; `lossy` if sums are taken, so that no bias can follow."""
  try:
    layout = change(source.layout)
  except Unreadable:
    layout = None
  if layout is None:
    return unknown_source(shape)
  return source._replace(layout=layout, direct=source.direct and not lossy)


def aligned(layout: Layout, source: Source) -> dict[int, list[Axis]]:
  """For each axis of a leaf, the axes of the source's result that it lies along."""
  found: dict[int, list[Axis]] = {}
  if source.node is None or len(layout.dims) != len(source.layout.dims):
    return found
  for mine, theirs in zip(layout.dims, source.layout.dims, strict=True):
    one_by_one = [f.size for f in mine.factors] == [f.size for f in theirs.factors]
    for i, f in enumerate(mine.factors):
      along = theirs.factors[i : i + 1] if one_by_one else theirs.factors
      if f.axis is not None and f.size > 1:
        found.setdefault(f.axis, []).extend(
          source.node.axes[g.axis] for g in along if g.axis is not None and g.axis >= 0
        )
  return found
