"""Compiles one donated step for a mesh of 2×2 chips of TPU v5e, and reads off the program what the chips exchange.

The weights are (in, out), and ND-Adam's vectors are their columns: a mesh axis along the output splits no vector, one
along the input splits every one. Gradients are split as their weights.
"""

import dataclasses
from typing import Any

import jax
from ahead_of_time import nbytes
from cases import CASES, kernels
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from targets import devices_of
from traffic import collectives

import optax_ext

NOTHING: dict[str, int] = {}


@dataclasses.dataclass(frozen=True)
class Sharded:
  """A step on a mesh with the axes "data" and "model", 2 chips along each.

  Attributes:
    case: The name of the optimizer, in `CASES`.
    params: How each weight is split.
    expected: The collectives of the step, by name.
    state: How each moment is split; by default as its weight.
    leaves: How many weights there are.
  """

  case: str
  params: P
  expected: dict[str, int]
  state: P | None = None
  leaves: int = 4


SHARDED = {
  "exadam, output split": Sharded("exadam", P(None, "model"), NOTHING),
  "exadam, input split": Sharded("exadam", P("data"), NOTHING),
  "exadam, both split": Sharded("exadam", P("data", "model"), NOTHING),
  "exadam, input split over all chips": Sharded("exadam", P(("data", "model")), NOTHING),
  "adamnx, both split": Sharded("adamnx", P("data", "model"), NOTHING),
  "caadam, both split": Sharded("caadam, additive", P("data", "model"), NOTHING),
  # A copy of the weights on every chip, a part of the state on each (ZeRO): each chip makes the part of the step whose
  # moments it holds, and the parts are gathered.
  "exadam, state split": Sharded("exadam", P(), {"all-gather": 4}, state=P("data")),
  "adamnx, state split": Sharded("adamnx", P(), {"all-gather": 4}, state=P(("data", "model"))),
  "caadam, output split, state split": Sharded(
    "caadam, additive", P(None, "model"), {"all-gather": 4}, state=P("data", "model")
  ),
  "exadam, bfloat16 moments, both split": Sharded("exadam, bfloat16 moments", P("data", "model"), NOTHING),
  # Rows of the last axis have one scale each: where chips hold parts of a row, they exchange its maxima.
  "exadam, 8 bits, input split": Sharded("exadam, 8 bits, a scale per row", P("data"), NOTHING),
  "exadam, 8 bits, output split": Sharded("exadam, 8 bits, a scale per row", P(None, "model"), {"all-reduce": 1}),
  "exadam, 8 bits, blocks along the input, output split": Sharded(
    "exadam, 8 bits, blocks of 128 along axis -2", P(None, "model"), NOTHING
  ),
  "nd_adam, state split along the output": Sharded("nd_adam", P(), {"all-gather": 4}, state=P(None, "data")),
  "nd_adam, output split": Sharded("nd_adam", P(None, "model"), NOTHING),
  "nd_adam, input split": Sharded("nd_adam", P("data"), {"all-reduce": 2}),
  "nd_adam, both split": Sharded("nd_adam", P("data", "model"), {"all-reduce": 2}),
  "nd_adam, input split, 40 leaves": Sharded("nd_adam", P("data"), {"all-reduce": 3}, leaves=40),
}


def exchanged(sharded: Sharded, side: int = 1024) -> tuple[dict[str, int], float]:
  """The collectives of one step, by name, and the part of the optimizer's state that a chip holds."""
  tx, step = CASES[sharded.case].tx, CASES[sharded.case].step
  mesh = jax.make_mesh((2, 2), ("data", "model"), (AxisType.Auto,) * 2, devices=devices_of("v5e"))
  shapes = kernels(sharded.leaves, side)
  of_params = jax.tree.map(lambda leaf: NamedSharding(mesh, sharded.params), shapes)
  of_state = optax_ext.state_shardings(tx, shapes, NamedSharding(mesh, sharded.state or sharded.params))
  place = lambda leaf, sharding: leaf.update(sharding=sharding)
  params = jax.tree.map(place, shapes, of_params)
  state = jax.tree.map(place, jax.eval_shape(tx.init, shapes), of_state)

  def donated_step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
    return step(tx, grads, state, params)

  jitted = jax.jit(donated_step, donate_argnums=(0, 1), out_shardings=(of_params, of_state))
  compiled = jitted.lower(params, state, params).compile()
  on_a_chip = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.sharding.shard_shape(x.shape), x.dtype), tree)
  return collectives(compiled.as_text() or ""), nbytes(on_a_chip(state)) / nbytes(state)
