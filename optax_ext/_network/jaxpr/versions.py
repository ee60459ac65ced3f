"""Differences between versions of jax in how a program is written down, for the reader of networks.

    what it asks                     jax up to 0.10              since 0.11
    the constants of a program       ClosedJaxpr beside Jaxpr    one Jaxpr, which may hold them
    the operands of a scan           num_consts, num_carry       ft_in: three trees
    a primitive defined by a class   –                           call_hi_primitive, with the method `expand`
    what a primitive is bound with   functions and parameters    parameters (since 0.10)

The answers come from what an equation has, never from a version's number. A loop in a form that no version up to now
has raises `UnknownFormError`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax


class UnknownFormError(Exception):
  """An equation is not written as any known version of jax writes it."""


class Program(NamedTuple):
  """A jaxpr and the values of its constants, the first of its variables."""

  jaxpr: Any
  consts: Sequence[Any]


class Loop(NamedTuple):
  """A scan: its body, and how many of its operands are constants and how many are carried; others are scanned."""

  body: Program
  consts: int
  carried: int

  def split(self, operands: list[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """The constants, what is carried at first, and what is scanned."""
    return operands[: self.consts], operands[self.consts :][: self.carried], operands[self.consts + self.carried :]


def program_of(closed: Any) -> Program:
  """The program of a jaxpr that comes with its constants: what `jax.make_jaxpr` gives, a branch, the body of a loop."""
  return Program(closed.jaxpr, closed.consts)


def called(eqn: Any) -> Program | None:
  """The program that an equation runs on its operands, as a jitted function does; `None` where it runs none."""
  for param in eqn.params.values():
    jaxpr, consts = getattr(param, "jaxpr", param), getattr(param, "consts", ())
    if hasattr(param, "expand") and hasattr(param, "in_avals"):  # a primitive defined by a class, by simpler ones
      jaxpr, consts = program_of(jax.make_jaxpr(param.expand)(*param.in_avals))
    elif not hasattr(jaxpr, "eqns") or len(jaxpr.constvars) != len(consts):
      continue
    if _types(jaxpr.invars) == _types(eqn.invars) and _types(jaxpr.outvars) == _types(eqn.outvars):
      return Program(jaxpr, consts)
  return None


def scan_form(eqn: Any) -> Loop:
  """The body of a scan, and what its operands are."""
  params = eqn.params
  if "ft_in" in params:
    consts, carried, _ = params["ft_in"].unpack()
    return Loop(program_of(params["jaxpr"]), len(consts), len(carried))
  if "num_consts" in params and "num_carry" in params:
    return Loop(program_of(params["jaxpr"]), params["num_consts"], params["num_carry"])
  raise UnknownFormError(f"a scan with the parameters {', '.join(params)}")


def run(eqn: Any, operands: Sequence[Any]) -> Sequence[Any]:
  """The results of an equation."""
  found = eqn.primitive.get_bind_params(eqn.params)
  functions, params = found if isinstance(found, tuple) else ((), found)
  with eqn.ctx.manager:
    results = eqn.primitive.bind(*functions, *operands, **params)
  return results if eqn.primitive.multiple_results else [results]


def _types(variables: Sequence[Any]) -> list[Any]:
  """Shapes and dtypes; a reference to memory equals nothing."""
  return [
    object() if "Ref" in type(v.aval).__name__ else (getattr(v.aval, "shape", None), getattr(v.aval, "dtype", None))
    for v in variables
  ]
