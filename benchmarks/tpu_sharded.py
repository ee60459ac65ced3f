"""Compiles the step of examples/train_sharded.py for a TPU v5e slice of 2×4 chips on two hosts. Needs no TPU.

pip install "jax[tpu]==<the jax in use>" flax orbax-checkpoint scikit-learn, then, from the repository root:
python benchmarks/tpu_sharded.py > benchmarks/results/tpu_sharded.md
"""

import collections
import datetime
import os
import pathlib
import re
import sys

os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples"))

import jax
import jax.numpy as jnp
import train_sharded
from jax.experimental import topologies

WIDTH, BATCH, SEED = 4096, 1024, 0
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


def main() -> None:
  topology = topologies.get_topology_desc(topology_name="v5e:2x4", platform="tpu", chips_per_host_bounds=[2, 2, 1])
  chips = len(topology.devices)
  print(f"{datetime.date.today()}, jax {jax.__version__}, compiled ahead of time for {chips} chips of TPU v5e")
  print(f"(2×4, two hosts), width {WIDTH}, {BATCH} images a step.\n")
  print("| optimizer | data × fsdp | state per chip / state | collectives in the step |\n|---|---|---|---|")
  for name, make in train_sharded.OPTIMIZERS.items():
    for fsdp in 8, 4:
      mesh = train_sharded.make_mesh(fsdp, topology.devices)
      training = train_sharded.Training(make(1e-3), mesh, WIDTH, SEED)
      state = training.abstract_state()
      pixels = jax.ShapeDtypeStruct((BATCH, 64), jnp.float32, sharding=training.batch_sharding)
      labels = jax.ShapeDtypeStruct((BATCH,), jnp.int32, sharding=training.batch_sharding)
      compiled = training.step.lower(state, pixels, labels).compile()
      size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
      found = collections.Counter(re.findall(rf" ({'|'.join(COLLECTIVES)})(?:-start)?\(", compiled.as_text() or ""))
      counts = ", ".join(f"{count} {kind}" for kind, count in sorted(found.items()))
      memory = compiled.memory_analysis()
      share = memory.alias_size_in_bytes / size if memory else float("nan")  # donated, and so all of the state
      print(f"| {name} | {chips // fsdp} × {fsdp} | {share:.3f} | {counts} |", flush=True)


if __name__ == "__main__":
  main()
