"""Penzai: its Llama with grouped queries, the blocks stacked and scanned by `LayerStack`."""

from typing import Any

from expected import other, weight

PACKAGE, PYTHON = "penzai", "3.13"
REQUIRES = ["penzai==0.2.5", "jax==0.12.0.1", "optax==0.2.8"]
MODEL = "`build_llamalike_transformer`, layer stack, grouped queries"


def build() -> tuple[Any, Any, tuple[Any, ...]]:
  import jax
  import jax.numpy as jnp
  from penzai import pz
  from penzai.models.transformer.variants import llamalike_common as llama

  config = llama.LlamalikeTransformerConfig(
    num_kv_heads=2, query_head_multiplier=3, embedding_dim=12, projection_dim=4, mlp_hidden_dim=20,
    num_decoder_blocks=3, vocab_size=11, mlp_variant="swiglu", tie_embedder_and_logits=False, use_layer_stack=True,
  )  # fmt: skip
  model = llama.build_llamalike_transformer(config, init_base_rng=jax.random.key(0))
  unbound, variables = pz.unbind_params(model)
  params = {variable.label: variable.freeze() for variable in variables}

  def apply(params: Any, tokens: Any) -> Any:
    bound = pz.bind_variables(unbound, list(params.values()))
    named = pz.nx.wrap(tokens).tag("batch", "seq")
    positions = pz.nx.wrap(jnp.arange(tokens.shape[1])).tag("seq")
    return bound(named, token_positions=positions).unwrap("batch", "seq", "vocabulary")

  return apply, params, (jnp.zeros((2, 7), int),)


# models/transformer/variants/llamalike_common.py: weights have input axes first, then output axes; LayerStack puts
# the blocks first. query is (blocks, embedding, groups, heads, projection), output contracts groups, heads and
# projection. A block is query/key/value, output, gate/value, out: depths 4i to 4i + 3. Heads are outputs of dense
# layers, no copies. RMSLayerNorm's scale contracts nothing: it follows `out` of the block before, or `output`.
BLOCKS, END = "transformer/blocks", ".weights/value/data_array"


def stacked(first: int, connections: int, axes: tuple[int, ...]) -> Any:
  return weight([first, first + 4, first + 8], connections, axes, stacked=(0,))


LAYERS = 13
EXPECTED = {
  "transformer/embedder.embeddings/value/data_array": other(0),
  f"{BLOCKS}/pre_attention_norm/scale{END}": other([0, 3, 7], stacked=(0,)),
  f"{BLOCKS}/attention/query{END}": stacked(0, 12 * 24, (1,)),
  f"{BLOCKS}/attention/key{END}": stacked(0, 12 * 8, (1,)),
  f"{BLOCKS}/attention/value{END}": stacked(0, 12 * 8, (1,)),
  f"{BLOCKS}/attention/output{END}": stacked(1, 24 * 12, (1, 2, 3)),
  f"{BLOCKS}/pre_ffw_norm/scale{END}": other([1, 5, 9], stacked=(0,)),
  f"{BLOCKS}/mlp/gating_linear{END}": stacked(2, 240, (1,)),
  f"{BLOCKS}/mlp/value_linear{END}": stacked(2, 240, (1,)),
  f"{BLOCKS}/mlp/out_linear{END}": stacked(3, 240, (1,)),
  f"transformer/final_norm/scale{END}": other(11),
  f"transformer/lm_head{END}": weight(12, 132, (0,)),
}
