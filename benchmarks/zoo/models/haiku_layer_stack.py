"""Haiku: a transformer whose blocks are a `layer_stack`, one scan over stacked parameters."""

from typing import Any

from expected import bias, other, weight

PACKAGE, PYTHON = "dm-haiku", "3.13"
REQUIRES = ["dm-haiku==0.0.17", "jax==0.12.0.1", "optax==0.2.8"]
MODEL = "`layer_stack` of `MultiHeadAttention` and `nets.MLP`"


def build() -> tuple[Any, Any, tuple[Any, ...]]:
  import haiku as hk
  import jax
  import jax.numpy as jnp

  def block(x: Any) -> Any:
    h = hk.LayerNorm(-1, True, True, name="norm")(x)
    x = x + hk.MultiHeadAttention(3, 4, w_init=hk.initializers.VarianceScaling(), name="attention")(h, h, h)
    return x + hk.nets.MLP([24, 12], name="mlp")(x)

  def forward(tokens: Any) -> Any:
    x = hk.Embed(11, 12, name="embed")(tokens)
    x = hk.experimental.layer_stack(3, name="stack")(block)(x)
    return hk.Linear(11, name="head")(hk.RMSNorm(-1, name="norm_out")(x))

  tokens = jnp.zeros((2, 7), int)
  model = hk.without_apply_rng(hk.transform(forward))
  return model.apply, model.init(jax.random.key(0), tokens), (tokens,)


# _src/basic.py, Linear: `jnp.dot(inputs, w)` with w (in, out): axis 0; stacked (layers, in, out): axis 1.
# _src/attention.py: query, key, value of one input, then the output projection: depths 4i and 4i + 1; the MLP 4i + 2,
# 3. _src/layer_stack.py: parameters have a leading axis that `scan` runs over. The norm of block i follows the MLP's
# last product, of depth 4i - 1; that of block 0 follows none: 0.
STACK = "stack"
PROJECTIONS = {f"{STACK}/attention/{name}": [0, 4, 8] for name in ("query", "key", "value")}
LAYERS = 13
EXPECTED = {
  "embed/embeddings": other(0),
  f"{STACK}/norm/scale": other([0, 3, 7], stacked=(0,)),
  f"{STACK}/norm/offset": other([0, 3, 7], stacked=(0,)),
  **{f"{name}/w": weight(depth, 144, (1,), stacked=(0,)) for name, depth in PROJECTIONS.items()},
  **{f"{name}/b": bias(f"{name}/w", depth, 144, stacked=(0,)) for name, depth in PROJECTIONS.items()},
  f"{STACK}/attention/linear/w": weight([1, 5, 9], 144, (1,), stacked=(0,)),
  f"{STACK}/attention/linear/b": bias(f"{STACK}/attention/linear/w", [1, 5, 9], 144, stacked=(0,)),
  f"{STACK}/mlp/~/linear_0/w": weight([2, 6, 10], 288, (1,), stacked=(0,)),
  f"{STACK}/mlp/~/linear_0/b": bias(f"{STACK}/mlp/~/linear_0/w", [2, 6, 10], 288, stacked=(0,)),
  f"{STACK}/mlp/~/linear_1/w": weight([3, 7, 11], 288, (1,), stacked=(0,)),
  f"{STACK}/mlp/~/linear_1/b": bias(f"{STACK}/mlp/~/linear_1/w", [3, 7, 11], 288, stacked=(0,)),
  "norm_out/scale": other(11),
  "head/w": weight(12, 132, (0,)),
  "head/b": bias("head/w", 12, 132),
}
