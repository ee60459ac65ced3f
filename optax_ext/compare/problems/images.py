"""Helpers of problems of images: a convolutional network, losses and metrics, the division of the data."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from optax_ext import structure_from_model
from optax_ext.compare.problem import Problem
from optax_ext.linen import BatchNormLogits


class ConvNet(nn.Module):
  """3×3 convolutions without bias, each with batch norm and ReLU, then a linear layer.

  Attributes:
    features: Channels of each convolution.
    strides: Of each convolution.
    norm_scale: Whether the batch norms have learnable scales.
    normalize_logits: Whether the logits are batch-normalised (BN-softmax).
  """

  features: tuple[int, ...]
  strides: tuple[int, ...]
  norm_scale: bool = True
  normalize_logits: bool = False

  @nn.compact
  def __call__(self, pixels: jax.Array, training: bool) -> jax.Array:
    """Logits of ten classes."""
    x = pixels
    for i, (features, strides) in enumerate(zip(self.features, self.strides, strict=True)):
      x = nn.Conv(features, (3, 3), strides, use_bias=False, name=f"block_{i}_conv")(x)
      norm = nn.BatchNorm(not training, momentum=0.9, use_scale=self.norm_scale, name=f"block_{i}_norm")
      x = nn.relu(norm(x))
    logits = nn.Dense(10, name="output")(x.reshape(len(x), -1))
    if self.normalize_logits:
      return BatchNormLogits(scale=2.5, name="logits_norm")(logits, use_running_average=not training)
    return logits


def image_problem(
  name: str,
  model: nn.Module,
  parts: Sequence[dict[str, np.ndarray]],
  batch_size: int = 64,
  penalty: Callable[[jax.Array], Any] = lambda logits: 0.0,
) -> Problem:
  """A classification problem with batch statistics, and perhaps with a penalty on the logits in training.

  The model is of images and whether it trains; a batch norm follows each of its parameters `...conv/kernel`. Its
  structure is read in training, where the running averages, which would be inputs, are not used.
  """

  def init(key: jax.Array) -> tuple[Any, Any]:
    variables = model.init(key, jnp.asarray(parts[0]["x"][:1]), training=False)
    return variables["params"], variables["batch_stats"]

  def train_logits(params: Any, state: Any, x: jax.Array) -> Any:
    return model.apply({"params": params, "batch_stats": state}, x, training=True, mutable=["batch_stats"])

  def loss(params: Any, state: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
    logits, changed = train_logits(params, state, batch["x"])
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
    return loss + penalty(logits), changed["batch_stats"]

  def metrics(params: Any, state: Any, data: Any) -> dict[str, jax.Array]:
    variables = {"params": params, "batch_stats": state}
    logits: Any = jax.lax.map(lambda x: model.apply(variables, x[None], training=False)[0], data["x"], batch_size=500)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, data["label"]).mean()
    return {"loss": loss, "error": (logits.argmax(axis=-1) != data["label"]).mean()}

  def axes(path: str, leaf: Any) -> tuple[int, ...] | None:
    """The vectors of the units that a batch norm follows."""
    if path.endswith("conv/kernel"):
      return (0, 1, 2)
    return (0,) if getattr(model, "normalize_logits", False) and path == "output/kernel" else None

  params, state = jax.eval_shape(init, jax.random.key(0))
  image = jax.ShapeDtypeStruct((1, *parts[0]["x"].shape[1:]), jnp.float32)
  structure = lambda: structure_from_model(lambda *args: train_logits(*args)[0], params, state, image)
  hints = {"structure": structure, "axes": axes, "normalised_units": True}
  return Problem(name, init, loss, metrics, *parts, batch_size=batch_size, has_state=True, hints=hints)


def labelled(pixels: np.ndarray, labels: Any) -> dict[str, np.ndarray]:
  """Images as `image_problem` wants them."""
  return {"x": pixels, "label": np.asarray(labels, np.int32)}


def split(data: dict[str, np.ndarray], train: int, validation: int) -> list[dict[str, np.ndarray]]:
  """Training, validation and test examples, drawn once and for all."""
  order = np.random.default_rng(0).permutation(len(next(iter(data.values()))))
  return [{name: a[rows] for name, a in data.items()} for rows in np.split(order, [train, train + validation])]
