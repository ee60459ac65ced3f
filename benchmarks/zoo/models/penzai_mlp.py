"""Penzai: an MLP on named arrays, its parameters unbound from the model."""

from typing import Any

from expected import bias, weight

PACKAGE, PYTHON = "penzai", "3.13"
REQUIRES = ["penzai==0.2.5", "jax==0.12.0.1", "optax==0.2.8"]
MODEL = "`simple_mlp.MLP`"


def build() -> tuple[Any, Any, tuple[Any, ...]]:
  import jax
  import jax.numpy as jnp
  from penzai import pz
  from penzai.models import simple_mlp

  model = simple_mlp.MLP.from_config(init_base_rng=jax.random.key(0), feature_sizes=[8, 16, 32, 3])
  unbound, variables = pz.unbind_params(model)
  params = {variable.label: variable.freeze() for variable in variables}

  def apply(params: Any, x: Any) -> Any:
    bound = pz.bind_variables(unbound, list(params.values()))
    return bound(pz.nx.wrap(x).tag("batch", "features")).unwrap("batch", "features")

  return apply, params, (jnp.ones((5, 8)),)


# models/simple_mlp.py: Affine layers one after another. nn/linear_and_affine.py: the initializer puts input axes before
# output axes, and `contract` is a tensordot over the input axes: axis 0.
SIZES = [8 * 16, 16 * 32, 32 * 3]
NAMES = [f"mlp/Affine_{i}/Linear.weights/value/data_array" for i in range(3)]
LAYERS = 3
EXPECTED = {
  **{NAMES[i]: weight(i, SIZES[i], (0,)) for i in range(3)},
  **{f"mlp/Affine_{i}/AddBias.bias/value/data_array": bias(NAMES[i], i, SIZES[i]) for i in range(3)},
}
