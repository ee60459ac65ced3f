"""Tunix: its Qwen3 with experts, chosen by a router for each token."""

from typing import Any

from expected import other, weight

PACKAGE, PYTHON = "google-tunix", "3.13"
REQUIRES = [
  *("google-tunix==0.1.7", "flax==0.12.12", "jax==0.12.0.1", "optax==0.2.8"),
  *("transformers==4.57.6", "datasets==5.0.1"),  # without these pip searches for long
]
MODEL = "`qwen3.Qwen3`, mixture of experts"


def build() -> tuple[Any, Any, tuple[Any, ...]]:
  import jax.numpy as jnp
  from flax import nnx
  from tunix.models.qwen3.model import ModelConfig, Qwen3

  config = ModelConfig(
    num_layers=2, vocab_size=11, embed_dim=12, hidden_dim=20, num_heads=6, head_dim=4, num_kv_heads=2,
    rope_theta=10_000, norm_eps=1e-5, num_experts=3, num_experts_per_tok=2,
  )  # fmt: skip
  model = Qwen3(config, rngs=nnx.Rngs(0))
  tokens = jnp.zeros((2, 7), int)
  mask = jnp.tril(jnp.ones((7, 7), bool))[None].repeat(2, 0)
  positions = jnp.broadcast_to(jnp.arange(7), (2, 7))
  return lambda model, *inputs: model(*inputs)[0], model, (tokens, positions, None, mask)


# models/qwen3/model.py: attention as Llama's, with norms of query and key; MoELayer: on a CPU each expert is an
# einsum of its own, whose weights are row i of (experts, in, out): axis 1 is summed over, axis 0 counts experts that
# the program indexes one by one, all at one depth. Which token an expert sees is the router's result: experts follow
# the router.
LAYERS = 11
EXPECTED = {
  "embedder/input_embedding": other(0),
  "layers/0/input_layernorm/w": other(0),
  "layers/1/input_layernorm/w": other(4),
  "final_norm/w": other(9),
  "lm_head/w": weight(10, 132, (0,)),
}
for i in range(2):
  EXPECTED |= {
    f"layers/{i}/attn/q_proj/w": weight(5 * i, 12 * 24, (0,)),
    f"layers/{i}/attn/k_proj/w": weight(5 * i, 12 * 8, (0,)),
    f"layers/{i}/attn/q_norm/w": other(5 * i),
    f"layers/{i}/attn/o_proj/w": weight(5 * i + 1, 24 * 12, (0, 1)),
    f"layers/{i}/post_attention_layernorm/w": other(5 * i + 1),
    f"layers/{i}/mlp/router/kernel": weight(5 * i + 2, 36, (0,)),
    f"layers/{i}/mlp/gate_proj": weight([5 * i + 3] * 3, 240, (1,), stacked=(0,)),
    f"layers/{i}/mlp/up_proj": weight([5 * i + 3] * 3, 240, (1,), stacked=(0,)),
    f"layers/{i}/mlp/down_proj": weight([5 * i + 4] * 3, 240, (1,), stacked=(0,)),
  }
