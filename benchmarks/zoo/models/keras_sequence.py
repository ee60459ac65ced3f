"""Keras on JAX: embedding, attention, a layer norm and an LSTM."""

from typing import Any

from expected import bias, other, weight

PACKAGE, PYTHON = "keras", "3.13"
REQUIRES = ["keras==3.15.1", "jax==0.12.0.1", "optax==0.2.8"]
MODEL = "`MultiHeadAttention`, `LayerNormalization`, `LSTM`"


def build() -> tuple[Any, Any, tuple[Any, ...]]:
  import jax.numpy as jnp
  import keras

  layers = keras.layers
  inputs = keras.Input((7,), dtype="int32")
  x = layers.Embedding(11, 12, name="embed")(inputs)
  x = x + layers.MultiHeadAttention(3, 5, name="attention")(x, x)
  x = layers.LSTM(6, name="lstm")(layers.LayerNormalization(name="norm")(x))
  model = keras.Model(inputs, layers.Dense(2, name="head")(x))
  fixed = [variable.value for variable in model.non_trainable_variables]
  params = {variable.path: variable.value for variable in model.trainable_variables}

  def apply(params: Any, x: Any) -> Any:
    return model.stateless_call([params[v.path] for v in model.trainable_variables], fixed, x)[0]

  return apply, params, (jnp.zeros((2, 7), int),)


VARIABLES = {"KERAS_BACKEND": "jax"}
# src/layers/attention/multi_head_attention.py: EinsumDense, (in, heads, size) for query, key, value, then (heads,
# size, out) that sums over the first two. src/layers/rnn/lstm.py: z = x kernel + h recurrent_kernel + bias in one
# sum, so that both have the same depth; to which of them the bias belongs is open.
HEADS = [f"attention/{name}" for name in ("query", "key", "value")]
LAYERS = 4
EXPECTED = {
  "embed/embeddings": other(0),
  **{f"{name}/kernel": weight(0, 180, (0,)) for name in HEADS},
  **{f"{name}/bias": bias(f"{name}/kernel", 0, 180) for name in HEADS},
  "attention/attention_output/kernel": weight(1, 180, (0, 1)),
  "attention/attention_output/bias": bias("attention/attention_output/kernel", 1, 180),
  "norm/gamma": other(1),
  "norm/beta": other(1),
  "lstm/lstm_cell/kernel": weight(2, 12 * 24, (0,)),
  "lstm/lstm_cell/recurrent_kernel": weight(2, 6 * 24, (0,)),
  "lstm/lstm_cell/bias": bias(..., 2, ...),
  "head/kernel": weight(3, 12, (0,)),
  "head/bias": bias("head/kernel", 3, 12),
}
