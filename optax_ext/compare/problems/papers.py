"""The papers' problems, at sizes that a laptop trains: California Housing, Fashion-MNIST, tiny Shakespeare; CIFAR-10.

Like `names`, this file knows the rest of the library: CaAdam wants the traced structure of a network.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from optax_ext import l2_logits, structure_from_model
from optax_ext.compare.frameworks import KEYS
from optax_ext.compare.problem import Problem
from optax_ext.compare.problems import data
from optax_ext.compare.problems.images import ConvNet, image_problem, labelled, split

CALIFORNIA = ("64-32", "128-64-32", "128-128-64", "256-128-64-32", "128-128-128-128-128", "1024-256-64-16")


class Perceptron(nn.Module):
  """Dense layers with ReLU, initialised as Keras does (uniform after Glorot), and one output."""

  hidden: Sequence[int]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """One number an example."""
    init = nn.initializers.glorot_uniform()
    for features in self.hidden:
      x = nn.relu(nn.Dense(features, kernel_init=init)(x))
    return nn.Dense(1, kernel_init=init)(x)[..., 0]


def california(hidden: str = "64-32", shared_init: bool = False, examples: int | None = None) -> Problem:
  """CaAdam's regression, split and batched as Keras does: 13,209 districts to train on, 3,303, 4,128.

  The shuffle is Keras' (`RandomState(113)`), the first 80% are for training and the last fifth of those for validation;
  features and target are standardised by the training part's 80%. Batches of 128, the last of an epoch of 25.

  Args:
    hidden: Units of the hidden layers.
    shared_init: Whether all seeds start from one initialisation, as in the paper, so that only the order of the data
      differs.
    examples: Only so many districts, for tests.
  """
  x, y = data.california_housing()
  order = np.arange(len(x))
  np.random.RandomState(113).shuffle(order)
  x, y = x[order][:examples], y[order][:examples]
  seen = int(len(x) * 0.8)
  kept = int(seen * 0.8)
  x, y = ((a - a[:seen].mean(axis=0)) / a[:seen].std(axis=0) for a in (x.astype(np.float64), y.astype(np.float64)))

  def part(rows: slice, filler: bool = False) -> dict[str, np.ndarray]:
    arrays = {"x": x[rows], "y": y[rows], "weight": np.ones_like(y[rows])}
    return {
      name: np.asarray(np.append(a, 0 * a[:1], axis=0) if filler else a, np.float32) for name, a in arrays.items()
    }

  model = Perceptron([int(features) for features in hidden.split("-")])
  init = lambda key: model.init(jax.random.key(0, impl=KEYS) if shared_init else key, jnp.zeros((1, 8)))

  def loss(params: Any, batch: Any, key: jax.Array) -> jax.Array:
    """Mean squared error of the batch without its filler."""
    error: Any = model.apply(params, batch["x"]) - batch["y"]
    return jnp.sum(batch["weight"] * error**2) / jnp.sum(batch["weight"])

  def metrics(params: Any, part: Any) -> dict[str, jax.Array]:
    """The loss, and its root in units of the standardised target, as the paper's tables."""
    value = loss(params, part, jax.random.key(0))
    return {"loss": value, "rmse": jnp.sqrt(value)}

  params = jax.eval_shape(init, jax.random.key(0))
  hints = {"structure": lambda: structure_from_model(model.apply, params, jax.ShapeDtypeStruct((1, 8), jnp.float32))}
  parts = part(slice(kept), filler=True), part(slice(kept, seen)), part(slice(seen, None))
  return Problem(f"california-{hidden}", init, loss, metrics, *parts, batch_size=128, filler=True, hints=hints)


class ResNet(nn.Module):
  """ResNet-20 for small images: a convolution, nine pairs of them in three stages, a linear layer; 0.27M parameters.

  He et al., `Deep Residual Learning for Image Recognition <https://arxiv.org/abs/1512.03385>`_, 2016; with projections
  where a stage begins.
  """

  @nn.compact
  def __call__(self, pixels: jax.Array, training: bool) -> jax.Array:
    """Logits of ten classes."""

    def layer(x: jax.Array, name: str, features: int, size: int = 3, strides: int = 1) -> jax.Array:
      x = nn.Conv(features, (size, size), strides, use_bias=False, name=f"{name}_conv")(x)
      return nn.BatchNorm(not training, momentum=0.9, name=f"{name}_norm")(x)

    x = nn.relu(layer(pixels, "stem", 16))
    for stage, features in enumerate((16, 32, 64)):
      for block in range(3):
        name, strides = f"stage_{stage}_block_{block}", 2 if stage and not block else 1
        y = nn.relu(layer(x, f"{name}_first", features, strides=strides))
        y = layer(y, f"{name}_second", features)
        x = nn.relu(y + (layer(x, f"{name}_shortcut", features, 1, strides) if strides > 1 else x))
    return nn.Dense(10, name="output")(x.mean(axis=(1, 2)))


def fashion_mnist(
  logits: str = "plain",
  norm_scale: bool = True,
  batch_size: int = 64,
  examples: tuple[int, int, int] = (10_000, 2_000, 10_000),
  model: nn.Module | None = None,
) -> Problem:
  """Images of clothes: four 3×3 convolutions with batch norm, 87,000 parameters.

  Args:
    logits: "plain"; "batch_norm" (BN-softmax, scale 2.5) or "l2" (a penalty on the logits, 1e-3), as ND-Adam's paper.
    norm_scale: Whether batch norms have learnable scales.
    batch_size: Examples in a batch.
    examples: Training and validation images (of the original's training images) and test images.
    model: Another network; `logits` and `norm_scale` are of the four convolutions.
  """
  if logits not in ("plain", "batch_norm", "l2"):
    raise ValueError(f"logits must be 'plain', 'batch_norm' or 'l2', but was {logits!r}.")
  model = model or ConvNet((16, 32, 64, 64), (2, 1, 2, 2), norm_scale, normalize_logits=logits == "batch_norm")
  penalty = l2_logits if logits == "l2" else lambda logits: 0.0
  return _images("fashion-mnist", data.fashion_mnist(), model, batch_size, examples, penalty)


def cifar_10(
  batch_size: int = 64, examples: tuple[int, int, int] = (45_000, 5_000, 10_000), model: nn.Module | None = None
) -> Problem:
  """Small photographs, by a ResNet-20 without augmentation: for a GPU.

  Args:
    batch_size: Examples in a batch.
    examples: Training and validation images (of the original's training images) and test images.
    model: Another network.
  """
  return _images("cifar-10", data.cifar_10(), model or ResNet(), batch_size, examples)


def _images(
  name: str,
  images: tuple[data.Images, data.Images],
  model: nn.Module,
  batch_size: int,
  examples: tuple[int, int, int],
  penalty: Callable[[jax.Array], Any] = lambda logits: 0.0,
) -> Problem:
  """Classification, judged by its error."""
  train, validation, _ = split(labelled(*images[0]), *examples[:2])
  test = {name: part[: examples[2]] for name, part in labelled(*images[1]).items()}
  problem = image_problem(name, model, [train, validation, test], batch_size, penalty)
  return dataclasses.replace(problem, metric="error")


class GPT(nn.Module):
  """A small transformer that predicts the next character.

  Attributes:
    characters: How many there are.
    block: Longest context.
    width: Of the embeddings.
    heads: Of each attention.
    layers: How many.
    dropout: Part of the values set to 0 after the embedding and before each sum with the residual.
  """

  characters: int = 65
  block: int = 64
  width: int = 128
  heads: int = 4
  layers: int = 4
  dropout: float = 0.2

  @nn.compact
  def __call__(self, codes: jax.Array, training: bool) -> jax.Array:
    """Logits (batch, length, characters) for the character after each of `codes` (batch, length)."""
    drop = lambda x: nn.Dropout(self.dropout, deterministic=not training)(x)
    positions = self.param("positions", nn.initializers.normal(0.02), (self.block, self.width))
    x = drop(nn.Embed(self.characters, self.width, name="embedding")(codes) + positions[: codes.shape[1]])
    mask = nn.make_causal_mask(codes)
    for i in range(self.layers):
      attention = nn.MultiHeadDotProductAttention(self.heads, name=f"block_{i}_attention")
      x = x + drop(attention(nn.LayerNorm(name=f"block_{i}_attention_norm")(x), mask=mask))
      wide = nn.gelu(nn.Dense(4 * self.width, name=f"block_{i}_expand")(nn.LayerNorm(name=f"block_{i}_norm")(x)))
      x = x + drop(nn.Dense(self.width, name=f"block_{i}_contract")(wide))
    return nn.Dense(self.characters, name="output")(nn.LayerNorm(name="output_norm")(x))


def shakespeare(model: GPT = GPT(), batch_size: int = 16, part: float = 0.1, held_out: int = 256) -> Problem:  # noqa: B008
  """EXAdam's language model, 0.8M parameters instead of 14.3M, on the first part of the text.

  Args:
    model: Its size.
    batch_size: Windows of `model.block` characters in a batch. An epoch visits every place of the text once.
    part: Of the text, to train on; small, so that the model overfits in few steps as the paper's does.
    held_out: Validation windows, and as many test windows, alternating over the text's last tenth; fewer where so many
      would overlap.
  """
  text = data.tiny_shakespeare()
  places = np.arange(int(part * len(text)) - model.block)
  first, length = int(0.9 * len(text)), model.block + 1
  held_out = min(held_out, (len(text) - first) // (2 * length))
  tail = np.linspace(first, len(text) - length, 2 * held_out).astype(int)
  windows = lambda starts: {"codes": text[starts[:, None] + np.arange(length)]}

  def init(key: jax.Array) -> Any:
    return model.init(key, jnp.zeros((1, model.block), jnp.int32), training=False)["params"]

  def cross_entropy(params: Any, codes: jax.Array, **options: Any) -> jax.Array:
    logits: Any = model.apply({"params": params}, codes[:, :-1], **options)
    return optax.softmax_cross_entropy_with_integer_labels(logits, codes[:, 1:]).mean()

  def loss(params: Any, batch: Any, key: jax.Array) -> jax.Array:
    return cross_entropy(params, batch["codes"], training=True, rngs={"dropout": key})

  def metrics(params: Any, held_out: Any) -> dict[str, jax.Array]:
    each = lambda codes: cross_entropy(params, codes[None], training=False)
    return {"loss": jax.lax.map(each, held_out["codes"], batch_size=32).mean()}

  parts = windows(places), windows(tail[::2]), windows(tail[1::2])
  return Problem("shakespeare", init, loss, metrics, *parts, batch_size=batch_size)


PAPERS: dict[str, Callable[[], Problem]] = {
  **{f"california-{hidden}": functools.partial(california, hidden) for hidden in CALIFORNIA},
  "fashion-mnist": fashion_mnist,
  "cifar-10": cifar_10,
  "shakespeare": shakespeare,
}
