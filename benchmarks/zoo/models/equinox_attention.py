"""Equinox: embedding, attention with biases, norms and a head, as its documentation puts a transformer together."""

from typing import Any

from expected import bias, other, weight

PACKAGE, PYTHON = "equinox", "3.13"
REQUIRES = ["equinox==0.13.8", "jax==0.12.0.1", "optax==0.2.8"]
MODEL = "`nn.MultiheadAttention`, `nn.LayerNorm`, `nn.Embedding`"


def build() -> tuple[Any, Any, tuple[Any, ...]]:
  import equinox as eqx
  import jax
  import jax.numpy as jnp

  keys = jax.random.split(jax.random.key(0), 5)
  biases = {f"use_{name}_bias": True for name in ("query", "key", "value", "output")}
  model = {
    "embed": eqx.nn.Embedding(11, 12, key=keys[0]),
    "attention": eqx.nn.MultiheadAttention(3, 12, **biases, key=keys[1]),
    "norm": eqx.nn.LayerNorm(12),
    "mlp": eqx.nn.MLP(12, 12, width_size=24, depth=1, key=keys[2]),
    "norm_out": eqx.nn.RMSNorm(12),
    "head": eqx.nn.Linear(12, 11, key=keys[3]),
  }

  def one(model: Any, tokens: Any) -> Any:
    x = jax.vmap(model["embed"])(tokens)
    h = jax.vmap(model["norm"])(x)
    x = x + model["attention"](h, h, h)
    x = x + jax.vmap(model["mlp"])(x)
    return jax.vmap(model["head"])(jax.vmap(model["norm_out"])(x))

  return lambda model, tokens: jax.vmap(lambda t: one(model, t))(tokens), model, (jnp.zeros((2, 7), int),)


# nn/_embedding.py:101 looks up. A norm has the depth of the product that it follows, 0 before the first.
# nn/_attention.py: query, key and value are Linear of the same input, depth 0; the output projection follows them, 1.
# Every Linear is (out, in) and sums over axis 1 (nn/_linear.py:97). Heads are outputs, split after the product
# (`_project`).
LAYERS = 5
EXPECTED = {
  "embed/weight": other(0),
  "norm/weight": other(0),
  "norm/bias": other(0),
  "attention/query_proj/weight": weight(0, 144, (1,)),
  "attention/query_proj/bias": bias("attention/query_proj/weight", 0, 144),
  "attention/key_proj/weight": weight(0, 144, (1,)),
  "attention/key_proj/bias": bias("attention/key_proj/weight", 0, 144),
  "attention/value_proj/weight": weight(0, 144, (1,)),
  "attention/value_proj/bias": bias("attention/value_proj/weight", 0, 144),
  "attention/output_proj/weight": weight(1, 144, (1,)),
  "attention/output_proj/bias": bias("attention/output_proj/weight", 1, 144),
  "mlp/layers/0/weight": weight(2, 288, (1,)),
  "mlp/layers/0/bias": bias("mlp/layers/0/weight", 2, 288),
  "mlp/layers/1/weight": weight(3, 288, (1,)),
  "norm_out/weight": other(3),
  "norm_out/bias": other(3),
  "head/weight": weight(4, 132, (1,)),
  "head/bias": bias("head/weight", 4, 132),
}
