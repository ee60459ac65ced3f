"""Equinox: an MLP whose hidden layers are stacked in one leaf and scanned."""

from typing import Any

from expected import bias, weight

PACKAGE, PYTHON = "equinox", "3.13"
REQUIRES = ["equinox==0.13.8", "jax==0.12.0.1", "optax==0.2.8"]
MODEL = "`nn.MLP`, scanned"


def build() -> tuple[Any, Any, tuple[Any, ...]]:
  import equinox as eqx
  import jax
  import jax.numpy as jnp

  mlp = eqx.nn.MLP(8, 3, width_size=16, depth=3, scan=True, key=jax.random.key(0))
  return lambda mlp, xs: jax.vmap(mlp)(xs), mlp, (jnp.ones((5, 8)),)


# nn/_linear.py:58-60: weights are (out, in); :97: `self.weight @ x`, so that axis 1 is summed over. nn/_mlp.py:122:
# with scan, depth - 1 = 2 hidden layers are made by vmap, one leaf with a leading axis; :187 scans them.
LAYERS = 4
EXPECTED = {
  "layers/0/weight": weight(0, 16 * 8, (1,)),
  "layers/0/bias": bias("layers/0/weight", 0, 16 * 8),
  "layers/1/weight": weight([1, 2], 16 * 16, (2,), stacked=(0,)),
  "layers/1/bias": bias("layers/1/weight", [1, 2], 16 * 16, stacked=(0,)),
  "layers/2/weight": weight(3, 3 * 16, (1,)),
  "layers/2/bias": bias("layers/2/weight", 3, 3 * 16),
}
