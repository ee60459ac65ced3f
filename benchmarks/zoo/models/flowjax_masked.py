"""FlowJAX: the density of a masked autoregressive flow, whose weights are masked before they meet the input."""

from typing import Any

from expected import bias, other, weight

PACKAGE, PYTHON = "flowjax", "3.13"
REQUIRES = ["flowjax==19.1.2", "jax==0.12.0.1", "optax==0.2.8"]
MODEL = "`masked_autoregressive_flow`, log density"


def build() -> tuple[Any, Any, tuple[Any, ...]]:
  import jax
  import jax.numpy as jnp
  from flowjax.distributions import Normal
  from flowjax.flows import masked_autoregressive_flow

  base = Normal(jnp.zeros(5))
  flow = masked_autoregressive_flow(jax.random.key(0), base_dist=base, flow_layers=2, nn_width=10, nn_depth=1)
  return lambda flow, x: flow.log_prob(x), flow, (jnp.ones((4, 5)),)


# bijections/masked_autoregressive.py: an equinox MLP of 2 Linear (out, in); Parameterize(jnp.where, mask, weight, 0)
# masks each weight when paramax unwraps it: masked entries count as connections, the matrix is dense. flows.py:
# layers are made by vmap (leading axis) and scanned in order by log_prob. All 5 entries go in, and 2 parameters for
# each come out.
MLP = "bijection/bijection/bijection/bijections/0/masked_autoregressive_mlp/layers"
LAYERS = 4
EXPECTED = {
  f"{MLP}/0/weight/args/1": weight([0, 2], 50, (2,), stacked=(0,)),
  f"{MLP}/0/bias": bias(f"{MLP}/0/weight/args/1", [0, 2], 50, stacked=(0,)),
  f"{MLP}/1/weight/args/1": weight([1, 3], 100, (2,), stacked=(0,)),
  f"{MLP}/1/bias": bias(f"{MLP}/1/weight/args/1", [1, 3], 100, stacked=(0,)),
  "base_dist/bijection/scale/args/0": other(3),
}
