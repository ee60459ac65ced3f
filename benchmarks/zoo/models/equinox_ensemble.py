"""Equinox: an ensemble of MLPs made and evaluated by `filter_vmap`, as its documentation has it."""

from typing import Any

from expected import bias, other, weight

PACKAGE, PYTHON = "equinox", "3.13"
REQUIRES = ["equinox==0.13.8", "jax==0.12.0.1", "optax==0.2.8"]
MODEL = "ensemble of `nn.Sequential`, `filter_vmap`"


def build() -> tuple[Any, Any, tuple[Any, ...]]:
  import equinox as eqx
  import jax
  import jax.numpy as jnp

  @eqx.filter_vmap
  def make(key: Any) -> Any:
    keys = jax.random.split(key, 3)
    first, norm, last = eqx.nn.Linear(8, 16, key=keys[0]), eqx.nn.LayerNorm(16), eqx.nn.Linear(16, 3, key=keys[1])
    return eqx.nn.Sequential([first, norm, eqx.nn.Lambda(jax.nn.relu), last])

  @eqx.filter_vmap(in_axes=(eqx.if_array(0), None))
  def evaluate(model: Any, xs: Any) -> Any:
    return jax.vmap(model)(xs)

  return evaluate, make(jax.random.split(jax.random.key(0), 4)), (jnp.ones((5, 8)),)


# Every leaf has a leading axis of 4 copies, which count as one layer: depth is an int, connections are one copy's.
# nn/_linear.py:97: (out, in) weights sum over their last axis.
LAYERS = 2
EXPECTED = {
  "layers/0/weight": weight(0, 128, (2,), stacked=(0,)),
  "layers/0/bias": bias("layers/0/weight", 0, 128, stacked=(0,)),
  "layers/1/weight": other(0, stacked=(0,)),
  "layers/1/bias": other(0, stacked=(0,)),
  "layers/3/weight": weight(1, 48, (2,), stacked=(0,)),
  "layers/3/bias": bias("layers/3/weight", 1, 48, stacked=(0,)),
}
