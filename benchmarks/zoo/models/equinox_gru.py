"""Equinox: a convolution over time, then a GRU in a scan over time, then a head."""

from typing import Any

from expected import bias, other, weight

PACKAGE, PYTHON = "equinox", "3.13"
REQUIRES = ["equinox==0.13.8", "jax==0.12.0.1", "optax==0.2.8"]
MODEL = "`nn.Conv1d`, `nn.GroupNorm`, `nn.GRUCell`"


def build() -> tuple[Any, Any, tuple[Any, ...]]:
  import equinox as eqx
  import jax
  import jax.numpy as jnp

  keys = jax.random.split(jax.random.key(0), 3)
  model = {
    "conv": eqx.nn.Conv1d(4, 6, 3, padding=1, key=keys[0]),
    "norm": eqx.nn.GroupNorm(2, 6),
    "cell": eqx.nn.GRUCell(6, 10, key=keys[1]),
    "head": eqx.nn.Linear(10, 2, key=keys[2]),
  }

  def one(model: Any, x: Any) -> Any:
    x = model["norm"](model["conv"](x))
    state, _ = jax.lax.scan(lambda h, row: (model["cell"](row, h), None), jnp.zeros(10), x.T)
    return model["head"](state)

  return lambda model, xs: jax.vmap(lambda x: one(model, x))(xs), model, (jnp.ones((2, 4, 9)),)


# nn/_conv.py:171: kernels are (out, in, *window), biases (out, 1); :239 sums over all but axis 0. nn/_rnn.py,
# GRUCell.__call__: igates = W_ih x + bias, hgates = W_hh h; they are added to one another, so that both have the
# depth of W_ih's product; bias_n is added to a third of hgates, and belongs to W_hh.
LAYERS = 3
EXPECTED = {
  "conv/weight": weight(0, 6 * 4 * 3, (1, 2)),
  "conv/bias": bias("conv/weight", 0, 6 * 4 * 3),
  "norm/weight": other(0),
  "norm/bias": other(0),
  "cell/weight_ih": weight(1, 30 * 6, (1,)),
  "cell/weight_hh": weight(1, 30 * 10, (1,)),
  "cell/bias": bias("cell/weight_ih", 1, 30 * 6),
  "cell/bias_n": bias("cell/weight_hh", 1, 30 * 10),
  "head/weight": weight(2, 20, (1,)),
  "head/bias": bias("head/weight", 2, 20),
}
