"""NetKet: restricted Boltzmann machines for modulus and phase, and a visible bias."""

from typing import Any

from expected import bias, weight

PACKAGE, PYTHON = "netket", "3.13"
REQUIRES = ["netket==3.23.0", "jax==0.12.0.1", "optax==0.2.8"]
MODEL = "`models.RBM` and `models.RBMModPhase`"


def build() -> tuple[Any, Any, tuple[Any, ...]]:
  import jax
  import netket as nk

  space = nk.hilbert.Spin(s=0.5, N=6)
  states = space.random_state(jax.random.key(0), 3)
  real, both = nk.models.RBM(alpha=2), nk.models.RBMModPhase(alpha=3)
  params = {
    "real": real.init(jax.random.key(1), states)["params"],
    "both": both.init(jax.random.key(2), states)["params"],
  }

  def apply(params: Any, states: Any) -> Any:
    return real.apply({"params": params["real"]}, states), both.apply({"params": params["both"]}, states)

  return apply, params, (states,)


# models/rbm.py: Dense, log cosh, sum; the visible bias is a dot product with the input, a layer of one unit by itself.
# Modulus and phase are two such machines side by side: nothing follows anything.
LAYERS = 1
EXPECTED = {
  "real/Dense/kernel": weight(0, 72, (0,)),
  "real/Dense/bias": bias("real/Dense/kernel", 0, 72),
  "real/visible_bias": weight(0, 6, (0,)),
  "both/Dense_0/kernel": weight(0, 108, (0,)),
  "both/Dense_0/bias": bias("both/Dense_0/kernel", 0, 108),
  "both/Dense_1/kernel": weight(0, 108, (0,)),
  "both/Dense_1/bias": bias("both/Dense_1/kernel", 0, 108),
}
