"""FlowJAX: splines and triangular affine maps, whose weights are weight-normalized triangles."""

from typing import Any

from expected import bias, other, weight

PACKAGE, PYTHON = "flowjax", "3.13"
REQUIRES = ["flowjax==19.1.2", "jax==0.12.0.1", "optax==0.2.8"]
MODEL = "`triangular_spline_flow` with a condition, log density"


def build() -> tuple[Any, Any, tuple[Any, ...]]:
  import jax
  import jax.numpy as jnp
  from flowjax.distributions import Normal
  from flowjax.flows import triangular_spline_flow

  base = Normal(jnp.zeros(3))
  flow = triangular_spline_flow(jax.random.key(0), base_dist=base, cond_dim=2, flow_layers=4, knots=6)
  return lambda flow, x, u: flow.log_prob(x, u), flow, (jnp.ones((5, 3)), jnp.ones((5, 2)))


# flows.py, triangular_spline_flow: each layer is Chain([splines, triangular affine, + W u, permutation]), and
# log_prob runs them in order. bijections/affine.py: y = triangular @ x + loc, one product a layer: depths 0 to 3,
# axis 2 summed. W u (AdditiveCondition's Linear) meets the condition u, an input, in every layer: depth 0. Splines of
# layer i follow the product of layer i - 1. Weight normalization (paramax): scale * V / |V|, so that scale is part of
# triangular's layer; which axes it has summed is open, and so is whether the vmap over entries is among the stacked
# axes of the splines.
CHAIN = "bijection/bijection/bijection/bijections"
TRIANGLE = f"{CHAIN}/1/triangular/weight/args/0"
LAYERS = 4
EXPECTED = {
  TRIANGLE: weight([0, 1, 2, 3], 9, (2,), stacked=(0,)),
  f"{CHAIN}/1/triangular/scale/args/0": weight([0, 1, 2, 3], 9, ..., stacked=(0,), layer=TRIANGLE),
  f"{CHAIN}/1/loc": bias(TRIANGLE, [0, 1, 2, 3], 9, stacked=(0,)),
  f"{CHAIN}/2/module/weight": weight([0, 0, 0, 0], 6, (2,), stacked=(0,)),
  f"{CHAIN}/0/inner/bijection/x_pos/arr": other([0, 0, 1, 2], stacked=...),
  f"{CHAIN}/0/inner/bijection/derivatives/args/0": other([0, 0, 1, 2], stacked=...),
  "base_dist/bijection/scale/args/0": other(3),
}
