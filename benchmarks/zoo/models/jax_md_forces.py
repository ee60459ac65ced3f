"""JAX MD: forces of a Behler-Parrinello network, the derivative of its energy in the positions."""

from typing import Any

from expected import bias, weight

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


# energy.py, BehlerParrinelloEnergy: 30 symmetry functions of each atom, then the MLP of nn.py, nnx.Linear (in, out),
# axis 0, and the sum over atoms. Forces are its derivative in the positions; products that run backwards are no layers.
SIZES = [30 * 7, 7 * 6, 6 * 1]
LAYERS = 3
EXPECTED = {
  **{f"mlp/layers_{i}/kernel": weight(i, SIZES[i], (0,)) for i in range(3)},
  **{f"mlp/layers_{i}/bias": bias(f"mlp/layers_{i}/kernel", i, SIZES[i]) for i in range(3)},
}
