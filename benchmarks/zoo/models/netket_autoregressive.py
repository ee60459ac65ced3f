"""NetKet: an autoregressive wave function of masked dense layers."""

from typing import Any

from expected import bias, weight

PACKAGE, PYTHON = "netket", "3.13"
REQUIRES = ["netket==3.23.0", "jax==0.12.0.1", "optax==0.2.8"]
MODEL = "`models.ARNNDense`"


def build() -> tuple[Any, Any, tuple[Any, ...]]:
  import jax
  import netket as nk

  space = nk.hilbert.Spin(s=0.5, N=5)
  model = nk.models.ARNNDense(hilbert=space, layers=3, features=4)
  states = space.random_state(jax.random.key(0), 3)
  return model.apply, model.init(jax.random.key(1), states), (states,)


# nn/masked_linear.py, MaskedDense1D: sites and features are one axis, kernel (5 * in, 5 * out), masked, then `lax.dot`:
# axis 0; the mask is a constant. The bias (5, out) is added after the result's axis is split. Features are 1, 4, 4, 2.
SIZES = [5 * 20, 20 * 20, 20 * 10]
LAYERS = 3
EXPECTED = {
  **{f"_layers_{i}/kernel": weight(i, SIZES[i], (0,)) for i in range(3)},
  **{f"_layers_{i}/bias": bias(f"_layers_{i}/kernel", i, SIZES[i]) for i in range(3)},
}
