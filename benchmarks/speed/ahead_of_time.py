"""Compiles one donated step for a target, and reads off the program what it costs."""

import dataclasses
import math
from typing import Any

import jax
from cases import Case, kernels
from jax.sharding import SingleDeviceSharding
from targets import compile_for, devices_of, kind_of, lowering_for
from traffic import bytes_moved, reused_bytes


@dataclasses.dataclass(frozen=True)
class Cost:
  """What a step costs.

  Attributes:
    moved: Bytes of device memory read and written, per parameter.
    least: Bytes of all arguments and results, per parameter: what a single pass moves.
    state: Bytes of the optimizer's state, per parameter.
    temporaries: Bytes of memory that are in use only during the step, as a part of the parameters' bytes.
    wasted: Bytes of the donated parameters and state, in all, that do not lend their memory to a result.
    traces: How often jax traced the step for it and for the next step, which gets its results.
  """

  moved: float
  least: float
  state: float
  temporaries: float
  wasted: int
  traces: int


def cost_of(case: Case, target: str, leaves: int = 4, side: int = 4096) -> Cost:
  """The cost of one step of `case` on square weights, on the first device of `target`."""
  sharding = SingleDeviceSharding(devices_of(target)[0])
  on_device = lambda tree: jax.tree.map(lambda leaf: leaf.update(sharding=sharding), tree)
  traces = []

  def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
    traces.append(1)
    return case.step(case.tx, grads, state, params)

  params = on_device(kernels(leaves, side, case.dtype))
  state = on_device(jax.eval_shape(case.tx.init, params))
  step = jax.jit(step, donate_argnums=(0, 1))
  with lowering_for(target):
    compiled = compile_for(target, step.lower(params, state, params))
    results = step.eval_shape(params, state, params)
    step.lower(*on_device(results), params)  # the next step
  text = compiled.as_text() or ""
  size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
  # What a kernel says of itself XLA believes, and there the operands are counted too.
  trusted = kind_of(target) == "tpu" and "custom-call" not in text
  moved = compiled.cost_analysis()["bytes accessed"] if trusted else bytes_moved(text)
  return Cost(
    moved=moved / size,
    least=nbytes((params, state, params, results)) / size,
    state=nbytes(state) / size,
    temporaries=compiled.memory_analysis().temp_size_in_bytes / nbytes(params),
    wasted=nbytes((params, state)) - reused_bytes(text),
    traces=len(traces),
  )


def nbytes(tree: Any) -> int:
  """Bytes of all arrays of a tree."""
  return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
