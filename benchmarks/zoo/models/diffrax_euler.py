"""Diffrax: a neural ODE between an encoder and a head, solved in fixed steps by Euler's method."""

from typing import Any

from expected import bias, weight

PACKAGE, PYTHON = "diffrax", "3.13"
REQUIRES = ["diffrax==0.7.2", "jax==0.12.0.1", "optax==0.2.8"]
MODEL = "neural ODE, `Euler`, fixed steps"


def build() -> tuple[Any, Any, tuple[Any, ...]]:
  import diffrax
  import equinox as eqx
  import jax
  import jax.numpy as jnp

  keys = jax.random.split(jax.random.key(0), 3)
  model = {
    "encoder": eqx.nn.Linear(4, 6, key=keys[0]),
    "field": eqx.nn.MLP(6, 6, width_size=10, depth=1, key=keys[1]),
    "head": eqx.nn.Linear(6, 2, key=keys[2]),
  }

  def one(model: Any, x: Any) -> Any:
    term = diffrax.ODETerm(lambda t, y, field: field(y))
    start = model["encoder"](x)
    solution = diffrax.diffeqsolve(term, diffrax.Euler(), 0.0, 1.0, 0.1, start, args=model["field"])
    return model["head"](solution.ys[-1])

  return lambda model, xs: jax.vmap(lambda x: one(model, x))(xs), model, (jnp.ones((3, 4)),)


# Equinox's Linear is (out, in), axis 1. diffrax/_solver/euler.py: y1 = y0 + f(y0) (t1 - t0), in a loop over time, which
# counts once: the field follows the encoder, the head follows the field.
LAYERS = 4
EXPECTED = {
  "encoder/weight": weight(0, 24, (1,)),
  "encoder/bias": bias("encoder/weight", 0, 24),
  "field/layers/0/weight": weight(1, 60, (1,)),
  "field/layers/0/bias": bias("field/layers/0/weight", 1, 60),
  "field/layers/1/weight": weight(2, 60, (1,)),
  "field/layers/1/bias": bias("field/layers/1/weight", 2, 60),
  "head/weight": weight(3, 12, (1,)),
  "head/bias": bias("head/weight", 3, 12),
}
