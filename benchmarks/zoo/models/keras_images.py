"""Keras on JAX: convolutions, separable too, with batch norms traced as in training."""

from typing import Any

from expected import bias, other, weight

PACKAGE, PYTHON = "keras", "3.13"
REQUIRES = ["keras==3.15.1", "jax==0.12.0.1", "optax==0.2.8"]
MODEL = "`Conv2D`, `SeparableConv2D`, `BatchNormalization`"


def build() -> tuple[Any, Any, tuple[Any, ...]]:
  import jax.numpy as jnp
  import keras

  layers = keras.layers
  inputs = keras.Input((8, 8, 3))
  x = layers.Conv2D(4, 3, name="conv")(inputs)
  x = keras.ops.relu(layers.BatchNormalization(name="norm")(x))
  x = layers.SeparableConv2D(6, 3, depth_multiplier=2, name="separable")(x)
  x = layers.Dense(5, name="dense")(layers.Flatten()(x))
  model = keras.Model(inputs, layers.Dense(2, name="head")(keras.ops.tanh(x)))
  fixed = [variable.value for variable in model.non_trainable_variables]
  params = {variable.path: variable.value for variable in model.trainable_variables}

  def apply(params: Any, x: Any) -> Any:
    return model.stateless_call([params[v.path] for v in model.trainable_variables], fixed, x, training=True)[0]

  return apply, params, (jnp.ones((2, 8, 8, 3)),)


VARIABLES = {"KERAS_BACKEND": "jax"}
# src/backend/jax/nn.py: kernels are (h, w, in, out). depthwise_conv makes (h, w, in, multiplier) into (h, w, 1, out),
# one filter for each pair of channel and multiplier: only the window is summed over. SeparableConv2D adds its bias
# last.
POINTWISE = "separable/pointwise_kernel"
LAYERS = 5
EXPECTED = {
  "conv/kernel": weight(0, 108, (0, 1, 2)),
  "conv/bias": bias("conv/kernel", 0, 108),
  "norm/gamma": other(0),
  "norm/beta": other(0),
  "separable/depthwise_kernel": weight(1, 72, (0, 1)),
  POINTWISE: weight(2, 48, (0, 1, 2)),
  "separable/bias": bias(POINTWISE, 2, 48),
  "dense/kernel": weight(3, 480, (0,)),
  "dense/bias": bias("dense/kernel", 3, 480),
  "head/kernel": weight(4, 10, (0,)),
  "head/bias": bias("head/kernel", 4, 10),
}
