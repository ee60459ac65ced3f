"""A step on 8-bit moments as one kernel for TPUs: 16 bytes of traffic per float32 parameter, where XLA's has 22.

XLA reads gradient and codes twice, since codes need the largest moment of a row, and then the parameter, to which it
adds the update. A block of whole rows on chip has all of that at hand.

The kernel runs any optimizer, provided that its step is elementwise: it takes the optimizer's own program apart, leaves
the numbers that all elements share (bias corrections, rates) to XLA, and evaluates the rest on each block. The same
part, evaluated in the shape of blocks of 128 or 256 elements, spares XLA what it would write to memory between shapes.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.extend.core import Literal

from optax_ext.codes import CODES, decode, encode, in_blocks, largest_of, per_block, scale_for, scale_of
from optax_ext.kernels import compiler_params, described, thickness, unfit
from optax_ext.primitives import IN_KERNELS

SUBLANES = 32  # rows of a tile of 8-bit numbers
COPIES = 24  # float32 blocks on chip: four arrays, twice each (one computed, one in transit), and intermediate results


class NotServedError(Exception):
  """Why a leaf is not for the kernel."""


class Stepped(NamedTuple):
  """A leaf after a step."""

  param: jax.Array
  codes: list[jax.Array]
  scales: list[jax.Array]


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
      needed = [var for var in equation.invars if not isinstance(var, Literal)]
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
      if isinstance(var, Literal) or var in seen:
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
    of = lambda var: var.val if isinstance(var, Literal) else value[var]
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


def check_codes(codes: Sequence[Any], scales: Sequence[Any]) -> None:
  """Raises `NotServedError` for a leaf whose moments are not all in codes, of one layout."""
  if any(getattr(leaf, "dtype", None) not in CODES for leaf in codes) or len({s.shape for s in scales}) > 1:
    raise NotServedError("not all of its moments have codes, in one layout")


def rows_of(grad: Any, param: Any, scale: Any) -> int:
  """How many rows of a leaf make a block.

  Raises:
    NotServedError: the leaf cannot be cut into blocks of whole rows.
  """
  shape, rows = param.shape, math.prod(param.shape[:-1])
  if scale.shape != (*shape[:-1], 1):
    raise NotServedError("it has not one scale for each row of the last axis")
  if reason := unfit(grad, param, sublanes=SUBLANES):
    raise NotServedError(reason)
  size = thickness((256, 128, 64, SUBLANES), rows, shape[-1], COPIES)
  if size is None:
    raise NotServedError(f"rows of {shape[-1]} elements do not fit on the chip")
  return size


def step_in_xla(
  step: Elementwise, numbers: Any, grad: Any, param: Any, codes: Sequence[Any], scales: Sequence[Any]
) -> Stepped:
  """A step in two passes over memory, of 22 bytes and the scales.

  All of it is in the shape of blocks, from before the codes are cast to after the update is applied: XLA fuses no
  arithmetic across a change of shape, and would write arrays of float32 to memory.
  """
  shape, layout, dtypes = param.shape, scales[0].shape, [leaf.dtype for leaf in codes]
  old = [in_blocks(leaf, layout) for leaf in (grad, param, *codes)], [per_block(scale, shape) for scale in scales]

  def stepped(arrays: Any, scales: Any) -> list[jax.Array]:
    grad, param, *codes = arrays
    return step(numbers, grad, param, *(decode(c, s) for c, s in zip(codes, scales, strict=True)))

  first = zip(stepped(*old)[1:], old[1], dtypes, strict=True)
  largest = [largest_of(moment, scale.shape, dtype) for moment, scale, dtype in first]
  old, largest = jax.lax.optimization_barrier((old, largest))
  new_scales = [scale_of(of_block, dtype) for of_block, dtype in zip(largest, dtypes, strict=True)]
  new_param, *moments = stepped(*old)
  new_codes = [encode(m, s, dtype) for m, s, dtype in zip(moments, new_scales, dtypes, strict=True)]
  whole = lambda new, old: [x.reshape(y.shape) for x, y in zip(new, old, strict=True)]
  return Stepped(new_param.reshape(shape), whole(new_codes, codes), whole(new_scales, scales))


def step_in_kernel(
  step: Elementwise, numbers: Any, grad: Any, param: Any, codes: Any, scales: Any, *, rows: int, interpret: bool = False
) -> Stepped:
  """The same in one pass, in blocks of so many rows."""
  shape, count = param.shape, len(codes)
  matrix = lambda x: x.reshape(-1, x.shape[-1])
  dtypes = [var.aval.dtype for var in step.numbers]
  shared = jnp.stack([jnp.zeros([], jnp.float32), *(jnp.asarray(x, jnp.float32) for x in numbers)])

  def kernel(shared_ref, g_ref, w_ref, *refs):
    codes_refs, scale_refs, (new_w_ref, *new_refs) = refs[:count], refs[count : 2 * count], refs[2 * count :]
    numbers = [shared_ref[i + 1] for i in range(len(dtypes))]
    numbers = [x != 0 if dtype == jnp.bool_ else x.astype(dtype) for x, dtype in zip(numbers, dtypes, strict=True)]
    moments = [decode(c[...], turned(s[0])) for c, s in zip(codes_refs, scale_refs, strict=True)]
    new_w, *moments = step(numbers, g_ref[...], w_ref[...], *moments)
    new_w_ref[...] = new_w
    for moment, codes_ref, scale_ref in zip(moments, new_refs[:count], new_refs[count:], strict=True):
      scale = scale_for(moment, (rows, 1), codes_ref.dtype)
      codes_ref[...] = encode(moment, scale, codes_ref.dtype)
      scale_ref[0] = turned(scale)

  def turned(x: jax.Array) -> jax.Array:
    """A row as a column, or a column as a row. In memory a column of numbers would take as much as 128 columns."""
    i, j = (jax.lax.broadcasted_iota(jnp.int32, (rows, rows), axis) for axis in (0, 1))
    return jnp.sum(jnp.where(i == j, x, 0), 0 if x.shape[1] == 1 else 1, keepdims=True)

  whole = pl.BlockSpec((rows, shape[-1]), lambda i: (i, 0))
  one = pl.BlockSpec((1, 1, rows), lambda i: (i, 0, 0))
  arrays = [*(matrix(x) for x in (param, *codes)), *(scale.reshape(-1, 1, rows) for scale in scales)]
  specs = [whole] * (1 + count) + [one] * count
  new = pl.pallas_call(
    kernel,
    grid=(arrays[0].shape[0] // rows,),
    in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM), whole, *specs],
    out_specs=specs,
    out_shape=[described(x) for x in arrays],
    input_output_aliases={i + 2: i for i in range(len(arrays))},
    compiler_params=compiler_params(),
    cost_estimate=pl.CostEstimate(
      flops=100 * grad.size,
      transcendentals=2 * grad.size,
      bytes_accessed=grad.nbytes + 2 * sum(x.nbytes for x in arrays),
    ),
    interpret=interpret,
    name="quantized_step",
  )(shared, matrix(grad), *arrays)
  new = [x.reshape(old.shape) for x, old in zip(new, (param, *codes, *scales), strict=True)]
  return Stepped(new[0], new[1 : 1 + count], new[1 + count :])
