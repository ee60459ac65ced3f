"""The steps that are measured, and what each may cost: bytes of device memory per float32 parameter.

A parameter, its gradient and its two moments in float32 are four words to read, and three to write: 28 bytes. No step
that reads and writes each of them can move less.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optax_ext
from optax_ext._memory.quantize import quantize_state
from optax_ext._memory.rounding import stochastic
from optax_ext._run.apply import update_and_apply

sys.path.append(str(pathlib.Path(__file__).parents[2] / "examples"))

import compose
from targets import kind_of

ADAM = {"tpu": 28.01, "gpu": 28.01}
BFLOAT16 = {"tpu": 20.1, "gpu": 20.1}
BY_ROW = {"tpu": 22.1, "gpu": 22.1}
ONE_PASS = {"tpu": 32.1, "gpu": 32.1}
CHAIN_OF_VECTORS = {"tpu": 48.1, "gpu": 52.1}  # several passes: each sum needs the result of the one before


def update_then_apply(tx: optax.GradientTransformation, grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
  """A step as training loops write it."""
  updates, state = tx.update(grads, state, params)
  return optax.apply_updates(params, updates), state


@dataclasses.dataclass(frozen=True)
class Case:
  """A step: an optimizer, how it is applied, and its limits.

  Attributes:
    tx: The optimizer.
    limits: Bytes per parameter that the step may move, by target or kind of target, "tpu" or "gpu".
    temporaries: Bytes that it may need besides, as a part of the bytes of two parameters.
    step: From (tx, grads, state, params) to (params, state).
    dtype: Of the parameters and gradients.
  """

  tx: optax.GradientTransformation
  limits: dict[str, float] = dataclasses.field(default_factory=lambda: ADAM)
  temporaries: float = 0.01
  step: Callable[..., tuple[Any, Any]] = update_then_apply
  dtype: Any = jnp.float32

  def limit(self, target: str) -> float | None:
    """The limit for a target; `None` if the step is not for it."""
    return self.limits.get(target, self.limits.get(kind_of(target)))


def kernels(leaves: int = 4, side: int = 4096, dtype: Any = jnp.float32) -> dict[str, Any]:
  """Abstract parameters: square weights."""
  return {f"hidden_{i}": {"kernel": jax.ShapeDtypeStruct((side, side), dtype)} for i in range(leaves)}


def on_large_chips(limit: float) -> dict[str, float]:
  """A limit for all TPUs but v4, on whose 16 MiB whole vectors of 4096 elements do not fit."""
  return dict.fromkeys(("v5e", "v5p", "v6e", "tpu7x"), limit)


@dataclasses.dataclass(frozen=True)
class OfUnequalLayers:
  """A rule of equal weights as if their numbers of connections differed, so that it does not give 1 for all."""

  rule: Any

  def scales(self, structure: optax_ext.Structure) -> Any:
    """Those of the rule."""
    facts = jax.tree.map(lambda f: dataclasses.replace(f, connections=f.connections * (1 + f.depth)), structure.facts)
    return self.rule.scales(optax_ext.Structure(facts, structure.num_layers))


RATE = 1e-3
COSINE = optax.cosine_decay_schedule(RATE, 1000)
HALF_WIDTH = jnp.bfloat16
HALF = optax_ext.label_paths("hidden_[02]")
MULTIPLICATIVE = OfUnequalLayers(optax_ext.Multiplicative())
PAPERS = {"exadam": optax_ext.exadam, "adamnx": optax_ext.adamnx, "caadam": optax_ext.caadam}

CASES = {
  "optax.adam": Case(optax.adam(RATE)),
  "optax.adamw": Case(optax.adamw(RATE)),
  "optax.nadam": Case(optax.nadam(RATE)),
  "exadam": Case(optax_ext.exadam(RATE)),
  "exadam, no log step": Case(optax_ext.exadam(RATE, log_step=False)),
  "exadam, decay, mask, cosine": Case(optax_ext.exadam(COSINE, weight_decay=0.1, mask=HALF)),
  "adamnx": Case(optax_ext.adamnx(RATE)),
  "adamnx, mask, cosine": Case(optax_ext.adamnx(COSINE, mask=HALF)),
  "adamnx, log step": Case(optax_ext.adamnx(optax_ext.log_step_size(RATE))),
  "adamnx, injected hyperparameters": Case(optax.inject_hyperparams(optax_ext.adamnx)(COSINE)),
  "caadam, additive": Case(optax_ext.caadam(RATE, rule=OfUnequalLayers(optax_ext.Additive()))),
  "caadam, multiplicative": Case(optax_ext.caadam(RATE, rule=MULTIPLICATIVE)),
  "caadam, by depth": Case(optax_ext.caadam(RATE, rule=optax_ext.ByDepth())),
  "caadam, decay, mask, cosine": Case(optax_ext.caadam(COSINE, weight_decay=0.1, mask=HALF, rule=MULTIPLICATIVE)),
  "AdamNX's second moment in EXAdam": Case(compose.adamnx_in_exadam),
  "EXAdam by depth": Case(compose.exadam_by_depth),
  **{
    f"{name}, bfloat16 moments": Case(
      make(RATE, mu_dtype=HALF_WIDTH, nu_dtype=HALF_WIDTH, rounding=stochastic(0)), BFLOAT16
    )
    for name, make in PAPERS.items()
  },
  **{f"{name}, 8 bits, a scale per row": Case(quantize_state(make(RATE)), BY_ROW) for name, make in PAPERS.items()},
  **{
    f"{name}, 8 bits, kernel": Case(
      quantize_state(make(COSINE, weight_decay=0.1), kernel="pallas"),
      on_large_chips(16.1) | {"gpu": 16.1},
      step=update_and_apply,
    )
    for name, make in PAPERS.items()
  },
  **{
    f"exadam, bfloat16 weights, 8 bits, kernel, {blocks}": Case(
      quantize_state(optax_ext.exadam(COSINE, weight_decay=0.1), block=block, axis=-1, kernel="pallas"),
      limits,
      step=update_and_apply,
      dtype=jnp.bfloat16,
    )
    for blocks, block, limits in (
      ("a scale per row", None, on_large_chips(10.1) | {"gpu": 10.1}),
      ("blocks of 256", 256, {"gpu": 10.1}),
      ("blocks of 128", 128, {"gpu": 10.13}),  # 1/16 of a byte for each scale, read and written
    )
  },
  **{
    f"{name}, 8 bits, blocks of {block} along axis {axis}": Case(
      quantize_state(make(RATE), block=block, axis=axis, kernel="xla"), {kind: 22.6}, 0.04, update_and_apply
    )
    for name, make in PAPERS.items()
    for block in (128, 256)
    for axis, kind in ((-2, "tpu"), (-1, "gpu"))
  },
  "nd_adam": Case(optax_ext.nd_adam(RATE), ONE_PASS),
  "nd_adam, vectors along rows": Case(optax_ext.nd_adam(RATE, axes=(1,)), {"tpu": 32.4, "gpu": 32.1}),
  "nd_adam, kernel": Case(optax_ext.nd_adam(RATE, kernel="pallas"), on_large_chips(20.1), step=update_and_apply),
  "nd_adam, kernel, bfloat16 mean": Case(
    optax_ext.nd_adam(RATE, mu_dtype=HALF_WIDTH, kernel="pallas"), on_large_chips(16.1), step=update_and_apply
  ),
  "AdamNX on ND-Adam's vectors": Case(compose.nd_adamnx, CHAIN_OF_VECTORS, 0.51),
  "all four papers at once": Case(compose.all_at_once, CHAIN_OF_VECTORS, 1.01),
}

# Those that fit any parameters, for measurements of time
TIMED = ("optax.adam", "optax.adamw", "optax.nadam", "exadam", "adamnx", "caadam, by depth", "nd_adam")


IN_16_BITS: dict[str, Any] = {"mu_dtype": HALF_WIDTH, "nu_dtype": HALF_WIDTH, "rounding": stochastic(1)}


def adam_in_16_bits(rate: float) -> optax.GradientTransformation:
  """Adam with bfloat16 moments, rounded by chance."""
  moments = optax_ext.scale_by_moments(
    optax_ext.constant_gain(0.9),
    optax_ext.constant_gain(0.999),
    debias=optax_ext.standard(0.9, 0.999),
    **IN_16_BITS,
  )
  return optax.chain(moments, optax.scale_by_learning_rate(rate))


def in_8_bits(**options: Any) -> optax.GradientTransformation:
  """Adam with 8-bit moments, rounded by chance: no byte more than with the nearest codes."""
  return quantize_state(optax.adam(RATE), rounding=stochastic(1), **options)


# Adam on bfloat16 weights and gradients, beside Adam in float32. XLA for TPUs splits some of the steps into several
# passes, on tpu7x all that mix 8-bit and bfloat16 arrays: results/speed/traffic_low_precision.md has their numbers, no
# limits.
KERNEL: dict[str, Any] = {"axis": -1, "kernel": "pallas"}
BLOCKS = {"block": 128} | KERNEL
ONE_PASS_OF_WEIGHTS = {"v5e": 16.1, "v6e": 16.1, "gpu": 16.1}
LOW_PRECISION = {"optax.adam": CASES["optax.adam"]} | {
  name: Case(tx, limits, step=update_and_apply, dtype=HALF_WIDTH)
  for name, tx, limits in (
    ("split weights", optax_ext.split_weights(optax.adam(RATE)), {"v5e": 24.1, "v6e": 24.1, "gpu": 24.1}),
    ("split weights, bfloat16 moments", optax_ext.split_weights(adam_in_16_bits(RATE)), ONE_PASS_OF_WEIGHTS),
    (
      "split weights, bfloat16 moments, adamnx",
      optax_ext.split_weights(optax_ext.adamnx(RATE, **IN_16_BITS)),
      ONE_PASS_OF_WEIGHTS,
    ),
    (
      "split weights, bfloat16 moments, exadam",
      optax_ext.split_weights(optax_ext.exadam(RATE, **IN_16_BITS)),
      {"v5e": 16.1, "gpu": 16.1},
    ),
    ("split weights, 8 bits, a scale per row", optax_ext.split_weights(in_8_bits()), {"v5e": 16.1, "gpu": 16.1}),
    (
      "split weights, 8 bits, kernel, a scale per row",
      optax_ext.split_weights(in_8_bits(**KERNEL)),
      on_large_chips(12.1) | {"gpu": 12.1},
    ),
    ("split weights, 8 bits, kernel", optax_ext.split_weights(in_8_bits(**BLOCKS)), {"gpu": 12.13}),
    ("bfloat16 weights, 8 bits, a scale per row", in_8_bits(), {"v5e": 14.1, "v6e": 14.1, "gpu": 14.1}),
    ("bfloat16 weights, 8 bits, kernel", in_8_bits(**BLOCKS), {"gpu": 10.13}),
  )
}
