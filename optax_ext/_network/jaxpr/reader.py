"""Runs a jaxpr on descriptions of values, and notes where parameters are used: the frame that all rules share.

A value depends on an input, and then its description says after how many products; or on parameters alone, and then it
says where their axes are; or on neither. Each primitive has one rule, in the modules beside this one.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from optax_ext._common.primitives import is_literal
from optax_ext._network.jaxpr import axes, constants
from optax_ext._network.jaxpr.axes import Layout, Unreadable
from optax_ext._network.jaxpr.constants import constant
from optax_ext._network.jaxpr.domain import (
  Active,
  Change,
  Node,
  Value,
  Weight,
  deepest,
  moved_source,
  unknown_source,
)
from optax_ext._network.jaxpr.summarize import Use
from optax_ext._network.jaxpr.versions import Program, called

Rule = Callable[["Reader", Any, list[Value]], Sequence[Value]]
safety_net = True  # a form of a primitive that other versions of jax bring must not stop a training; in tests it must


class Reader:
  """What has been read so far.

  Attributes:
    rules: The rule of each primitive.
    shapes: Of the leaves.
    uses: Of parameters, in the program's order.
    nodes: The products that are layers.
  """

  def __init__(self, rules: Mapping[str, Rule], shapes: Sequence[tuple[int, ...]]) -> None:
    self.rules, self.shapes = rules, shapes
    self.uses: list[Use] = []
    self.nodes: list[Node] = []
    self.order = 0
    self.times = 1  # how often the equation that is read runs, in loops that are read once
    self.backward = False  # whether it computes a derivative
    self.rehearsing = False
    self.nothing: Any = 0  # the depth of what depends on nothing: an array where a loop is rehearsed
    self.loops = 0
    self._place: tuple[int, ...] = ()  # the calls and loops around it

  # Programs

  def read(self, program: Program, args: Sequence[Value]) -> list[Value]:
    """The descriptions of a program's results."""
    jaxpr, consts = program
    env: dict[Any, Value] = dict(zip(jaxpr.constvars, map(constant, consts), strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))
    for eqn in jaxpr.eqns:
      ins = [constant(var.val) if is_literal(var) else env[var] for var in eqn.invars]
      env.update(zip(eqn.outvars, self.equation(eqn, ins), strict=True))
    return [constant(var.val) if is_literal(var) else env[var] for var in jaxpr.outvars]

  def equation(self, eqn: Any, ins: list[Value]) -> Sequence[Value]:
    """The descriptions of an equation's results."""
    self.order += 1
    active = any(type(value) is Active for value in ins)
    if not active and not any(type(value) is Weight for value in ins):
      return self._constant(eqn, ins)
    try:
      results = self._results(eqn, ins)
    except Unreadable as why:
      results = self.unknown(eqn, ins, str(why))
    except Exception as error:
      if not safety_net:
        raise
      name = eqn.primitive.name
      results = self.unknown(eqn, ins, f"it enters {name} in a form that is not read ({type(error).__name__}: {error})")
    if not active and any(type(value) is Weight and value.fed for value in ins):
      return self._fed_on(eqn, ins, results)
    return results

  def _results(self, eqn: Any, ins: list[Value]) -> Sequence[Value]:
    rule = self.rules.get(eqn.primitive.name)
    with self._at(eqn):
      if rule is not None:
        return rule(self, eqn, ins)
      if (program := called(eqn)) is not None:
        return self.read(program, ins)
    return self.unknown(eqn, ins, f"it enters {eqn.primitive.name}, which cannot be read")

  def _constant(self, eqn: Any, ins: Any) -> Sequence[Value]:
    """Loops over nothing but constants are not read."""
    if eqn.primitive.name not in self.rules and (program := called(eqn)) is not None:
      return self.read(program, ins)
    return constants.compute(eqn, ins)

  def _fed_on(self, eqn: Any, ins: list[Value], results: Sequence[Value]) -> Sequence[Value]:
    """Results of parameters alone, which may be read as those of a constant input as well."""
    again = self.later(lambda: self.equation(eqn, [fed(value) for value in ins]))
    return [
      dataclasses.replace(value, fed=lambda i=i: again()[i]) if type(value) is Weight else value
      for i, value in enumerate(results)
    ]

  def later(self, compute: Callable[[], Any]) -> Callable[[], Any]:
    """What is read when it is asked for, as if it were read now; and once, but for rehearsals."""
    now = {"_place": self._place, "order": self.order, "backward": self.backward, "times": self.times}
    known: list[Any] = []

    def value() -> Any:
      if known:
        return known[0]
      with self._set(**now):
        computed = compute()
      if not self.rehearsing:
        known.append(computed)
      return computed

    return value

  @contextlib.contextmanager
  def _set(self, **fields: Any) -> Iterator[None]:
    """Other values of some fields, for a while."""
    before = {name: getattr(self, name) for name in fields}
    vars(self).update(fields)
    try:
      yield
    finally:
      vars(self).update(before)

  def _at(self, eqn: Any) -> contextlib.AbstractContextManager[None]:
    return self._set(_place=(*self._place, id(eqn)), backward=self.backward or is_backward(eqn))

  @contextlib.contextmanager
  def rehearsal(self, nothing: Any) -> Iterator[list[Use]]:
    """Reads without noting; gives the uses that were seen. `nothing` is the depth of what depends on nothing."""
    with self._set(uses=[], nodes=[], order=self.order, rehearsing=True, nothing=nothing):
      yield self.uses

  def repeated(self, times: int) -> contextlib.AbstractContextManager[None]:
    """What is read once and runs several times."""
    return self._set(times=self.times * times)

  # Uses

  def note(self, kind: str, weight: Weight, depth: Any, **more: Any) -> list[Use]:
    """Notes a use of every parameter that `weight` is computed from."""
    return [self.note_leaf(kind, leaf, layout, depth, **more) for leaf, layout in weight.pieces]

  def note_leaf(self, kind: str, leaf: int, layout: Layout, depth: Any, **more: Any) -> Use:
    """Notes one use."""
    if self.backward and kind != "unseen":
      kind = "backward"
    depth = max(0, depth) if type(depth) is int else depth
    use = Use(leaf, kind, self.order, self._place, depth, layout, **more)
    self.uses.append(use)
    return use

  # Values

  def unknown(self, eqn: Any, ins: Sequence[Value], why: str) -> Sequence[Value]:
    """Whatever is not understood: its parameters are said to be unseen, once they meet an input."""
    weights = [value for value in ins if type(value) is Weight]
    if not any(type(value) is Active for value in ins):
      return [lost(weights, why)] * len(eqn.outvars)
    depth = deepest(ins)
    if eqn.outvars:
      for weight in weights:
        self.note("unseen", weight, depth, reason=why)
    return [active(depth, var) for var in eqn.outvars]

  def move(self, value: Value, change: Change, shape: Sequence[int], lossy: bool = False) -> Value:
    """A value whose dimensions change and whose content does not; `lossy` if sums are taken."""
    if type(value) is Active:
      source = moved_source(value.source, change, shape, lossy)
      scaled = value.scaled
      if scaled is not None and not lossy and scaled.node is None:
        scaled = dataclasses.replace(
          scaled,
          weight=self.move(scaled.weight, change, shape),
          active=scaled.active and self.move(scaled.active, change, shape),
        )
      elif lossy:
        scaled = None
      return Active(value.depth, source, None if lossy else value.origin or value, scaled, value.spread)
    if type(value) is not Weight:
      return value
    pieces = []
    for leaf, layout in value.pieces:
      try:
        new = layout if layout.unreadable else change(layout)
      except Unreadable as why:
        new = axes.lost(str(why))
      if new is not None:
        pieces.append((leaf, new))
    if not pieces:
      return constants.UNKNOWN
    query = value.query and (None if lossy else value.query.moved(change, lambda read: self.move(read, change, shape)))
    return Weight(tuple(pieces), query, None, value.root)


def is_backward(eqn: Any) -> bool:
  """Whether an equation belongs to a derivative's way back, where products are those of another layer, transposed."""
  return any(getattr(part, "name", None) == "transpose" for part in eqn.source_info.name_stack.stack)


def active(depth: Any, var: Any) -> Active:
  """A value of whose dimensions nothing is known."""
  return Active(depth, unknown_source(getattr(var.aval, "shape", ())))


def fed(value: Value) -> Value:
  """What a layer makes of a constant input, where a value can be read so."""
  return value.fed() if type(value) is Weight and value.fed is not None else value


def lost(weights: Sequence[Weight], why: str) -> Weight:
  """The parameters of values whose axes are lost."""
  return Weight(axes.merge(*([(leaf, axes.lost(why))] for weight in weights for leaf, _ in weight.pieces)))


def joined(values: Sequence[Value]) -> Weight:
  """What is computed from the parameters of several values, element by element."""
  weights = [value for value in values if type(value) is Weight]
  return Weight(axes.merge(*(weight.pieces for weight in weights)))
