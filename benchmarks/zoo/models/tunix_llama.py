"""Tunix: its Llama with grouped queries, as Flax NNX modules."""

from typing import Any

from expected import other, weight

PACKAGE, PYTHON = "google-tunix", "3.13"
REQUIRES = [
  *("google-tunix==0.1.7", "flax==0.12.12", "jax==0.12.0.1", "optax==0.2.8"),
  *("transformers==4.57.6", "datasets==5.0.1"),  # without these pip searches for long
]
MODEL = "`llama3.Llama3`"


def build() -> tuple[Any, Any, tuple[Any, ...]]:
  import jax.numpy as jnp
  from flax import nnx
  from tunix.models.llama3.model import Llama3, ModelConfig, RematConfig

  config = ModelConfig(
    num_layers=2, vocab_size=11, embed_dim=12, hidden_dim=20, num_heads=6, head_dim=4, num_kv_heads=2,
    rope_theta=10_000, norm_eps=1e-5, remat_config=RematConfig.BLOCK,
  )  # fmt: skip
  model = Llama3(config, rngs=nnx.Rngs(0))
  tokens = jnp.zeros((2, 7), int)
  mask = jnp.tril(jnp.ones((7, 7), bool))[None].repeat(2, 0)
  positions = jnp.broadcast_to(jnp.arange(7), (2, 7))
  return lambda model, *inputs: model(*inputs)[0], model, (tokens, positions, None, mask)


# models/llama3/model.py: Einsum "BTD,DNH->BTNH" for query, "BSD,DKH->BSKH" for key and value: axis 0; "BTNH,NHD->BTD"
# for the output: axes 0 and 1; the MLP's Linear (in, out). A block: 4i to 4i + 3. Heads are outputs, no copies.
LAYERS = 9
EXPECTED = {
  "embedder/input_embedding": other(0),
  "layers/0/input_layernorm/w": other(0),
  "layers/1/input_layernorm/w": other(3),
  "final_norm/w": other(7),
  "lm_head/w": weight(8, 132, (0,)),
}
for i in range(2):
  EXPECTED |= {
    f"layers/{i}/attn/q_proj/w": weight(4 * i, 12 * 24, (0,)),
    f"layers/{i}/attn/k_proj/w": weight(4 * i, 12 * 8, (0,)),
    f"layers/{i}/attn/v_proj/w": weight(4 * i, 12 * 8, (0,)),
    f"layers/{i}/attn/o_proj/w": weight(4 * i + 1, 24 * 12, (0, 1)),
    f"layers/{i}/post_attention_layernorm/w": other(4 * i + 1),
    f"layers/{i}/mlp/gate_proj/kernel": weight(4 * i + 2, 240, (0,)),
    f"layers/{i}/mlp/up_proj/kernel": weight(4 * i + 2, 240, (0,)),
    f"layers/{i}/mlp/down_proj/kernel": weight(4 * i + 3, 240, (0,)),
  }
