"""Finds the elementwise part of an optimizer's step in its program, and runs it on arrays of any shape.

A fused step runs any optimizer whose step is elementwise. It takes the optimizer's own program apart. XLA computes the
numbers that all elements share (bias corrections, rates). The rest is evaluated on blocks of a leaf: in a kernel, or in
the shape of blocks of 128 or 256 elements, so that XLA writes nothing to memory between two shapes.
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


def evaluated(equation: Any, operands: Sequence[Any], shape: tuple[int, ...]) -> jax.Array:
  """The result of an elementwise equation, on blocks of some shape."""
  dtype = equation.outvars[0].aval.dtype
  match equation.primitive.name:
    case "broadcast_in_dim":
      return jnp.full(shape, operands[0], dtype)
    case "copy" | "stop_gradient":
      return operands[0]
    case "sign":  # jax's kernels ask which TPU this process has, and ahead of time it has none
      x = operands[0].astype(jnp.float32)
      return jnp.where(x > 0, 1, jnp.where(x < 0, -1, x)).astype(dtype)
    case _:
      return equation.primitive.bind(*operands, **equation.params)


@dataclasses.dataclass(frozen=True)
class Elementwise:
  """A part of a program, for arrays of any one shape: variables and equations, in order, and how one is evaluated."""

  inputs: Sequence[Any]
  numbers: Sequence[Any]
  equations: Sequence[Any]
  results: Sequence[Any]
  evaluate: Callable[..., jax.Array] = evaluated

  def packed(self, numbers: Sequence[Any]) -> jax.Array:
    """The numbers as one array of float32, after a first that keeps it from being empty."""
    return jnp.stack([jnp.zeros([], jnp.float32), *(jnp.asarray(x, jnp.float32) for x in numbers)])

  def unpacked(self, packed: Any) -> list[jax.Array]:
    """The numbers, from that array or a reference to it."""
    numbers = [(packed[i + 1], var.aval.dtype) for i, var in enumerate(self.numbers)]
    return [x != 0 if dtype == jnp.bool_ else x.astype(dtype) for x, dtype in numbers]

  def __call__(self, numbers: Sequence[Any], *arrays: jax.Array) -> list[jax.Array]:
    """The results."""
    value = dict(zip(self.inputs, arrays, strict=True)) | dict(zip(self.numbers, numbers, strict=True))
    of = lambda var: var.val if is_literal(var) else value[var]
    for equation in self.equations:
      (var,), operands = equation.outvars, [of(operand) for operand in equation.invars]
      value[var] = self.evaluate(equation, operands, arrays[0].shape)
    return [of(result) for result in self.results]
