"""Trains a small Flax linen network on scikit-learn's digits, once with each optimizer, and compares the runs."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import digits
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.training import train_state
from jax.typing import ArrayLike

from optax_ext import normalize_vectors


class Block(nn.Module):
  """A convolution without bias, batch norm, ReLU."""

  features: int
  strides: int

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Halves the height and the width where strides are 2."""
    x = nn.Conv(self.features, (3, 3), self.strides, use_bias=False, name="conv")(x)
    return nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x))


class Classifier(nn.Module):
  """Three convolutions and a linear layer."""

  @nn.compact
  def __call__(self, pixels: ArrayLike, train: bool) -> jax.Array:
    """Logits of a batch of images."""
    x = jnp.asarray(pixels)
    for features, strides in [(16, 1), (32, 2), (64, 2)]:
      x = Block(features, strides)(x, train)
    return nn.Dense(10, name="output")(x.reshape(len(x), -1))


class TrainState(train_state.TrainState):
  """The usual state, and the running statistics of the batch norms, which no optimizer touches."""

  batch_stats: Any


def train_step(state: TrainState, pixels: ArrayLike, labels: ArrayLike) -> tuple[TrainState, jax.Array]:
  def loss_of(params):
    variables = {"params": params, "batch_stats": state.batch_stats}
    logits, changed = state.apply_fn(variables, pixels, train=True, mutable=["batch_stats"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), changed["batch_stats"]

  (loss, batch_stats), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
  return state.apply_gradients(grads=grads, batch_stats=batch_stats), loss


@jax.jit
def evaluate(state: TrainState, pixels: ArrayLike, labels: ArrayLike) -> tuple[jax.Array, jax.Array]:
  logits = state.apply_fn({"params": state.params, "batch_stats": state.batch_stats}, pixels, train=False)
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
  return loss, jnp.mean(logits.argmax(axis=-1) == labels)


@dataclasses.dataclass
class Run:
  """One optimizer and what it trains."""

  state: TrainState
  step: Callable[..., tuple[TrainState, jax.Array]]
  history: digits.History


def create(name: str, seed: int, learning_rate: float) -> Run:
  model = Classifier()
  variables = model.init(jax.random.key(seed), jnp.zeros((1, 8, 8, 1)), train=False)
  params = variables["params"]
  if name == "nd_adam":  # its algorithm starts from vectors of unit length
    params = normalize_vectors(params, digits.vector_axes)
  tx = digits.OPTIMIZERS[name](learning_rate)
  state = TrainState.create(apply_fn=model.apply, params=params, tx=tx, batch_stats=variables["batch_stats"])
  # Donated: the step writes the new state into the memory of the old one.
  return Run(state, jax.jit(train_step, donate_argnames="state"), digits.History())


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
          run.state, loss = run.step(run.state, pixels, labels)
          losses[name].append(float(loss))  # float waits for the result
          run.history.step_seconds.append(time.perf_counter() - start)

      for name, run in runs.items():
        loss, _ = evaluate(run.state, validation.pixels, validation.labels)
        if run.history.end_epoch(losses[name], float(loss)):
          _, accuracy = evaluate(run.state, test.pixels, test.labels)
          run.history.test_accuracy = float(accuracy)
        progress.show(name, run.history)

  histories = {name: run.history for name, run in runs.items()}
  digits.print_table(histories)
  print(f"Loss curves: {digits.save_picture(histories, options, 'train_digits_linen.png')}")


if __name__ == "__main__":
  main()
