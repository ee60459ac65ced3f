r"""
Fine-tune a Flax NNX model
==========================

A model that was trained on one task serves another task, and few examples are at hand. Three habits help:

- **Freeze** the first layers, which hold what both tasks share.
- **Decay the learning rate by layer**: the nearer a block is to the input, the smaller its steps.
- **Let the new head learn faster** than the layers before it.

In most libraries each habit needs a list of parameter names. Here the blocks are read from the model's computation.
This tutorial trains a small residual network on the digits 0 to 4, and fine-tunes the network for the digits 5 to 9
with 100 images. It takes half a minute on two cores and needs ``pip install -e ".[examples]"``.
"""

# %%
# Two tasks
# ---------
# scikit-learn ships 1,797 handwritten digits of 8×8 pixels.

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import optax_ext

pixels, labels = load_digits(return_X_y=True)
pixels, labels = np.float32(pixels / 16), np.int32(labels)
old = labels < 5
first_task = pixels[old], labels[old]
new = np.random.default_rng(0).permutation(np.flatnonzero(~old))
few, rest = new[:100], new[100:]
training, test = (pixels[few], labels[few] - 5), (pixels[rest], labels[rest] - 5)
print(f"first task: {old.sum()} images; second task: {len(few)} to learn from, {len(rest)} to test on")

# %%
# A model of four blocks
# ----------------------


class Block(nnx.Module):
  def __init__(self, width, rngs):
    self.norm = nnx.LayerNorm(width, rngs=rngs)
    self.up = nnx.Linear(width, 2 * width, rngs=rngs)
    self.down = nnx.Linear(2 * width, width, rngs=rngs)

  def __call__(self, x):
    return x + self.down(nnx.gelu(self.up(self.norm(x))))


class Network(nnx.Module):
  def __init__(self, rngs, width=64):
    self.embed = nnx.Linear(64, width, rngs=rngs)
    self.blocks = nnx.List([Block(width, rngs) for _ in range(4)])
    self.norm = nnx.LayerNorm(width, rngs=rngs)
    self.head = nnx.Linear(width, 5, rngs=rngs)

  def __call__(self, x):
    x = self.embed(x)
    for block in self.blocks:
      x = block(x)
    return self.head(self.norm(x))


def loss_of(model, x, y):
  return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()


@nnx.jit
def train_step(model, optimizer, x, y):
  loss, grads = nnx.value_and_grad(loss_of)(model, x, y)
  optimizer.update(model, grads)
  return loss


@nnx.jit
def accuracy(model, x, y):
  return jnp.mean(model(x).argmax(axis=-1) == y)


# %%
# Train on the first task
# -----------------------

pretrained = Network(nnx.Rngs(0))
optimizer = nnx.Optimizer(pretrained, optax.adamw(1e-3, weight_decay=0.05), wrt=nnx.Param)
rng = np.random.default_rng(0)
for _ in range(300):
  batch = rng.choice(len(first_task[0]), 64)
  train_step(pretrained, optimizer, first_task[0][batch], first_task[1][batch])
print(f"accuracy on the digits 0 to 4: {accuracy(pretrained, *first_task):.3f}")

# %%
# Read the network
# ----------------
# ``structure_from_model`` traces the model. Nothing is computed and nothing is declared.

structure = optax_ext.structure_from_model(Network.__call__, pretrained, jnp.ones((1, 64)))
rule = optax_ext.LayerDecay(0.75) * optax_ext.ByPath({"^head/": 10.0})

# %%
# Look at the rule before training: ``scale`` multiplies the learning rate, and the last column says why.
# The head learns ten times as fast as the rate says, the first block at 0.75⁴ of the rate.

for line in structure.table(rule).splitlines():
  if line.startswith(("path", "embed", "blocks/0/up", "blocks/1/up", "blocks/3/up", "norm", "head")):
    print(line)

# %%
# The optimizer
# -------------
# AdamW comes first, then the scales. Weight decay is scaled too, as BEiT and MAE have it. ``decay_mask`` keeps
# the decay away from norms and biases, and ``label_paths`` names the frozen group.


def fine_tuner(learning_rate):
  adamw = optax.adamw(learning_rate, weight_decay=0.05, mask=optax_ext.decay_mask(structure))
  scaled = optax.chain(adamw, optax_ext.scale_by_structure(rule, structure))
  return optax.partition({True: optax.set_to_zero(), False: scaled}, optax_ext.label_paths("^embed/"))


# %%
# Fine-tune
# ---------
# Three ways start from the same weights, each with a new head: all parameters at one rate, the head alone, and the
# optimizer above. Every way tries three rates around its own best, so that no way wins by its rate alone. Two seeds
# draw the new head and the order of the images. ``optax.inject_hyperparams`` makes the rate a part of the state: one
# compilation serves all rates.


def head_alone(learning_rate):
  groups = {True: optax.adamw(learning_rate), False: optax.set_to_zero()}
  return optax.partition(groups, optax_ext.label_paths("^head/"))


def all_at_one_rate(learning_rate):
  return optax.adamw(learning_rate, weight_decay=0.05)


def fine_tune(tx, rate, seed):
  model = nnx.clone(pretrained)
  model.head = nnx.Linear(64, 5, rngs=nnx.Rngs(seed))
  optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
  optimizer.opt_state.hyperparams["learning_rate"][...] = rate
  rng = np.random.default_rng(seed)
  for _ in range(60):
    batch = rng.choice(len(few), 32, replace=False)
    train_step(model, optimizer, training[0][batch], training[1][batch])
  return accuracy(model, *test)


ways = {all_at_one_rate: [1e-3, 3e-3, 1e-2], head_alone: [1e-2, 3e-2, 1e-1], fine_tuner: [3e-4, 1e-3, 3e-3]}
found = {}
for make, rates in ways.items():
  tx = optax.inject_hyperparams(make)(learning_rate=0.0)
  values = [float(np.mean([fine_tune(tx, rate, seed) for seed in range(2)])) for rate in rates]
  found[make.__name__] = rates, values
  print(f"{make.__name__:16}", *(f"rate {rate:g}: {value:.3f}  " for rate, value in zip(rates, values, strict=True)))

# %%
# What came out
# -------------

for name, (rates, values) in found.items():
  plt.plot(rates, values, "o-", label=name)
plt.xscale("log")
plt.xlabel("learning rate")
plt.ylabel("accuracy on new images of 5 to 9")
plt.legend()
plt.show()

# %%
# Two things to learn from this picture:
#
# - **The head alone falls behind**, at any rate: about 0.89 against 0.95. The features of the digits 0 to 4 separate
#   the digits 5 to 9 less well.
# - **On a network this small, all parameters at one rate do best.** Freezing and layer decay are made for large
#   pretrained models, whose first layers know more than a few images can teach. Frozen layers also need no optimizer
#   state. Measure on your own model, and tune the rate of each way, as above.
#
# The picture shows every rate. To report one number for each way, choose the rate on other images than the tested
# ones, as :doc:`/comparing` does.
#
# Where to go on:
#
# - :doc:`/recipes/fine_tuning` has the same lines for linen and Equinox.
# - :doc:`/reading_networks` tells what is read from a network, and what is not.
