"""Mamba2-JAX: a language model of two state-space blocks, its embedding tied to the head."""

from typing import Any

from expected import bias, other, weight

PACKAGE, PYTHON = "mamba2-jax", "3.13"
REQUIRES = ["mamba2-jax==1.1.2", "jax==0.12.0.1", "optax==0.2.8"]
MODEL = "`Mamba2ForCausalLM`, tied"


def build() -> tuple[Any, Any, tuple[Any, ...]]:
  import jax.numpy as jnp
  from flax import nnx
  from mamba2_jax import Mamba2Config, Mamba2ForCausalLM

  config = Mamba2Config(vocab_size=11, hidden_size=16, state_size=6, head_dim=8, chunk_size=4, num_hidden_layers=2)
  model = Mamba2ForCausalLM(config, rngs=nnx.Rngs(0))
  return lambda model, tokens: model(tokens)["logits"], model, (jnp.zeros((2, 10), int),)


# modeling.py: in_proj; the depthwise convolution, written as a sum of shifted products `w[j] * x[:, j : j + L]` of
# its kernel (window, 1, channels); state space, which contracts activations alone; out_proj: depths 3i, 3i + 1, 3i +
# 2. dt = softplus(split of in_proj + dt_bias): a bias of in_proj. A_log multiplies dt, D and the inner norm what
# follows the convolution. The embedding is looked up, and transposed it is the head: the least depth is that of the
# lookup, 0.
EMBEDDING = "backbone/embedder/embedding"
LAYERS = 7
EXPECTED = {
  EMBEDDING: weight(0, 11 * 16, (1,)),
  "backbone/layers/0/norm/weight": other(0),
  "backbone/layers/1/norm/weight": other(2),
  "backbone/final_norm/weight": other(5),
}
for i in range(2):
  MIXER = f"backbone/layers/{i}/mixer"
  EXPECTED |= {
    f"{MIXER}/in_proj/kernel": weight(3 * i, 16 * 80, (0,)),
    f"{MIXER}/dt_bias": bias(f"{MIXER}/in_proj/kernel", 3 * i, 16 * 80),
    f"{MIXER}/conv1d/conv/kernel": weight(3 * i + 1, 4 * 44, (0, 1)),
    f"{MIXER}/conv1d/conv/bias": bias(f"{MIXER}/conv1d/conv/kernel", 3 * i + 1, 4 * 44),
    f"{MIXER}/A_log": other(3 * i),
    f"{MIXER}/D": other(3 * i + 1),
    f"{MIXER}/norm/weight": other(3 * i + 1),
    f"{MIXER}/out_proj/kernel": weight(3 * i + 2, 32 * 16, (0,)),
  }
