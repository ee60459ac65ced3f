"""FlowJAX: the density of a coupling flow, whose layers are stacked and scanned."""

from typing import Any

from expected import bias, other, weight

PACKAGE, PYTHON = "flowjax", "3.13"
REQUIRES = ["flowjax==19.1.2", "jax==0.12.0.1", "optax==0.2.8"]
MODEL = "`coupling_flow`, log density"


def build() -> tuple[Any, Any, tuple[Any, ...]]:
  import jax
  import jax.numpy as jnp
  from flowjax.distributions import Normal
  from flowjax.flows import coupling_flow

  flow = coupling_flow(jax.random.key(0), base_dist=Normal(jnp.zeros(5)), flow_layers=3, nn_width=10, nn_depth=2)
  return lambda flow, x: flow.log_prob(x), flow, (jnp.ones((4, 5)),)


# bijections/coupling.py: the first 5 // 2 = 2 entries go through an equinox MLP (3 Linear, (out, in)), whose 2 * 3
# results are scale and shift of the others. flows.py: the layers are made by vmap (leading axis) and scanned in
# order, as log_prob goes through Invert(Scan).inverse; a permutation stands between them, so that each MLP follows
# the last. The base's scale divides what comes out: it follows the ninth product.
MLP = "bijection/bijection/bijection/bijections/0/conditioner/layers"
DEPTHS = [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
SIZES = [10 * 2, 10 * 10, 6 * 10]
LAYERS = 9
EXPECTED = {
  **{f"{MLP}/{i}/weight": weight(DEPTHS[i], SIZES[i], (2,), stacked=(0,)) for i in range(3)},
  **{f"{MLP}/{i}/bias": bias(f"{MLP}/{i}/weight", DEPTHS[i], SIZES[i], stacked=(0,)) for i in range(3)},
  "base_dist/bijection/scale/args/0": other(8),
}
