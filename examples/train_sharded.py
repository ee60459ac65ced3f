"""Trains a small Flax NNX network on scikit-learn's digits, its weights and moments split over all devices (FSDP).

The same file runs on one machine, in several processes, and on a Cloud TPU pod slice. Stop it at any moment and start
it again: it goes on from its last complete checkpoint, on the same mesh to the bit as if it had never stopped.

  one machine          python train_sharded.py
  a TPU pod slice      python train_sharded.py --distributed --checkpoints gs://...        on every host
  several processes    python train_sharded.py --coordinator 127.0.0.1:9876 --num-processes 2 --process-id 0    and 1
"""

import argparse
import hashlib
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from sklearn.datasets import load_digits

from optax_ext import adamnx, caadam, exadam, nd_adam, normalize_vectors, state_shardings

OPTIMIZERS: dict[str, Callable[[float], optax.GradientTransformation]] = {
  "adamw": optax.adamw,
  "exadam": lambda rate: exadam(rate / 10),  # its steps are about ten times as long as Adam's
  "adamnx": adamnx,
  "caadam": caadam,
  "nd_adam": lambda rate: nd_adam(rate, axes=vector_axes),
}


class Classifier(nnx.Module):
  """Two hidden layers, each with a norm of its own, which ND-Adam asks for."""

  def __init__(self, width: int, rngs: nnx.Rngs):
    self.hidden = nnx.List([nnx.Linear(n, width, use_bias=False, rngs=rngs) for n in (64, width)])
    self.norms = nnx.List([nnx.BatchNorm(width, use_running_average=False, momentum=0.9, rngs=rngs) for _ in range(2)])
    self.output = nnx.Linear(width, 10, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Logits of a batch, whose own statistics the norms use."""
    for linear, norm in zip(self.hidden, self.norms, strict=True):
      x = nnx.relu(norm(linear(x)))
    return self.output(x)


def vector_axes(path: str, leaf: Any) -> tuple[int, ...] | None:
  """ND-Adam's vectors: the input weights of each hidden unit."""
  return (0,) if path.startswith("hidden") else None


class Training:
  """A model and an optimizer on a mesh: where everything lives, how it starts, one step.

  Attributes:
    shardings: Where the training state lives: the parameters, the optimizer's state.
    batch_sharding: Where a batch lives: its images are split over all devices.
    init: Makes the training state, each device its own part.
    step: From the training state, images and labels to a new state, in the old one's memory, and the loss.
  """

  def __init__(self, tx: optax.GradientTransformation, mesh: Mesh, width: int, seed: int):
    model = nnx.eval_shape(lambda: Classifier(width, nnx.Rngs(seed)))
    graph, abstract, statistics = nnx.split(model, nnx.Param, ...)

    def sharding_of(leaf: Any) -> NamedSharding:
      """Splits the longest axis that the devices divide."""
      axes = sorted(range(len(leaf.shape)), key=lambda axis: -leaf.shape[axis])
      longest = next((axis for axis in axes if leaf.shape[axis] % mesh.shape["fsdp"] == 0), None)
      return NamedSharding(
        mesh, PartitionSpec(*["fsdp" if axis == longest else None for axis in range(len(leaf.shape))])
      )

    of_params = jax.tree.map(sharding_of, abstract)
    self.shardings = (of_params, state_shardings(tx, abstract, of_params))
    self.batch_sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))

    def init() -> tuple[Any, Any]:
      params = normalize_vectors(nnx.state(Classifier(width, nnx.Rngs(seed)), nnx.Param), vector_axes)
      return params, tx.init(params)

    def loss_of(params: Any, pixels: jax.Array, labels: jax.Array) -> jax.Array:
      zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), statistics)  # running averages: not used
      logits = nnx.merge(graph, params, zeros)(pixels)
      return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(state: tuple[Any, Any], pixels: jax.Array, labels: jax.Array) -> tuple[tuple[Any, Any], jax.Array]:
      params, opt_state = state
      loss, grads = jax.value_and_grad(loss_of)(params, pixels, labels)
      updates, opt_state = tx.update(grads, opt_state, params)
      return (optax.apply_updates(params, updates), opt_state), loss

    replicated = NamedSharding(mesh, PartitionSpec())
    self.init = jax.jit(init, out_shardings=self.shardings)
    self.step = jax.jit(step, donate_argnums=0, out_shardings=(self.shardings, replicated))

  def abstract_state(self) -> Any:
    """Shapes, dtypes and shardings of the training state, for a checkpoint to be restored onto this mesh."""
    describe = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return jax.tree.map(describe, jax.eval_shape(self.init), self.shardings)


def make_mesh(fsdp: int, devices: Any = None) -> Mesh:
  """All devices as (data, fsdp): weights are split over the second axis and copied along the first."""
  devices = jax.devices() if devices is None else devices
  return jax.make_mesh((len(devices) // fsdp, fsdp), ("data", "fsdp"), (AxisType.Auto,) * 2, devices=devices)


class Digits:
  """Real images: handwritten digits, from files inside scikit-learn."""

  def __init__(self, batch_size: int, seed: int):
    pixels, labels = load_digits(return_X_y=True)
    self.pixels, self.labels = np.asarray(pixels / 16, np.float32), np.asarray(labels, np.int32)
    self.batch_size, self.seed = batch_size, seed

  def batch(self, step: int, sharding: NamedSharding) -> tuple[jax.Array, jax.Array]:
    """The images of a step, which depend on nothing else; each process makes its devices' part."""
    chosen = np.random.default_rng([self.seed, step]).choice(len(self.labels), self.batch_size, replace=False)
    place = lambda rows: jax.make_array_from_callback(rows.shape, sharding, lambda index: rows[index])
    return place(self.pixels[chosen]), place(self.labels[chosen])


def parse_options() -> argparse.Namespace:
  """The options of the command line."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--optimizer", choices=OPTIMIZERS, default="adamnx", help="(adamnx)")
  parser.add_argument("--learning-rate", type=float, default=1e-3, help="(0.001; exadam takes a tenth)")
  parser.add_argument("--steps", type=int, default=200, help="(200)")
  parser.add_argument("--batch-size", type=int, default=256, help="of all devices together (256)")
  parser.add_argument("--width", type=int, default=256, help="units of a hidden layer (256)")
  parser.add_argument("--fsdp", type=int, help="devices to split the weights over, a divisor of their number (all)")
  parser.add_argument("--seed", type=int, default=0, help="of the initial weights and of the batches (0)")
  parser.add_argument("--checkpoints", default="out/checkpoints", help="folder, or gs://... (out/checkpoints)")
  parser.add_argument("--save-every", type=int, default=20, help="steps (20)")
  parser.add_argument("--distributed", action="store_true", help="one of several processes that the platform started")
  parser.add_argument("--coordinator", help="address:port of process 0, where no platform says who is who")
  parser.add_argument("--num-processes", type=int)
  parser.add_argument("--process-id", type=int)
  return parser.parse_args()


def find_problem(options: argparse.Namespace, devices: int) -> str | None:
  """What is wrong with the options, as a sentence."""
  if options.fsdp is not None and (options.fsdp < 1 or devices % options.fsdp):
    return f"--fsdp must divide the number of devices, {devices}, but was {options.fsdp}."
  if not 0 < options.batch_size <= 1797 or options.batch_size % devices:
    return (
      f"--batch-size must be a multiple of the number of devices, {devices}, up to 1797, but was {options.batch_size}."
    )
  for name in "steps", "width", "save_every":
    if getattr(options, name) < 1:
      return f"--{name.replace('_', '-')} must be at least 1, but was {getattr(options, name)}."
  return None


def main() -> None:
  options = parse_options()
  if options.coordinator:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(options.coordinator, options.num_processes, options.process_id)
  elif options.distributed:
    jax.distributed.initialize()
  if problem := find_problem(options, jax.device_count()):
    raise SystemExit(problem)
  first = jax.process_index() == 0

  mesh = make_mesh(options.fsdp or jax.device_count())
  training = Training(OPTIMIZERS[options.optimizer](options.learning_rate), mesh, options.width, options.seed)
  data = Digits(options.batch_size, options.seed)
  folder = options.checkpoints if "://" in options.checkpoints else os.path.abspath(options.checkpoints)
  saving = ocp.CheckpointManagerOptions(save_interval_steps=options.save_every, max_to_keep=2)
  with ocp.CheckpointManager(folder, options=saving) as checkpoints:
    done = checkpoints.latest_step() or 0
    if done:
      state = checkpoints.restore(done, args=ocp.args.StandardRestore(training.abstract_state()))
    else:
      state = training.init()
    if first:
      print(f"{jax.process_count()} processes, mesh {dict(mesh.shape)}, from step {done}", flush=True)

    for step in range(done + 1, options.steps + 1):
      state, loss = training.step(state, *data.batch(step, training.batch_sharding))
      checkpoints.save(step, args=ocp.args.StandardSave(state), force=step == options.steps)  # in the background
      if first and (step % options.save_every == 0 or step == options.steps):
        print(f"step {step}: loss {loss:.4f}", flush=True)

  whole = multihost_utils.process_allgather(state, tiled=True)
  if first:
    content = b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(whole))
    print(f"weights and moments {hashlib.sha256(content).hexdigest()[:16]}")  # the same after every interruption


if __name__ == "__main__":
  main()
