"""Runs a jaxpr, and records how large the results of some of its equations are."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optax_ext._common.primitives import is_literal
from optax_ext._network.jaxpr.versions import Program, called, run, scan_form

Place = tuple[int, ...]
"""The `id` of the calls and loops around an equation, and its own."""
Sizes = dict[Place, jax.Array]


class Wanted(NamedTuple):
  """The places of the equations that are recorded, and those of the calls and loops around them."""

  places: Collection[Place]
  around: Collection[Place]


def mean_sizes(program: Program, args: Sequence[Any], places: Collection[Place]) -> Sizes:
  """The mean |value| of the first result of each equation in `places`; over the iterations of a loop, their mean."""
  sizes: Sizes = {}
  _run(program, args, Wanted(places, {place[:n] for place in places for n in range(1, len(place))}), (), sizes)
  return sizes


def equations(program: Program, outer: Place = ()) -> Iterator[tuple[Place, Any]]:
  """The equations of a program, of what it calls and of its scans, each with its place."""
  for eqn in program.jaxpr.eqns:
    place = (*outer, id(eqn))
    inner = _inside(eqn)
    yield place, eqn
    if inner is not None:
      yield from equations(inner, place)


def _inside(eqn: Any) -> Program | None:
  return scan_form(eqn).body if eqn.primitive.name == "scan" else called(eqn)


def _run(program: Program, args: Sequence[Any], wanted: Wanted, outer: Place, sizes: Sizes) -> list[Any]:
  jaxpr, consts = program
  env = dict(zip(jaxpr.constvars, consts, strict=True)) | dict(zip(jaxpr.invars, args, strict=True))
  look = lambda var: var.val if is_literal(var) else env[var]
  for eqn in jaxpr.eqns:
    place, ins = (*outer, id(eqn)), [look(var) for var in eqn.invars]
    outs = _equation(eqn, ins, wanted, place, sizes)
    if place in wanted.places:
      sizes[place] = jnp.mean(jnp.abs(outs[0].astype(jnp.float32)))
    env.update(zip(eqn.outvars, outs, strict=True))
  return [look(var) for var in jaxpr.outvars]


def _equation(eqn: Any, ins: list[Any], wanted: Wanted, place: Place, sizes: Sizes) -> Sequence[Any]:
  if place in wanted.around:
    if eqn.primitive.name == "scan":
      return _scan(eqn, ins, wanted, place, sizes)
    if (program := called(eqn)) is not None:
      return _run(program, ins, wanted, place, sizes)
  return run(eqn, ins)


def _scan(eqn: Any, ins: list[Any], wanted: Wanted, place: Place, sizes: Sizes) -> Sequence[Any]:
  """The loop, with one more result: the sizes in each iteration."""
  loop = scan_form(eqn)
  consts, init, rows = loop.split(ins)

  def body(carry: list[Any], row: list[Any]) -> tuple[list[Any], tuple[list[Any], Sizes]]:
    inner: Sizes = {}
    outs = _run(loop.body, [*consts, *carry, *row], wanted, place, inner)
    return outs[: loop.carried], (outs[loop.carried :], inner)

  carry, (outs, inner) = jax.lax.scan(body, init, rows, length=eqn.params["length"], reverse=eqn.params["reverse"])
  sizes.update({at: jnp.mean(values) for at, values in inner.items()})
  return [*carry, *outs]
