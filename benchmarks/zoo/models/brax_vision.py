"""Brax: the policy network that sees pixels, convolutions and then an MLP."""

from typing import Any

from expected import bias, weight

PACKAGE, PYTHON = "brax", "3.13"
REQUIRES = ["brax==0.14.2", "jax==0.12.0.1", "optax==0.2.8"]
MODEL = "`make_policy_network_vision`"


def build() -> tuple[Any, Any, tuple[Any, ...]]:
  import jax
  import jax.numpy as jnp
  from brax.training import networks

  network = networks.make_policy_network_vision(
    {"pixels/view": (20, 20, 3)}, 4, hidden_layer_sizes=(16,), normalise_channels=True, cnn_output_channels=(5, 6, 7)
  )
  obs = {"pixels/view": jnp.ones((2, 20, 20, 3))}
  params = network.init(jax.random.key(0))
  return lambda params, obs: network.apply(None, params, obs), params, (obs,)


# training/networks.py, VisionMLP: windows of 8, 4 and 3, kernels (h, w, in, out); the mean over the image; then an MLP.
SIZES = [64 * 3 * 5, 16 * 5 * 6, 9 * 6 * 7]
LAYERS = 5
EXPECTED = {
  **{f"CNN_0/Conv_{i}/kernel": weight(i, SIZES[i], (0, 1, 2)) for i in range(3)},
  **{f"CNN_0/Conv_{i}/bias": bias(f"CNN_0/Conv_{i}/kernel", i, SIZES[i]) for i in range(3)},
  "MLP_0/hidden_0/kernel": weight(3, 112, (0,)),
  "MLP_0/hidden_0/bias": bias("MLP_0/hidden_0/kernel", 3, 112),
  "MLP_0/hidden_1/kernel": weight(4, 64, (0,)),
  "MLP_0/hidden_1/bias": bias("MLP_0/hidden_1/kernel", 4, 64),
}
