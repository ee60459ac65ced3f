"""JAX MD: forces of a Behler-Parrinello network, the derivative of its energy in the positions."""

from typing import Any

PACKAGE, PYTHON = "jax-md", "3.13"
REQUIRES = ["jax-md==0.2.29", "jax==0.12.0.1", "optax==0.2.8"]
MODEL = "`energy.behler_parrinello`, energy and forces"


def build() -> tuple[Any, Any, tuple[Any, ...]]:
  import jax
  import jax.numpy as jnp
  from flax import nnx
  from jax_md import energy, space

  displacement, _ = space.periodic(5.0)
  model = energy.behler_parrinello(displacement, key=jax.random.key(0), mlp_sizes=(7, 6)).model
  graph, state = nnx.split(model)

  def apply(state: Any, positions: Any) -> Any:
    return jax.value_and_grad(lambda positions: nnx.merge(graph, state)(positions))(positions)

  return apply, state, (jax.random.uniform(jax.random.key(1), (4, 3)) * jnp.float32(5.0),)
