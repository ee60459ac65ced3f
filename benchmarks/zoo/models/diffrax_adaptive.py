"""Diffrax: a neural ODE solved by Tsitouras' method with adaptive steps, as its documentation has it."""

from typing import Any

from expected import bias, weight

PACKAGE, PYTHON = "diffrax", "3.13"
REQUIRES = ["diffrax==0.7.2", "jax==0.12.0.1", "optax==0.2.8"]
MODEL = "neural ODE, `Tsit5`, adaptive steps, `SaveAt(ts)`"


def build() -> tuple[Any, Any, tuple[Any, ...]]:
  import diffrax
  import equinox as eqx
  import jax
  import jax.numpy as jnp

  keys = jax.random.split(jax.random.key(0), 3)
  model = {
    "encoder": eqx.nn.Linear(4, 6, key=keys[0]),
    "field": eqx.nn.MLP(6, 6, width_size=10, depth=2, activation=jax.nn.softplus, key=keys[1]),
    "head": eqx.nn.Linear(6, 2, key=keys[2]),
  }

  def one(model: Any, x: Any, times: Any) -> Any:
    solution = diffrax.diffeqsolve(
      diffrax.ODETerm(lambda t, y, field: field(y)),
      diffrax.Tsit5(),
      t0=times[0],
      t1=times[-1],
      dt0=times[1] - times[0],
      y0=model["encoder"](x),
      args=model["field"],
      stepsize_controller=diffrax.PIDController(rtol=1e-3, atol=1e-6),
      saveat=diffrax.SaveAt(ts=times),
    )
    return jax.vmap(model["head"])(solution.ys)

  def apply(model: Any, xs: Any, times: Any) -> Any:
    return jax.vmap(lambda x: one(model, x, times))(xs)

  return apply, model, (jnp.ones((3, 4)), jnp.linspace(0.0, 1.0, 7))


# Equinox's Linear is (out, in), axis 1. The field is first evaluated at the encoder's result: least depths 1, 2, 3. How
# often the method's stages count in the depth of the head is open (a loop counts once, unrolled stages one by one).
LAYERS = ...
EXPECTED = {
  "encoder/weight": weight(0, 24, (1,)),
  "encoder/bias": bias("encoder/weight", 0, 24),
  "field/layers/0/weight": weight(1, 60, (1,)),
  "field/layers/0/bias": bias("field/layers/0/weight", 1, 60),
  "field/layers/1/weight": weight(2, 100, (1,)),
  "field/layers/1/bias": bias("field/layers/1/weight", 2, 100),
  "field/layers/2/weight": weight(3, 60, (1,)),
  "field/layers/2/bias": bias("field/layers/2/weight", 3, 60),
  "head/weight": weight(..., 12, (1,)),
  "head/bias": bias("head/weight", ..., 12),
}
