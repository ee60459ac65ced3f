r"""
Does another optimizer help my model?
=====================================

You have a model that Adam trains well. A paper promises a better optimizer. Does the new optimizer help *your* model?

One run of each optimizer does not answer the question, for two reasons:

- **Rates.** At one shared learning rate, the optimizer that takes longer steps may look better. Each optimizer needs
  its own best rate.
- **Luck.** Two seeds of one optimizer often differ more than two optimizers do.

``compare`` takes care of both. This tutorial compares EXAdam and ND-Adam with Adam on a small model, and reads the
verdict. It takes half a minute on two cores and needs ``pip install -e ".[compare]"``.
"""

# %%
# The data
# --------
# scikit-learn ships 1,797 handwritten digits of 8×8 pixels. Three parts are needed: one for training, one on which
# learning rates are chosen, and one that is looked at once, at the end.

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

from optax_ext.compare import Problem, Protocol, compare

pixels, labels = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(labels))
train, validation, test = (
  {"x": np.float32(pixels[part] / 16), "label": np.int32(labels[part])} for part in np.split(order, [897, 1347])
)
print({name: len(part["label"]) for name, part in [("train", train), ("validation", validation), ("test", test)]})

# %%
# The model
# ---------
# Three functions describe the problem: how to build the model, its loss on a batch, and what is measured. ND-Adam wants
# a normaliser after each unit, so this model has a batch norm after its hidden layer. ``Problem.from_nnx`` switches
# between training and evaluation mode, and carries the running averages of the batch norm along.


def build(rngs):
  hidden = nnx.Linear(64, 64, use_bias=False, rngs=rngs)
  return nnx.Sequential(hidden, nnx.BatchNorm(64, rngs=rngs), nnx.relu, nnx.Linear(64, 10, rngs=rngs))


def loss(model, batch):
  return optax.softmax_cross_entropy_with_integer_labels(model(batch["x"]), batch["label"]).mean()


def metrics(model, data):
  return {"loss": loss(model, data), "error": jnp.mean(model(data["x"]).argmax(axis=-1) != data["label"])}


problem = Problem.from_nnx("digits", build, loss, metrics, train, validation, test, batch_size=64, metric="loss")

# %%
# What the optimizers will know
# -----------------------------
# ``compare`` traces the loss and finds the layers. A unit is normalised if a batch norm follows the unit. ND-Adam keeps
# the weights of normalised units on the unit sphere, and leaves all other parameters to Adam.

for path, facts in problem.structure.by_path().items():
  print(f"{path:16} shape {facts.shape!s:10} depth {facts.depth}  normalised {facts.normalised}")

# %%
# The comparison
# --------------
# Each optimizer tries a grid of learning rates around its own centre, all on the same tuning seeds. The best rate runs
# again on fresh seeds. A fresh seed fixes the initial weights and the order of the data for every optimizer.
#
# ``quick=True`` is the cheapest design that can decide: 5 fresh seeds, and rates that do badly stop early.
# ``single_rate=1e-3`` adds the comparison that papers often make: every optimizer at one learning rate.

comparison = compare(
  problem,
  ["adam", "exadam", "nd_adam"],
  Protocol(steps=280, evaluate_every=28),
  quick=True,
  single_rate=1e-3,
  progress=False,
)

# %%
# The verdict
# -----------
# Look at the two tables of effects below. A negative interval means less loss than Adam.
#
# - **At one learning rate** EXAdam and ND-Adam have far less loss than Adam, on all seeds. A paper could end here.
# - **Each at its best rate** the gain is gone. Adam needed a rate ten times as high. EXAdam is "undecided": these seeds
#   cannot tell EXAdam from Adam. ND-Adam is "worse". So this model keeps Adam, at a better rate.
#
# "equal" would mean: shown to lie within 0.5% of Adam. SGD with momentum and L2 is in the tables as the second baseline
# of the ND-Adam paper; ``add_baselines=False`` leaves the baselines out.

report, _, explanations = comparison.summary().partition("## How to read this")
print(report)

# %%
# Look at the tuning
# ------------------
# Before you believe a verdict, look at what was tried. On the left each point is one learning rate, and a dotted line
# marks the chosen rate. Adam's curve is still high at 1e-3: there the comparison at one rate took place. On the right
# each point is one fresh seed.

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for name, arm in comparison.arms.items():
  tried = []
  for trial, results in zip(arm.search.trials, arm.search.results, strict=True):
    tried.append(
      (trial["learning_rate"], np.mean([result.curves["validation/loss"][result.best] for result in results]))
    )
  (line,) = left.plot(*zip(*sorted(tried), strict=True), "o-", label=name)
  left.axvline(arm.search.best["learning_rate"], color=line.get_color(), linestyle=":")
left.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="best validation loss, mean of the tuning seeds")
left.legend()
right.axhline(0, color="black", linewidth=0.8)
for shift, name in [(-0.1, "exadam"), (0.1, "nd_adam")]:
  difference = np.array(comparison.values(name)) - np.array(comparison.values("adam"))
  right.plot(np.arange(len(difference)) + shift, difference, "o", label=name)
right.set(xlabel="fresh seed", ylabel="test loss less Adam's, each tuned")
right.legend()
plt.show()

# %%
# Next steps
# ----------
# - Give ``compare`` a folder, ``out="out"``: results stay there, and a stopped comparison goes on where it was.
# - Leave out ``quick=True`` for 8 fresh seeds, and for a grid that is refined around its best rate.
# - Add optimizers of your own as a dict from a name to a function of the learning rate.
# - :doc:`/comparing` explains the design and its limits.
