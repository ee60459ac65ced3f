"""Haiku: MobileNetV1, depthwise and pointwise convolutions with batch norms, traced as in training."""

from typing import Any

from expected import bias, other, weight

PACKAGE, PYTHON = "dm-haiku", "3.13"
REQUIRES = ["dm-haiku==0.0.17", "jax==0.12.0.1", "optax==0.2.8"]
MODEL = "`nets.MobileNetV1`"


def build() -> tuple[Any, Any, tuple[Any, ...]]:
  import haiku as hk
  import jax
  import jax.numpy as jnp

  model = hk.without_apply_rng(
    hk.transform_with_state(lambda x: hk.nets.MobileNetV1((1, 2, 2), (8, 16, 16), num_classes=5)(x, is_training=True))
  )
  x = jnp.ones((2, 16, 16, 3))
  params, state = model.init(jax.random.key(0), x)
  return lambda params, x: model.apply(params, state, x)[0], params, (x,)


# _src/nets/mobilenetv1.py: initial_conv; then for each block a depthwise convolution (feature_group_count = channels,
# _src/depthwise_conv.py or Conv2D), batch norm, relu, a pointwise one, batch norm, relu; then the mean and `logits`.
# Kernels are (h, w, in per group, out): all but the last axis are summed over. Batch norms follow their convolution.
NAME = "mobile_net_v1"
FIRST, SECOND, THIRD = (f"{NAME}/mobile_net_v1_block{end}" for end in ("", "_1", "_2"))
BLOCKS = {FIRST: (1, 32, 8), SECOND: (3, 8, 16), THIRD: (5, 16, 16)}
LAYERS = 8
EXPECTED = {
  f"{NAME}/conv2_d/w": weight(0, 9 * 3 * 32, (0, 1, 2)),
  f"{NAME}/batch_norm/scale": other(0),
  f"{NAME}/batch_norm/offset": other(0),
  f"{NAME}/logits/w": weight(7, 16 * 5, (0,)),
  f"{NAME}/logits/b": bias(f"{NAME}/logits/w", 7, 16 * 5),
}
for block, (depth, into, out) in BLOCKS.items():
  EXPECTED[f"{block}/depthwise_conv/w"] = weight(depth, 9 * into, (0, 1, 2))
  EXPECTED[f"{block}/batch_norm/scale"] = other(depth)
  EXPECTED[f"{block}/pointwise_conv/w"] = weight(depth + 1, into * out, (0, 1, 2))
  EXPECTED[f"{block}/batch_norm_1/offset"] = other(depth + 1)
