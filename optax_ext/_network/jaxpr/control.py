"""Rules for branches and loops.

A loop that picks the weights of its products by its counter runs over layers, and is read iteration by iteration. Every
other one counts once. What such a loop carries is found by rehearsals: which of it depends on an input, which counts,
and how much deeper it gets.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from optax_ext._network.jaxpr import axes, constants
from optax_ext._network.jaxpr.axes import Layout, Moving
from optax_ext._network.jaxpr.domain import (
  Active,
  Constant,
  Pieces,
  Value,
  Weight,
  deepest,
  latest,
  moved_source,
  unknown_source,
)
from optax_ext._network.jaxpr.reader import Reader, Rule, joined, lost
from optax_ext._network.jaxpr.summarize import NEVER, Use
from optax_ext._network.jaxpr.versions import Program, program_of, scan_form


def cond(reader: Reader, eqn: Any, ins: list[Value]) -> Sequence[Value]:
  """Every branch is read, unless a counter chooses one; the deepest counts."""
  which, args, branches = ins[0], ins[1:], [program_of(branch) for branch in eqn.params["branches"]]
  if type(which) is Constant and which.number is not None:
    branches = [branches[int(np.clip(which.number, 0, len(branches) - 1))]]
  elif type(which) is Constant and which.varies:
    args = [_sometimes(value, which.varies) for value in args]
  results = [_one_of(reader, values) for values in zip(*(reader.read(b, args) for b in branches), strict=True)]
  if type(which) is not Active:
    return results
  for value in results:
    if type(value) is Weight:
      reader.note("lookup", value, which.depth - 1)
  return [
    Active(deepest([which, value]), value.source if type(value) is Active else unknown_source(var.aval.shape))
    for value, var in zip(results, eqn.outvars, strict=True)
  ]


def _sometimes(value: Value, loop: Moving) -> Value:
  """A value that a branch sees in some iterations of a loop."""
  if type(value) is not Weight:
    return value
  pieces = [(leaf, p if p.unreadable else p.moved(p.dims, {axes.NOWHERE: loop})) for leaf, p in value.pieces]
  return Weight(tuple(pieces), None, value.fed, value.root)


def _one_of(reader: Reader, values: Sequence[Value]) -> Value:
  """One of several values, no matter which."""
  if len(values) == 1:
    return values[0]
  actives = [value for value in values if type(value) is Active]
  if actives:
    depth = deepest(actives)
    for value in values:
      if type(value) is Weight:
        reader.note("elementwise", value, depth - 1)
    return Active(depth, latest(actives))
  if any(type(value) is Weight for value in values):
    return joined(values)
  return _same(values)


def _same(values: Sequence[Any]) -> Constant:
  """A constant that is the same in all branches, or unknown."""
  first = values[0]
  known = first.number is not None and all(
    v.number is not None and np.array_equal(v.number, first.number) for v in values
  )
  return first if known else Constant(varies=max((v.varies for v in values if v.varies), default=None))


def scan(reader: Reader, eqn: Any, ins: list[Value]) -> Sequence[Value]:
  """A loop along the leading axis of its last operands."""
  loop, length = scan_form(eqn), eqn.params["length"]
  consts, init, rows = loop.split(ins)
  outs = eqn.outvars[loop.carried :]
  if not length:
    return [*init, *[constants.UNKNOWN] * len(outs)]
  indices = range(length)[::-1] if eqn.params["reverse"] else range(length)
  here, once = Moving(reader.loops + 1), None
  if any(type(value) is Active for value in ins):
    once = _Loop(reader, loop.body, consts, init, [_row(reader, value, here) for value in rows], here)
  if once is None or once.over_layers:
    carry, given = init, {}
    for i in indices:
      results = reader.read(loop.body, [*consts, *carry, *(_row(reader, value, i) for value in rows)])
      carry, given[i] = results[: loop.carried], results[loop.carried :]
    stacks = [_stacked(reader, [given[i][k] for i in range(length)], var) for k, var in enumerate(outs)]
    return [*carry, *stacks]
  results = once.read(length)
  return [
    *(_carried_out(value, here) for value in results[: loop.carried]),
    *(_repeated(reader, v, length, here, var) for v, var in zip(results[loop.carried :], outs, strict=True)),
  ]


def while_(reader: Reader, eqn: Any, ins: list[Value]) -> Sequence[Value]:
  """A loop that runs until its condition fails: it counts once, or as often as a counter tells."""
  p = eqn.params
  tests, rest = ins[: p["cond_nconsts"]], ins[p["cond_nconsts"] :]
  consts, init = rest[: p["body_nconsts"]], rest[p["body_nconsts"] :]
  body, test, here = program_of(p["body_jaxpr"]), program_of(p["cond_jaxpr"]), Moving(reader.loops + 1)
  once = _Loop(reader, body, consts, init, [], here)
  if once.over_layers and (count := _count(reader, test, body, tests, consts, init)) is not None:
    for _ in range(count):
      init = reader.read(body, [*consts, *init])
    return init
  if once.over_layers:  # as often as nobody can tell, so that what is picked cannot be told either
    once.forget_counters()
  return [_carried_out(value, here) for value in once.read(1)]


def _count(
  reader: Reader, test: Program, body: Program, tests: list[Value], consts: list[Value], carry: list[Value]
) -> int | None:
  """How often the body of a `while` runs, if that depends on a counter alone."""
  with reader.rehearsal(reader.nothing):
    for count in range(constants.MANY):
      [holds] = reader.read(test, [*tests, *carry])
      if type(holds) is not Constant or holds.number is None:
        return None
      if not holds.number:
        return count
      carry = reader.read(body, [*consts, *carry])
  return None


class _Loop:
  """A loop whose body is read once.

  The body is rehearsed until the kinds of what it carries are settled. Depths get one more axis there, in front, with
  an entry for each carried value alone and a last one for all others, so that a result's entries are the products on
  the longest paths from each: a matrix of the max-plus algebra.
  """

  def __init__(
    self, reader: Reader, body: Program, consts: list[Value], init: list[Value], rows: list[Value], here: Moving
  ):
    self.reader, self.body, self.consts, self.init, self.rows, self.here = reader, body, consts, init, rows, here
    reader.loops += 1
    self.carry = list(init)
    for _ in range(2 * len(init) + 2):
      outs, seen = self._rehearse()
      after = [_carried(old, new, here) for old, new in zip(self.carry, outs, strict=False)]
      if all(new is old for old, new in zip(self.carry, after, strict=True)):
        break
      self.carry = after
    else:
      self.carry = [lost([v], "a loop changes its axes") if type(v) is Weight else v for v in self.carry]
      outs, seen = self._rehearse()
    self.outs = outs
    self.over_layers = any(use.kind == "product" and here in use.layout.base.values() for use in seen)

  def _moving(self) -> list[int]:
    return [i for i, value in enumerate(self.carry) if type(value) is Active]

  def _rehearse(self) -> tuple[list[Value], list[Use]]:
    moving, outer = self._moving(), np.shape(self.reader.nothing)
    probe = np.full((len(moving) + 1, *outer), -NEVER)

    def entering(value: Value) -> Value:
      return dataclasses.replace(value, depth=_replaced(probe, -1, value.depth)) if type(value) is Active else value

    carry = [
      dataclasses.replace(value, depth=_replaced(probe, moving.index(i), 0)) if type(value) is Active else value
      for i, value in enumerate(self.carry)
    ]
    with self.reader.rehearsal(_replaced(probe, -1, self.reader.nothing)) as seen:
      outs = self.reader.read(self.body, [*map(entering, self.consts), *carry, *map(entering, self.rows)])
    return outs, seen

  def forget_counters(self) -> None:
    """What counts is unknown."""
    self.carry = [Constant() if type(value) is Constant and value.varies else value for value in self.carry]

  def read(self, times: int) -> list[Value]:
    """The results of the body, which stands for so many iterations."""
    for old, new in zip(self.init, self.carry, strict=True):
      if type(new) is Active and type(old) is Weight:  # a learned first state
        self.reader.note("elementwise", old, self.reader.nothing - 1)
    outside = [value for value in (*self.consts, *self.rows, *self.init) if type(value) is Active]
    entering = deepest(outside) if outside else self.reader.nothing
    carry = list(self.carry)
    for k, i in enumerate(self._moving()):
      start = self.init[i]
      depth = start.depth if type(start) is Active else _settled(self.outs[i], k, entering)
      carry[i] = Active(depth, carry[i].source)  # type: ignore[union-attr]
    with self.reader.repeated(times):
      return self.reader.read(self.body, [*self.consts, *carry, *self.rows])


def _replaced(probe: np.ndarray, at: int, depth: Any) -> np.ndarray:
  new = probe.copy()
  new[at] = depth
  return new


def _settled(out: Value, own: int, entering: Any) -> Any:
  """The depth of a carried value that starts as a constant: once more around the loop, it makes the result no deeper.

  So recurrent weights are as deep as those of what their products are added to. `entering` is the depth where the loop
  does not feed it back, or gives it no other input.
  """
  if type(out) is not Active:
    return entering
  around, others = out.depth[own], out.depth[-1]
  depth = np.where(np.minimum(around, others) < 0, entering, np.maximum(others - around, 0))
  return depth if depth.ndim else int(depth)


def _carried(old: Value, new: Value, here: Moving) -> Value:
  """What a carried value may be in any iteration, if it enters one as `old` and leaves it as `new`."""
  if type(old) is Active:
    return old
  if type(new) is Active:
    return Active(0, new.source._replace(node=None, direct=False))
  if type(old) is Weight or type(new) is Weight:
    pieces = joined([old, new]).pieces
    known = {(leaf, layout.key()) for leaf, layout in old.pieces} if type(old) is Weight else None
    return old if {(leaf, layout.key()) for leaf, layout in pieces} == known else Weight(pieces)
  assert isinstance(old, Constant)
  assert isinstance(new, Constant)
  if old.varies or _same([old, new]) is old or (old.number is None and new.number is None):
    return old
  return Constant(uniform=old.uniform, varies=here)


def _row(reader: Reader, value: Value, index: axes.Position) -> Value:
  """What an iteration sees of an array that is scanned over."""
  shape: Sequence[int] = ()
  if type(value) is Constant:
    if isinstance(index, Moving):
      return Constant(uniform=value.uniform, varies=value.varies or (index if value.number is not None else None))
    return value if value.number is None else Constant(value.number[index], value.uniform)
  if type(value) is Active:
    shape = [dim.size for dim in value.source.layout.dims[1:]]
    return reader.move(value, lambda layout: axes.drop(layout, (0,)), shape)
  return reader.move(value, lambda layout: axes.row(layout, 0, index), shape)


def _in_front(layout: Layout, size: int) -> Layout:
  """Repeated along a new first dimension."""
  return layout.moved([axes.filler(size), *layout.dims])


def _stacked(reader: Reader, rows: list[Value], var: Any) -> Value:
  """The rows that the iterations of a loop give, put together."""
  shape = var.aval.shape
  if any(type(value) is Active for value in rows):
    one = _one_of(reader, rows)
    assert type(one) is Active
    return Active(one.depth, moved_source(one.source, lambda layout: _in_front(layout, len(rows)), shape))
  if not any(type(value) is Weight for value in rows):
    numbers = [value.number for value in rows if type(value) is Constant and value.number is not None]
    return Constant(np.stack(numbers)) if len(numbers) == len(rows) else constants.UNKNOWN
  if together := _neighbours(rows):
    return Weight(together)

  def at(i: int) -> Any:
    low = [i, *[0] * (len(shape) - 1)]
    return lambda layout: axes.pad(_in_front(layout, 1), low, shape)

  return joined([reader.move(value, at(i), shape) for i, value in enumerate(rows)])


def _neighbours(rows: Sequence[Value]) -> Pieces:
  """The pieces of all rows, if each leaf's rows are neighbours in it; else none."""
  pieces = [value.pieces if type(value) is Weight else () for value in rows]
  if len({tuple(leaf for leaf, _ in some) for some in pieces}) > 1:
    return ()
  found = [(some[0][0], axes.stacked([layout for _, layout in some])) for some in zip(*pieces, strict=True)]
  return () if any(layout is None for _, layout in found) else tuple(found)  # type: ignore[return-value]


def _carried_out(value: Value, here: Moving) -> Value:
  """What a loop that was read once leaves behind."""
  if type(value) is Constant and value.varies == here:
    return constants.UNKNOWN
  if type(value) is Weight and _picks(value, here):
    return lost([value], "a loop carries it out")
  return value


def _repeated(reader: Reader, value: Value, length: int, here: Moving, var: Any) -> Value:
  """The rows that a loop that was read once gives, put together."""
  if type(value) is Constant:
    return constants.UNKNOWN
  if type(value) is Weight and _picks(value, here):
    return lost([value], "a loop reorders it")
  return reader.move(value, lambda layout: _in_front(layout, length), var.aval.shape)


def _picks(weight: Weight, here: Moving) -> bool:
  return any(here in layout.base.values() for _, layout in weight.pieces)


RULES: Mapping[str, Rule] = {"cond": cond, "scan": scan, "while": while_}
