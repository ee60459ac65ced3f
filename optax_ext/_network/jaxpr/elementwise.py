"""Rules for arithmetic that leaves every position where it is: sums, scales, biases, nonlinearities."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from optax_ext._common.primitives import CURVED, ELEMENTWISE, RANDOM, TRANSPARENT
from optax_ext._network.jaxpr import axes
from optax_ext._network.jaxpr.axes import Layout
from optax_ext._network.jaxpr.constants import UNKNOWN
from optax_ext._network.jaxpr.domain import (
  Active,
  Constant,
  Node,
  Scaled,
  Source,
  Spread,
  Value,
  Weight,
  aligned,
  deepest,
  latest,
)
from optax_ext._network.jaxpr.products import shifted_sum
from optax_ext._network.jaxpr.reader import Reader, Rule, fed, joined

SUMS = ("add", "add_any")


def elementwise(reader: Reader, eqn: Any, ins: list[Value]) -> Sequence[Value]:
  """Weights stay weights; what meets an activation is used."""
  name, outvars = eqn.primitive.name, eqn.outvars
  if len(outvars) > 1:  # optimization_barrier, device_put: each operand by itself
    if len(ins) == len(outvars):
      return ins
    return reader.unknown(eqn, ins, f"it enters {name}, which cannot be read")
  if len(ins) == 1 and name in TRANSPARENT:
    return ins
  shape = outvars[0].aval.shape
  ins = [_widened(reader, value, var.aval.shape, shape) for value, var in zip(ins, eqn.invars, strict=True)]
  if name in SUMS:
    ins = _with_bias(ins)
  if not any(type(value) is Active for value in ins):
    weight = joined(ins)
    weight.root = _root(name, [value.root if type(value) is Weight else "" for value in ins])
    return [weight]
  ins = [fed(value) for value in ins]
  actives = [value for value in ins if type(value) is Active]
  if name in SUMS and len(actives) == 2 and (total := shifted_sum(reader, actives, shape)):
    return [total]
  depth, source = deepest(actives), latest(actives)
  uses = [use for value in ins if type(value) is Weight for use in _note(reader, name, value, source, depth)]
  if source.direct and not _keeps_bias(name, ins):
    source = source._replace(direct=False)
  if name in CURVED:
    source = source._replace(alone=False)
  _normalise(name, ins)
  scaled = _scaled(name, ins, uses)
  return [Active(depth, source, None, scaled, _spread(name, ins))]


def _widened(reader: Reader, value: Value, old: Sequence[int], new: Sequence[int]) -> Value:
  """An operand with the shape of the result."""
  if type(value) is Constant or tuple(old) == tuple(new):
    return value
  if not old and type(value) is Weight:  # a number has no axes, wherever it comes from
    value = Weight(tuple((leaf, p if p.unreadable else Layout(())) for leaf, p in value.pieces), fed=value.fed)
  where = range(len(new) - len(old), len(new))
  return reader.move(value, lambda layout: axes.broadcast(layout, new, where), new)


def _with_bias(ins: list[Value]) -> list[Value]:
  """The terms of a sum: a product of parameters to which a bias is added is the layer of a learned input."""
  for product, bias in (ins, ins[::-1]):
    if type(product) is Weight and product.query and type(bias) is Weight:
      if any(layout.unreadable for _, layout in bias.pieces):
        continue
      weights = {product.query.weight_of(layout) for _, layout in bias.pieces}
      if len(weights) == 1 and (weight := weights.pop()) is not None:
        return [product.query.read(weight), bias]
  return ins


def _note(reader: Reader, name: str, weight: Weight, source: Source, depth: Any) -> list[Any]:
  """A parameter meets a value after `depth` products: it follows the last of them."""
  node, uses = source.node, []
  of_product = node is not None and bool(node.members)
  for leaf, layout in weight.pieces:
    kind = "elementwise"
    if name in SUMS and source.direct and of_product:
      kind = "bias"
    elif (
      name in SUMS
      and not of_product
      and sum(f.size > 1 for dim in layout.dims for f in dim.factors if f.axis is not None) > 1
    ):
      kind = "positions"
    uses.append(reader.note_leaf(kind, leaf, layout, depth - 1, node=node, axes=aligned(layout, source)))
  return uses


def _keeps_bias(name: str, ins: Sequence[Value]) -> bool:
  """Whether a parameter added after this operation is still the bias of the product before it.

  Statistics are subtracted and a norm's scale multiplied, so those end it; a constant number does not.
  """
  return _meets_numbers(ins) if name in ("mul", "div", "sub") else name in TRANSPARENT


def _meets_numbers(ins: Sequence[Value]) -> bool:
  """Whether one activation meets nothing but constant numbers."""
  others = [value for value in ins if type(value) is not Active]
  return len(ins) - len(others) == 1 and all(type(value) is Constant and value.uniform for value in others)


def _scaled(name: str, ins: Sequence[Value], uses: list[Any]) -> Scaled | None:
  """An activation times a weight, which a sum may turn into a product; constant numbers change nothing."""
  actives = [value for value in ins if type(value) is Active]
  others = [value for value in ins if type(value) is not Active]
  if _meets_numbers(ins):
    scaled = actives[0].scaled
    return scaled if name in ("mul", "div", "add", "sub") and scaled and scaled.active else None
  if name != "mul" or len(ins) != 2:
    return None
  if len(actives) == 1 and type(others[0]) is Weight:
    readable = not any(layout.unreadable for _, layout in others[0].pieces)
    return Scaled(others[0], actives[0], uses) if readable else None
  for x, row in (actives, actives[::-1]) if len(actives) == 2 else ():
    if row.scaled and row.scaled.active is None and x.scaled is None:
      deeper = dataclasses.replace(x, depth=deepest(actives))
      return Scaled(row.scaled.weight, deeper, row.scaled.uses, row.scaled.chosen)
  return None


def _spread(name: str, ins: Sequence[Value]) -> Spread | None:
  """A statistic computed from statistics of one product."""
  spreads = [value.spread for value in ins if type(value) is Active]
  nodes = {None if spread is None else spread.node for spread in spreads}
  if None in nodes or len(nodes) > 1:
    return None
  return Spread(spreads[0].node, _root(name, [v.spread.kind if type(v) is Active else "" for v in ins]))  # type: ignore


def _root(name: str, kinds: Sequence[str]) -> str:
  """Whether a result is a root, or the inverse of one, as its operands are."""
  if name in ("rsqrt", "sqrt"):
    return "inverse" if name == "rsqrt" else "root"
  if name == "div":
    return {"root": "inverse", "inverse": "root"}.get(kinds[1], kinds[0])
  return "inverse" if "inverse" in kinds else "root" if "root" in kinds and name in ("mul", "add", "max") else ""


def _normalise(name: str, ins: Sequence[Value]) -> None:
  """Marks a product whose results are multiplied by the inverse of their own spread, computed or remembered."""
  if name not in ("mul", "div") or len(ins) != 2:
    return
  for value, by in (ins, ins[::-1]) if name == "mul" else (ins,):
    if type(value) is not Active or value.spread is not None or not value.source.alone:
      continue
    if (node := value.source.node) is None:
      continue
    wanted = "inverse" if name == "mul" else "root"
    if type(by) is Active and by.spread is not None:
      if by.spread.node is node and by.spread.kind == wanted:
        node.normalised = True
    elif type(by) is Weight and by.root == wanted and _of_each_unit(by, value.source, node):
      node.normalised = True


def _of_each_unit(weight: Weight, source: Source, node: Node) -> bool:
  """Whether a weight has a number for each unit of a product, and so lies along all of its unit axes and no other."""
  units = {id(axis) for axis in node.axes if axis.kind == "unit"}
  return any(
    {id(a) for along in aligned(layout, source).values() for a in along} == units for _, layout in weight.pieces
  )


def noise(reader: Reader, eqn: Any, ins: list[Value]) -> Sequence[Value]:
  """Random numbers are no input."""
  return [UNKNOWN] * len(eqn.outvars)


RULES: Mapping[str, Rule] = {**dict.fromkeys(ELEMENTWISE, elementwise), **dict.fromkeys(RANDOM, noise)}
