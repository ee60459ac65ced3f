"""NumPyro: the log density of a regression whose mean is a Flax module, by `flax_module`."""

from typing import Any

from expected import bias, other, weight

PACKAGE, PYTHON = "numpyro", "3.13"
REQUIRES = ["numpyro==0.22.0", "flax==0.12.12", "jax==0.12.0.1", "optax==0.2.8"]
MODEL = "`flax_module`, log density"


def build() -> tuple[Any, Any, tuple[Any, ...]]:
  import jax
  import jax.numpy as jnp
  import numpyro
  from flax import linen as nn
  from numpyro.contrib.module import flax_module
  from numpyro.distributions import Normal
  from numpyro.infer.util import log_density

  net = nn.Sequential([nn.Dense(7), nn.tanh, nn.Dense(5), nn.tanh, nn.Dense(1)])

  def regression(x: Any, y: Any) -> None:
    mean = flax_module("net", net, input_shape=(1, 4))(x).squeeze(-1)
    scale = numpyro.param("scale", 1.0)
    with numpyro.plate("data", x.shape[0]):
      numpyro.sample("y", Normal(mean, jnp.exp(scale)), obs=y)

  x, y = jnp.ones((3, 4)), jnp.ones(3)
  params = {"net$params": net.init(jax.random.key(0), x)["params"], "scale": jnp.array(0.0)}
  return lambda params, x, y: log_density(regression, (x, y), {}, params)[0], params, (x, y)


# contrib/module.py: flax_module applies the module to the parameters "net$params"; linen's Dense sums over axis 0 of
# its (in, out) kernel. The scale divides the residuals (distributions/continuous.py, Normal.log_prob): after the last
# Dense.
NET = "net$params"
LAYERS = 3
EXPECTED = {
  f"{NET}/layers_0/kernel": weight(0, 28, (0,)),
  f"{NET}/layers_0/bias": bias(f"{NET}/layers_0/kernel", 0, 28),
  f"{NET}/layers_2/kernel": weight(1, 35, (0,)),
  f"{NET}/layers_2/bias": bias(f"{NET}/layers_2/kernel", 1, 35),
  f"{NET}/layers_4/kernel": weight(2, 5, (0,)),
  f"{NET}/layers_4/bias": bias(f"{NET}/layers_4/kernel", 2, 5),
  "scale": other(2),
}
