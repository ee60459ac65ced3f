"""The elementwise part of an optimizer's step, found in its program, and run on arrays of any shape.

A fused step runs any optimizer, provided that its step is elementwise: it takes the optimizer's own program apart,
leaves the numbers that all elements share (bias corrections, rates) to XLA, and evaluates the rest on blocks of a leaf,
in a kernel or in the shape of blocks of 128 or 256 elements, which spares XLA what it would write to memory between
shapes.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp

from optax_ext._common.primitives import IN_KERNELS, is_literal


class NotServedError(Exception):
  """Why a leaf is not for the kernel."""


class Program:
  """A traced function, whose variables have values where they are asked for."""

  def __init__(self, program: Any, args: Sequence[Any]):
    self._jaxpr, self.inputs = program.jaxpr, program.jaxpr.invars
    self._source = {var: equation for equation in program.jaxpr.eqns for var in equation.outvars}
    self._values = dict(zip(program.jaxpr.constvars, program.consts, strict=True))
    self._values |= dict(zip(self.inputs, args, strict=True))

  @classmethod
  def of(cls, function: Callable[..., Any], args: Sequence[Any]) -> tuple["Program", Any]:
    """The program of `function(*args)`, and the variables of its results in their tree."""
    with jax.disable_jit():  # one list of equations, without calls
      program, results = jax.make_jaxpr(function, return_shape=True)(*args)
    return cls(program, args), jax.tree.unflatten(jax.tree.structure(results), program.jaxpr.outvars)

  def values(self, variables: Sequence[Any]) -> list[Any]:
    """Values of variables; only the equations that they need are evaluated, and each once."""
    return [self._value(var) for var in variables]

  def _value(self, var: Any) -> Any:
    if var not in self._values:
      equation = self._source[var]
      needed = [var for var in equation.invars if not is_literal(var)]
      alone = self._jaxpr.replace(constvars=[], invars=needed, outvars=equation.outvars, eqns=[equation])
      results = jax.core.eval_jaxpr(alone, [], *self.values(needed))
      self._values |= dict(zip(equation.outvars, results, strict=True))
    return self._values[var]

  def elementwise(self, inputs: Sequence[Any], results: Sequence[Any]) -> "Elementwise":
    """The part of the program that computes arrays from arrays of the same shape and from numbers.

    Raises:
      NotServedError: it needs more than that.
    """
    shape, seen, numbers, equations = inputs[0].aval.shape, set(inputs), [], []

    def find(var: Any) -> None:
      if is_literal(var) or var in seen:
        return
      seen.add(var)
      if var.aval.shape == ():
        if not (jnp.issubdtype(var.aval.dtype, jnp.floating) or var.aval.dtype == jnp.bool_):
          raise NotServedError(f"its step needs a number of dtype {var.aval.dtype}")
        numbers.append(var)
        return
      if var not in self._source:
        raise NotServedError("its step needs an array besides its gradient, parameter and moments")
      equation = self._source[var]
      name = equation.primitive.name
      operands: Sequence[Any] = equation.invars
      known = name in IN_KERNELS or name == "broadcast_in_dim"  # of a number
      if not known or any(operand.aval.shape not in ((), shape) for operand in operands):
        raise NotServedError(f"its step is not elementwise, or more than the kernel knows: {name!r}")
      for operand in operands:
        find(operand)
      equations.append(equation)

    for result in results:
      find(result)
    return Elementwise(inputs, numbers, equations, results)


@dataclasses.dataclass(frozen=True)
class Elementwise:
  """A part of a program, for arrays of any one shape: variables and equations, in order."""

  inputs: Sequence[Any]
  numbers: Sequence[Any]
  equations: Sequence[Any]
  results: Sequence[Any]

  def __call__(self, numbers: Sequence[Any], *arrays: jax.Array) -> list[jax.Array]:
    """The results."""
    value = dict(zip(self.inputs, arrays, strict=True)) | dict(zip(self.numbers, numbers, strict=True))
    of = lambda var: var.val if is_literal(var) else value[var]
    for equation in self.equations:
      (var,), operands = equation.outvars, [of(operand) for operand in equation.invars]
      match equation.primitive.name:
        case "broadcast_in_dim":
          result = jnp.full(arrays[0].shape, operands[0], var.aval.dtype)
        case "copy" | "stop_gradient":
          result = operands[0]
        case "sign":  # jax's kernels ask which TPU this process has, and ahead of time it has none
          x = operands[0].astype(jnp.float32)
          result = jnp.where(x > 0, 1, jnp.where(x < 0, -1, x)).astype(var.aval.dtype)
        case _:
          result = equation.primitive.bind(*operands, **equation.params)
      value[var] = result
    return [of(result) for result in self.results]
