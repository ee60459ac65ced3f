"""Trains a small Flax NNX network on scikit-learn's digits, once with each optimizer, and compares the runs."""

import time
from collections.abc import Callable
from typing import NamedTuple

import digits
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.typing import ArrayLike

from optax_ext import normalize_vectors


class Block(nnx.Module):
  """A convolution without bias, batch norm, ReLU."""

  def __init__(self, inputs: int, outputs: int, strides: int, rngs: nnx.Rngs):
    self.conv = nnx.Conv(inputs, outputs, (3, 3), strides, use_bias=False, rngs=rngs)
    self.norm = nnx.BatchNorm(outputs, momentum=0.9, rngs=rngs)

  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Halves the height and the width where strides are 2."""
    return nnx.relu(self.norm(self.conv(x), use_running_average=not train))


class Classifier(nnx.Module):
  """Three convolutions and a linear layer."""

  def __init__(self, rngs: nnx.Rngs):
    self.blocks = nnx.List([Block(1, 16, 1, rngs), Block(16, 32, 2, rngs), Block(32, 64, 2, rngs)])
    self.output = nnx.Linear(2 * 2 * 64, 10, rngs=rngs)

  def __call__(self, pixels: ArrayLike, train: bool) -> jax.Array:
    """Logits of a batch of images."""
    x = jnp.asarray(pixels)
    for block in self.blocks:
      x = block(x, train)
    return self.output(x.reshape(len(x), -1))


def loss_of(model: Classifier, pixels: ArrayLike, labels: ArrayLike) -> jax.Array:
  logits = model(pixels, train=True)
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def train_step(model: Classifier, optimizer: nnx.Optimizer, pixels: ArrayLike, labels: ArrayLike) -> jax.Array:
  loss, grads = nnx.value_and_grad(loss_of)(model, pixels, labels)
  optimizer.update(model, grads)
  return loss


@nnx.jit
def evaluate(model: Classifier, pixels: ArrayLike, labels: ArrayLike) -> tuple[jax.Array, jax.Array]:
  logits = model(pixels, train=False)
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
  return loss, jnp.mean(logits.argmax(axis=-1) == labels)


class Run(NamedTuple):
  """One optimizer and what it trains."""

  model: Classifier
  optimizer: nnx.Optimizer
  step: Callable[..., jax.Array]
  history: digits.History


def create(name: str, seed: int, learning_rate: float) -> Run:
  model = Classifier(nnx.Rngs(seed))
  if name == "nd_adam":  # its algorithm starts from vectors of unit length
    nnx.update(model, normalize_vectors(nnx.state(model, nnx.Param), digits.vector_axes))
  optimizer = nnx.Optimizer(model, digits.OPTIMIZERS[name](learning_rate), wrt=nnx.Param)
  # Donated: the step writes the new weights and moments into the memory of the old ones.
  # A jit for each optimizer: a shared one would search its compiled steps at each call, and the last be 20% slower.
  step = nnx.jit(train_step, donate_argnames=("model", "optimizer"))
  return Run(model, optimizer, step, digits.History())


def main() -> None:
  options = digits.parse_options(__doc__)
  training, validation, test = digits.load()
  runs = {name: create(name, options.seed, options.learning_rate) for name in options.optimizers}

  with digits.ProgressBars(options) as progress:
    for epoch in range(options.epochs):
      losses = {name: [] for name in runs}
      for pixels, labels in training.batches(options.seed, epoch):
        for name, run in runs.items():  # taking turns, so that a slow moment of the machine slows all of them
          start = time.perf_counter()
          losses[name].append(float(run.step(run.model, run.optimizer, pixels, labels)))  # float waits for the result
          run.history.step_seconds.append(time.perf_counter() - start)

      for name, run in runs.items():
        loss, _ = evaluate(run.model, validation.pixels, validation.labels)
        if run.history.end_epoch(losses[name], float(loss)):
          _, accuracy = evaluate(run.model, test.pixels, test.labels)
          run.history.test_accuracy = float(accuracy)
        progress.show(name, run.history)

  histories = {name: run.history for name, run in runs.items()}
  digits.print_table(histories)
  print(f"Loss curves: {digits.save_picture(histories, options, 'train_digits.png')}")


if __name__ == "__main__":
  main()
