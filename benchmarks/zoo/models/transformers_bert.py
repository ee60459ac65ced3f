"""Transformers: FlaxBert for masked words, its decoder tied to the embedding."""

from typing import Any

from expected import bias, other, weight

PACKAGE, PYTHON = "transformers", "3.13"
REQUIRES = ["transformers==4.57.6", "flax==0.12.12", "jax==0.12.0.1", "optax==0.2.8"]
MODEL = "`FlaxBertForMaskedLM`"


def build() -> tuple[Any, Any, tuple[Any, ...]]:
  import jax.numpy as jnp
  from transformers import BertConfig, FlaxBertForMaskedLM

  config = BertConfig(
    vocab_size=30, hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=20,
    max_position_embeddings=16,
  )  # fmt: skip
  model = FlaxBertForMaskedLM(config)
  tokens = jnp.zeros((2, 7), int)
  return lambda params, tokens: model(tokens, params=params).logits, model.params, (tokens,)


# models/bert/modeling_flax_bert.py: Dense (in, out) throughout; query, key, value, output, intermediate, output:
# depths 4i to 4i + 3, each LayerNorm after its product. The prediction head: a Dense (8), a LayerNorm, then the
# embedding transposed (9) and a bias. The embedding is looked up first: its least depth is 0; its product sums over
# axis 1.
WORDS = "bert/embeddings/word_embeddings/embedding"
HEAD = "cls/predictions"
LAYERS = 10
EXPECTED = {
  WORDS: weight(0, 30 * 12, (1,)),
  "bert/embeddings/position_embeddings/embedding": other(0),
  "bert/embeddings/token_type_embeddings/embedding": other(0),
  "bert/embeddings/LayerNorm/scale": other(0),
  f"{HEAD}/transform/dense/kernel": weight(8, 144, (0,)),
  f"{HEAD}/transform/dense/bias": bias(f"{HEAD}/transform/dense/kernel", 8, 144),
  f"{HEAD}/transform/LayerNorm/scale": other(8),
  f"{HEAD}/bias": bias(WORDS, 9, 30 * 12),
}
for i in range(2):
  BLOCK = f"bert/encoder/layer/{i}"
  for name, depth, size in [
    ("attention/self/query", 4 * i, 144),
    ("attention/self/key", 4 * i, 144),
    ("attention/self/value", 4 * i, 144),
    ("attention/output/dense", 4 * i + 1, 144),
    ("intermediate/dense", 4 * i + 2, 240),
    ("output/dense", 4 * i + 3, 240),
  ]:
    EXPECTED[f"{BLOCK}/{name}/kernel"] = weight(depth, size, (0,))
    EXPECTED[f"{BLOCK}/{name}/bias"] = bias(f"{BLOCK}/{name}/kernel", depth, size)
  EXPECTED[f"{BLOCK}/attention/output/LayerNorm/scale"] = other(4 * i + 1)
  EXPECTED[f"{BLOCK}/output/LayerNorm/bias"] = other(4 * i + 3)
