"""Builds new optimizers from the pieces of several papers, and trains a small network in plain JAX with each."""

import argparse
import functools

import digits
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from optax_ext import (
  ByDepth,
  accelerated_ratio,
  adam_gain,
  adamnx_gain,
  constant_gain,
  cross_moment,
  log_step_size,
  normalize_vectors,
  per_vector,
  project_out_params,
  renormalize_params,
  scale_by_moments,
  scale_by_structure,
  structure_from_params,
  vector_mask,
)


def vector_axes(path: str, leaf: object) -> tuple[int, ...] | None:
  """ND-Adam's vectors: the input weights of each hidden unit. The output layer, without batch norm, has none."""
  return (0,) if path.startswith("hidden") and path.endswith("kernel") else None


b1, b2, eps, rate = 0.9, 0.999, 1e-8, 1e-3

# AdamNX's second moment under EXAdam's debiasing, which asks both gains what they have left of the zero start. Its
# m̃ + g̃ adds two moments where Adam has one, hence half of Adam's rate.
adamnx_in_exadam = optax.chain(
  scale_by_moments(constant_gain(b1), adamnx_gain(0.99), debias=cross_moment(eps=eps), ratio=accelerated_ratio(eps)),
  optax.scale_by_learning_rate(rate / 2),
)

# EXAdam with CaAdam's depth rule: the first layer's steps are the longest. EXAdam's own are about 10 times Adam's.
exadam_by_depth = optax.chain(
  scale_by_moments(constant_gain(b1), constant_gain(b2), debias=cross_moment(eps=eps), ratio=accelerated_ratio(eps)),
  scale_by_structure(ByDepth()),
  optax.scale_by_schedule(log_step_size()),
  optax.scale_by_learning_rate(rate / 10),
)

# ND-Adam's vectors with AdamNX's second moment. Both gains start at 1, so that there is nothing to debias.
nd_adamnx = optax.chain(
  project_out_params(vector_axes),
  scale_by_moments(adam_gain(b1), adamnx_gain(0.99), square=per_vector(vector_axes)),
  optax.masked(optax.scale(50.0), vector_mask(vector_axes)),  # as in ND-Adam, vectors learn 50 times as fast
  optax.scale_by_learning_rate(rate),
  renormalize_params(vector_axes),  # must be the last: anything after it would change the length of the vectors
)

# All of them: AdamNX's gain, EXAdam's debiasing and logarithmic step, CaAdam's depth, ND-Adam's vectors.
all_at_once = optax.chain(
  project_out_params(vector_axes),
  scale_by_moments(
    constant_gain(b1),
    adamnx_gain(0.99),
    debias=cross_moment(eps=eps),
    ratio=accelerated_ratio(eps),
    square=per_vector(vector_axes),
  ),
  scale_by_structure(ByDepth()),
  optax.masked(optax.scale(50.0), vector_mask(vector_axes)),
  optax.scale_by_schedule(log_step_size()),
  optax.scale_by_learning_rate(rate / 10),
  renormalize_params(vector_axes),
)


def init(seed: int) -> optax.Params:
  """Weights of 64 → 128 → 128 → 10. Vectors have unit length, where ND-Adam starts; batch norm ignores their length."""
  sizes = {"hidden_1": (64, 128), "hidden_2": (128, 128), "output": (128, 10)}
  params = {}
  for key, (layer, shape) in zip(jax.random.split(jax.random.key(seed), 3), sizes.items(), strict=True):
    params[layer] = {"kernel": jax.nn.initializers.he_normal()(key, shape), "bias": jnp.zeros(shape[1])}
  return normalize_vectors(params, vector_axes)


def logits_of(params, x: ArrayLike) -> jax.Array:
  """Batch norm takes its statistics from the images at hand, in testing too: all 300 at once."""
  for layer in "hidden_1", "hidden_2":
    x = jax.nn.relu(jax.nn.standardize(x @ params[layer]["kernel"], axis=0) + params[layer]["bias"])
  return x @ params["output"]["kernel"] + params["output"]["bias"]


def loss_of(params, x: ArrayLike, labels: ArrayLike) -> jax.Array:
  return optax.softmax_cross_entropy_with_integer_labels(logits_of(params, x), labels).mean()


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--seed", type=int, default=0, help="of the initial weights and of the order of the images (0)")
  parser.add_argument("--epochs", type=int, default=20, help="passes through the training images (20)")
  options = parser.parse_args()
  if options.epochs < 1 or not 0 <= options.seed < 2**32:
    parser.exit(2, "--epochs must be at least 1, and --seed at least 0 and below 2**32.\n")
  training, _, test = digits.load()

  print("What the depth rule makes of this network:", structure_from_params(init(0)).table(ByDepth()), sep="\n")
  print(f"\n{'optimizer':<18}{'training loss':>15}{'test loss':>12}{'test accuracy':>16}")
  optimizers = {"adam": optax.adam(rate), "adamnx_in_exadam": adamnx_in_exadam, "exadam_by_depth": exadam_by_depth}
  optimizers |= {"nd_adamnx": nd_adamnx, "all_at_once": all_at_once}
  for name, tx in optimizers.items():
    params = init(options.seed)
    state = tx.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, x, labels, tx=tx):
      grads = jax.grad(loss_of)(params, x, labels)
      updates, state = tx.update(grads, state, params)
      return optax.apply_updates(params, updates), state

    for epoch in range(options.epochs):
      for pixels, labels in training.batches(options.seed, epoch):
        params, state = step(params, state, pixels.reshape(-1, 64), labels)

    train_loss = loss_of(params, training.pixels.reshape(-1, 64), training.labels)
    test_loss = loss_of(params, test.pixels.reshape(-1, 64), test.labels)
    accuracy = np.mean(logits_of(params, test.pixels.reshape(-1, 64)).argmax(axis=-1) == test.labels)
    print(f"{name:<18}{train_loss:>15.5f}{test_loss:>12.4f}{accuracy:>16.2%}")
  print("This is one seed and untuned learning rates: no ranking.")


if __name__ == "__main__":
  main()
