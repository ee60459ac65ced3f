"""Brax: the policy network of PPO, with layer norms and normalized observations."""

from typing import Any

from expected import bias, other, weight

PACKAGE, PYTHON = "brax", "3.13"
REQUIRES = ["brax==0.14.2", "jax==0.12.0.1", "optax==0.2.8"]
MODEL = "`make_policy_network`"


def build() -> tuple[Any, Any, tuple[Any, ...]]:
  import jax
  import jax.numpy as jnp
  from brax.training import networks
  from brax.training.acme import running_statistics, specs

  network = networks.make_policy_network(
    8, 10, running_statistics.normalize, hidden_layer_sizes=(16, 12), layer_norm=True
  )
  statistics = running_statistics.init_state(specs.Array((10,), jnp.dtype("float32")))
  params = network.init(jax.random.key(0))
  return lambda params, obs: network.apply(statistics, params, obs), params, (jnp.ones((3, 10)),)


# training/networks.py, MLP: Dense, activation, LayerNorm, in that order; no norm at the end.
LAYERS = 3
EXPECTED = {
  "hidden_0/kernel": weight(0, 160, (0,)),
  "hidden_0/bias": bias("hidden_0/kernel", 0, 160),
  "LayerNorm_0/scale": other(0),
  "LayerNorm_0/bias": other(0),
  "hidden_1/kernel": weight(1, 192, (0,)),
  "hidden_1/bias": bias("hidden_1/kernel", 1, 192),
  "LayerNorm_1/scale": other(1),
  "LayerNorm_1/bias": other(1),
  "hidden_2/kernel": weight(2, 96, (0,)),
  "hidden_2/bias": bias("hidden_2/kernel", 2, 96),
}
