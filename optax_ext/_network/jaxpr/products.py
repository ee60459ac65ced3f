"""Rules for products: matrix products and convolutions, and the same written out element by element.

A product of a weight with an activation is a layer. A product that contracts nothing is none: it scales.
"""

import dataclasses
import math
import types
from collections.abc import Mapping, Sequence
from typing import Any

from jax import lax

from optax_ext._network.jaxpr import axes
from optax_ext._network.jaxpr.axes import Dim, Factor, Layout, Unreadable
from optax_ext._network.jaxpr.domain import (
  Active,
  Axis,
  Change,
  Constant,
  Node,
  Query,
  Scaled,
  Source,
  Value,
  Weight,
  aligned,
  deepest,
  latest,
  moved_source,
  unknown_source,
)
from optax_ext._network.jaxpr.reader import Reader, Rule, joined

Pairs = Sequence[tuple[int | None, int | None]]


@dataclasses.dataclass(frozen=True)
class Product:
  """A product of two operands.

  Attributes:
    shape: Of the result.
    result: For each dimension of the result, the dimension of each operand that it comes from.
    roles: For each operand, what is done with its dimensions: `"sum"`, `"batch"`, `"part"` (summed, but not as a
      whole); others are of the output.
    groups: Into how many groups a convolution divides the output dimension of its second operand.
    macs: Multiply-accumulates.
  """

  shape: Sequence[int]
  result: Pairs
  roles: tuple[dict[int, str], dict[int, str]]
  groups: int
  macs: float

  def side(self, side: int, sums: bool = True) -> Change:
    """Where an operand's axes are in the result, if the product is no layer."""
    roles = self.roles[side] if sums else {}

    def change(layout: Layout) -> Layout:
      if "part" in roles.values():
        raise Unreadable("it is convolved with another parameter")
      dims = [
        axes.filler(n) if (dim := pair[side]) is None else layout.dims[dim]
        for n, pair in zip(self.shape, self.result, strict=True)
      ]
      if any(dim.size != n for dim, n in zip(dims, self.shape, strict=True)):
        raise Unreadable("it is convolved with another parameter")
      inner = tuple(f for d in roles if roles[d] == "sum" for f in layout.dims[d].factors if f.axis is not None)
      layout = layout.moved(dims)
      return dataclasses.replace(layout, inner=layout.inner + inner) if inner else layout

    return change


def read_product(reader: Reader, ins: Sequence[Value], product: Product) -> Value:
  """The result of a product, which is a layer if one operand is a weight and the other depends on an input."""
  kinds = [type(value) for value in ins]
  if Active not in kinds:
    return _of_weights(reader, ins, product)
  if Weight in kinds:
    side = kinds.index(Weight)
    return _layer(reader, ins[side], ins[1 - side], side, product)  # type: ignore[arg-type]
  for side in (1, 0):
    if (read := _with_chosen_rows(reader, ins, side, product)) is not None:
      return read
  actives = [
    Active(value.depth, moved_source(value.source, product.side(side, sums=False), product.shape, lossy=True))
    for side, value in enumerate(ins)
    if type(value) is Active
  ]
  return Active(deepest(actives), latest(actives))


def _of_weights(reader: Reader, ins: Sequence[Value], product: Product) -> Value:
  """A product of parameters, or of parameters and constants."""
  moved = [reader.move(value, product.side(side), product.shape) for side, value in enumerate(ins)]
  weight = joined(moved)
  if not weight.pieces:
    return moved[0] if type(moved[0]) is Constant else moved[1]
  if reader.backward:
    return weight
  if all(type(value) is Weight for value in ins):

    def as_layer(side: int) -> Value:
      reader.note("elementwise", ins[1 - side], reader.nothing - 1)  # type: ignore[arg-type]
      return _layer(reader, ins[side], _input(reader, product, 1 - side), side, product)  # type: ignore[arg-type]

    weight.query = Query(axes.identity(product.shape), product.result, as_layer)
  elif contracts(product):
    side = 0 if type(ins[0]) is Weight else 1
    weight.fed = reader.later(lambda: _layer(reader, ins[side], _input(reader, product, 1 - side), side, product))  # type: ignore[arg-type]
  return weight


def _input(reader: Reader, product: Product, side: int) -> Active:
  """A constant, or a learned query, as an input."""
  rank = 1 + max([d for pair in product.result if (d := pair[side]) is not None] + [*product.roles[side]], default=-1)
  return Active(reader.nothing, unknown_source((0,) * rank))


def contracts(product: Product) -> bool:
  """Whether anything is summed."""
  return any(role in ("sum", "part") for roles in product.roles for role in roles.values())


def _layer(
  reader: Reader, weight: Weight, active: Active, side: int, product: Product, chosen: Sequence[Factor] = ()
) -> Active:
  """A product of a weight and an activation."""
  depth = active.depth
  node = Node(reader.order, depth, [])
  dims = []
  for size, pair in zip(product.shape, product.result, strict=True):
    found = _result_axes(size, pair[side], pair[1 - side], weight, active, product.groups if side else 1)
    dims.append(Dim(tuple(Factor(len(node.axes) + i, 1, n) for i, (n, _) in enumerate(found)), 0, size))
    node.axes += [axis for _, axis in found]
  for leaf, layout in weight.pieces:
    _note_piece(reader, leaf, layout, depth, node, dims, side, product, chosen)
  source = Source(node, Layout(tuple(dims)), True)
  if reader.backward:  # a layer's weights on a derivative's way back: no layer, no depth
    return Active(depth, source._replace(node=None, layout=axes.identity(product.shape)))
  reader.nodes.append(node)
  return Active(depth + 1, source)


def _result_axes(
  size: int, from_weight: int | None, from_active: int | None, weight: Weight, active: Active, groups: int
) -> list[tuple[int, Axis]]:
  """The axes that one dimension of a product's result consists of, with their sizes."""
  before = None
  source = active.source
  if from_active is not None and source.node is not None:
    before = source.layout.dims[from_active]
  if from_weight is None:
    if before is None or not before.is_full:
      return [(size, Axis("place"))]
    return [(f.size, Axis("place", _axis_of(source, f))) for f in before.factors]
  readable = [layout for _, layout in weight.pieces if not layout.unreadable and layout.dims[from_weight].is_full]
  factors = next((layout.dims[from_weight].factors for layout in readable if layout.dims[from_weight].axes), ())
  copy = from_active is not None and groups == 1
  sizes = [f.size for f in factors] or [size]
  kinds = ["copy" if copy else "unit"] * len(sizes)
  if groups > 1:  # vmap puts its copies first into the groups of a convolution
    copies = _copies(readable[0], factors, groups) if readable else 0
    kinds = ["copy" if i < copies else "unit" for i in range(len(sizes))]
  if before is not None and "copy" in kinds:
    for f, n, kind in zip(before.factors, sizes, kinds, strict=False):
      if kind == "copy" and f.size == n and (axis := _axis_of(source, f)) is not None:
        axis.mark()
  return [(n, Axis(kind)) for n, kind in zip(sizes, kinds, strict=True)]


def _axis_of(source: Source, factor: Factor) -> Axis | None:
  """The axis of a source's result that a factor is."""
  known = source.node is not None and factor.axis is not None and factor.axis >= 0
  return source.node.axes[factor.axis] if known else None  # type: ignore[union-attr, index]


def _copies(layout: Layout, factors: Sequence[Factor], groups: int) -> int:
  """How many of the leading factors of a grouped convolution's output are copies made by `vmap`.

  The copies' axis comes before the kernel's own, as that of a layer's channels does not.
  """
  count = 0
  own = min((axis for dim in layout.dims if dim.factors != factors for axis in dim.axes), default=0)
  for f in factors[:-1]:
    if groups > 1 and groups % f.size == 0 and f.axis is not None and f.axis < own:
      groups //= f.size
      count += 1
    else:
      break
  return count


def _note_piece(
  reader: Reader,
  leaf: int,
  layout: Layout,
  depth: Any,
  node: Node,
  dims: Sequence[Dim],
  side: int,
  product: Product,
  chosen: Sequence[Factor],
) -> None:
  """Notes the use of one leaf as (part of) the weight of a product."""
  if layout.unreadable:
    whole = {"node": node, "macs": product.macs * reader.times}
    node.members.append(reader.note_leaf("product", leaf, layout, depth, **whole))
    return
  roles = product.roles[side]
  sums: list[Factor] = []
  batch, along, share, groups = list(chosen), {}, 1.0, product.groups if side else 1
  for dim, old in enumerate(layout.dims):
    role = roles.get(dim)
    if role in ("sum", "part"):
      sums += [f if role == "sum" else f._replace(size=0) for f in old.factors if f.axis is not None]
    elif role == "batch":
      batch += [f for f in old.factors if f.axis is not None]
      share *= old.extent / old.size
  for new, pair in enumerate(product.result):
    if (dim := pair[side]) is None or roles.get(dim):
      continue
    factors = layout.dims[dim].factors
    copies = _copies(layout, factors, product.groups) if side else 0
    batch += [f for f in factors[:copies] if f.axis is not None]
    groups //= math.prod(f.size for f in factors[:copies])
    if len(factors) == len(dims[new].factors):
      for f, of_result in zip(factors[copies:], dims[new].factors[copies:], strict=True):
        if f.axis is not None and of_result.axis is not None:
          along.setdefault(f.axis, []).append(node.axes[of_result.axis])
  windows = [(dim.start, dim.extent) for dim in layout.dims]
  window = (
    tuple(w for dim, w in enumerate(windows) if roles.get(dim) == "batch"),
    tuple(w for dim, w in enumerate(windows) if roles.get(dim) != "batch"),
  )
  use = reader.note_leaf(
    "product", leaf, layout, depth, node=node, sums=sums, batch=batch, axes=along, window=window, groups=groups,
    macs=product.macs * share * reader.times,
  )  # fmt: skip
  node.members.append(use)


# Written element by element


def _with_chosen_rows(reader: Reader, ins: Sequence[Value], side: int, product: Product) -> Value | None:
  """A product with rows of a weight that an input chose, as experts are: a layer, unless both are embeddings."""
  rows, x = ins[side], ins[1 - side]
  if type(rows) is not Active or type(x) is not Active or rows.scaled is None or rows.scaled.active is not None:
    return None
  scaled, roles = rows.scaled, product.roles[side]
  contracted = {f.axis for dim in roles if roles[dim] == "sum" for f in _factors(scaled.weight, dim)}
  free = {
    f.axis for dim in range(len(rows.source.layout.dims)) if dim not in roles for f in _factors(scaled.weight, dim)
  }
  if not contracted or (x.scaled is not None and not free):
    return None
  _replaced(scaled.uses)
  deeper = dataclasses.replace(x, depth=deepest([x, rows]))
  return _layer(reader, scaled.weight, deeper, side, product, scaled.chosen)


def _factors(weight: Weight, dim: int) -> list[Factor]:
  return [
    f for _, layout in weight.pieces if not layout.unreadable for f in layout.dims[dim].factors if f.axis is not None
  ]


def _replaced(uses: Sequence[Any]) -> None:
  for use in uses:
    use.kind = ""


def sum_of_scaled(reader: Reader, value: Value, dims: Sequence[int], shape: Sequence[int]) -> Active | None:
  """A sum over dimensions that an activation and the weight that it was multiplied with share: a product."""
  scaled = value.scaled if type(value) is Active else None
  if scaled is None or scaled.active is None or scaled.node is not None or reader.backward:
    return None
  x = scaled.active
  varying = {d for d, dim in enumerate(x.source.layout.dims) if dim.axes}
  if not any(d in varying and _factors(scaled.weight, d) for d in dims):
    return None
  whole = [dim.size for dim in x.source.layout.dims]
  kept = [d for d in range(len(whole)) if d not in dims]
  both = [(d if d in varying else None, d if _factors(scaled.weight, d) else None) for d in kept]
  roles = ({d: "sum" for d in dims}, {d: "sum" for d in dims})
  product = Product(shape, both, roles, 1, math.prod(whole))
  _replaced(scaled.uses)
  return _elementwise_layer(reader, [scaled], x, product)


def shifted_sum(reader: Reader, terms: Sequence[Active], shape: Sequence[int]) -> Active | None:
  """A sum of one activation's parts, each scaled by another row of a weight: a depthwise convolution."""
  a, b = (term.scaled for term in terms)
  if a is None or b is None or reader.backward or (a.node and b.node):
    return None
  if b.node is not None:
    a, b = b, a
  x, y = a.active, b.active
  if x is None or y is None or (x.origin or x) is not (y.origin or y) or not _rows_of_one(a.weight, b.weight):
    return None
  dims = range(len(shape))
  both = [(d, d if _factors(a.weight, d) else None) for d in dims]
  product = Product(shape, both, ({}, {}), 1, math.prod(shape))
  mine = [b] if a.node is not None else [a, b]
  for term in mine:
    _replaced(term.uses)
  return _elementwise_layer(reader, mine, x, product, a.node)


def _rows_of_one(a: Weight, b: Weight) -> bool:
  """Whether two weights are different rows of the same leaves."""
  if [leaf for leaf, _ in a.pieces] != [leaf for leaf, _ in b.pieces]:
    return False
  pairs = [(p, q) for (_, p), (_, q) in zip(a.pieces, b.pieces, strict=True)]
  return all(p.picked and p.dims == q.dims and p.picked == q.picked and p.base != q.base for p, q in pairs)


def _elementwise_layer(
  reader: Reader, terms: Sequence[Scaled], x: Active, product: Product, node: Node | None = None
) -> Active:
  """The layer that products element by element make, once they are summed; `node` if it has begun already."""
  shifted, source = not product.roles[0], axes.identity(product.shape)
  if node is None:
    node = Node(reader.order, x.depth, [Axis("place" if side is None else "unit") for _, side in product.result])
    reader.nodes.append(node)
  for term in terms:
    for leaf, layout in term.weight.pieces:
      gone = [axis for axis in range(len(reader.shapes[leaf])) if axis not in layout.placed]
      sums = [Factor(axis, 1, 1) for axis in gone] if shifted else []
      sums += [f for d in product.roles[1] for f in layout.dims[d].factors if f.axis is not None]
      _note_scaled(reader, term, leaf, layout, x.depth, Source(node, source), sums, product)
  going_on = dataclasses.replace(terms[0], node=node, uses=[]) if shifted else None
  return Active(x.depth + 1, Source(node, source, True), None, going_on)


def _note_scaled(
  reader: Reader,
  term: Scaled,
  leaf: int,
  layout: Layout,
  depth: Any,
  source: Source,
  sums: Sequence[Factor],
  product: Product,
) -> None:
  """Notes the use of one leaf as a weight whose products, element by element, are summed."""
  node = source.node
  assert node is not None
  kept = Layout(tuple(Dim((), 0, 1) if side is None else layout.dims[side] for _, side in product.result))
  shared = [n for n, (mine, theirs) in zip(product.shape, product.result, strict=True) if None not in (mine, theirs)]
  macs = product.macs * (1 + len(node.members)) * reader.times  # of all terms so far
  use = reader.note_leaf(
    "product", leaf, layout, depth, node=node, sums=sums, batch=term.chosen, axes=aligned(kept, source),
    groups=math.prod(shared), macs=macs,
  )  # fmt: skip
  node.members.append(use)


# Primitives


def _matrix_product(eqn: Any, dimension_numbers: Any, groups: Sequence[int] = ()) -> Product:
  """Of the first two operands; the dimensions `groups` of the second count the groups that its matrices are for."""
  sums, batch = dimension_numbers
  shapes, out = [v.aval.shape for v in eqn.invars[:2]], eqn.outvars[0].aval.shape
  roles = [dict.fromkeys(sums[i], "sum") | dict.fromkeys(batch[i], "batch") for i in (0, 1)]
  roles[1] |= dict.fromkeys(groups, "batch")
  free = [[d for d in range(len(shapes[i])) if d not in roles[i]] for i in (0, 1)]
  result = [*zip(*batch, strict=True), *((d, None) for d in free[0]), *((None, d) for d in free[1])]
  macs = math.prod(out) * math.prod(shapes[0][d] for d in sums[0])
  return Product(out, result, (roles[0], roles[1]), 1, macs)


def dot_general(reader: Reader, eqn: Any, ins: list[Value]) -> Sequence[Value]:
  """Matrix products and einsums."""
  product = _matrix_product(eqn, eqn.params["dimension_numbers"])
  if contracts(product):
    return [read_product(reader, ins, product)]
  sides = [reader.move(value, product.side(side, sums=False), product.shape) for side, value in enumerate(ins)]
  multiplication = types.SimpleNamespace(primitive=lax.mul_p, invars=[*eqn.outvars] * 2, outvars=eqn.outvars)
  return reader.rules["mul"](reader, multiplication, sides)


def ragged_dot_general(reader: Reader, eqn: Any, ins: list[Value]) -> Sequence[Value]:
  """Rows of the first operand, in groups, times each group's own matrix."""
  numbers = eqn.params["ragged_dot_dimension_numbers"]
  if not numbers.rhs_group_dimensions:
    raise Unreadable("it enters ragged_dot_general in a form that is not read")
  product = _matrix_product(eqn, numbers.dot_dimension_numbers, numbers.rhs_group_dimensions)
  return [read_product(reader, ins[:2], product)]


def conv_general_dilated(reader: Reader, eqn: Any, ins: list[Value]) -> Sequence[Value]:
  """Convolutions; the second operand is the kernel."""
  params, (x, kernel) = eqn.params, [v.aval.shape for v in eqn.invars]
  numbers = params["dimension_numbers"]
  (batch, channels, *places), (out, into, *window) = numbers.lhs_spec, numbers.rhs_spec
  groups = max(params["feature_group_count"], params["batch_group_count"])
  pairs = {numbers.out_spec[0]: (batch, None), numbers.out_spec[1]: (channels if groups > 1 else None, out)}
  pairs |= {new: (old, None) for new, old in zip(numbers.out_spec[2:], places, strict=True)}
  roles = dict.fromkeys([channels, *places], "part"), dict.fromkeys([into, *window], "sum")
  shape = eqn.outvars[0].aval.shape
  stretched = math.prod(params["lhs_dilation"]) > 1  # transposed: every place of the input meets the whole kernel
  grid, where = (x, numbers.lhs_spec) if stretched else (shape, numbers.out_spec)
  macs = math.prod(kernel) * math.prod(n for d, n in enumerate(grid) if d != where[1])
  result = [pairs[d] for d in range(len(pairs))]
  return [read_product(reader, ins, Product(shape, result, roles, groups, macs))]


RULES: Mapping[str, Rule] = {
  "dot_general": dot_general,
  "ragged_dot_general": ragged_dot_general,
  "conv_general_dilated": conv_general_dilated,
}
