"""NumPyro: the joint density of a Bayesian network, whose weights have priors, by `random_flax_module`."""

from typing import Any

from expected import bias, weight

PACKAGE, PYTHON = "numpyro", "3.13"
REQUIRES = ["numpyro==0.22.0", "flax==0.12.12", "jax==0.12.0.1", "optax==0.2.8"]
MODEL = "`random_flax_module`, joint density"


def build() -> tuple[Any, Any, tuple[Any, ...]]:
  import jax
  import jax.numpy as jnp
  import numpyro
  from flax import linen as nn
  from numpyro.contrib.module import random_flax_module
  from numpyro.distributions import Normal
  from numpyro.infer.util import log_density

  net = nn.Sequential([nn.Dense(7), nn.tanh, nn.Dense(5), nn.tanh, nn.Dense(1)])

  def regression(x: Any, y: Any) -> None:
    mean = random_flax_module("net", net, prior=Normal(0.0, 1.0), input_shape=(1, 4))(x).squeeze(-1)
    with numpyro.plate("data", x.shape[0]):
      numpyro.sample("y", Normal(mean, 0.1), obs=y)

  x, y = jnp.ones((3, 4)), jnp.ones(3)
  weights = net.init(jax.random.key(0), x)["params"]
  params = {f"net/{layer}.{name}": leaf for layer, both in weights.items() for name, leaf in both.items()}
  return lambda params, x, y: log_density(regression, (x, y), {}, params)[0], params, (x, y)


# contrib/module.py: random_flax_module samples every parameter at a site "net/module.name" and applies the module to
# them. The prior's density is a term of its own, added at the end; what makes a layer is the product of the kernel
# with x.
LAYERS = 3
EXPECTED = {
  "net/layers_0.kernel": weight(0, 28, (0,)),
  "net/layers_0.bias": bias("net/layers_0.kernel", 0, 28),
  "net/layers_2.kernel": weight(1, 35, (0,)),
  "net/layers_2.bias": bias("net/layers_2.kernel", 1, 35),
  "net/layers_4.kernel": weight(2, 5, (0,)),
  "net/layers_4.bias": bias("net/layers_4.kernel", 2, 5),
}
