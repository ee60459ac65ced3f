"""Compiles the step of examples/train_sharded.py for a slice of 2×4 chips of TPU v5e on two hosts. Needs no TPU.

    python benchmarks/speed/sharded_example.py

Writes `benchmarks/results/speed/sharded_example.md`.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
from ahead_of_time import nbytes
from jax.experimental import topologies
from report import heading, markdown_table, write
from targets import without_accelerators
from traffic import collectives

sys.path.append(str(pathlib.Path(__file__).parents[2] / "examples"))

import train_sharded

WIDTH, BATCH, SEED = 4096, 1024, 0


def main() -> None:
  without_accelerators()
  topology = topologies.get_topology_desc(topology_name="v5e:2x4", platform="tpu", chips_per_host_bounds=[2, 2, 1])
  chips, rows = len(topology.devices), []
  for name, make in train_sharded.OPTIMIZERS.items():
    for fsdp in 8, 4:
      mesh = train_sharded.make_mesh(fsdp, topology.devices)
      training = train_sharded.Training(make(1e-3), mesh, WIDTH, SEED)
      state = training.abstract_state()
      pixels = jax.ShapeDtypeStruct((BATCH, 64), jnp.float32, sharding=training.batch_sharding)
      labels = jax.ShapeDtypeStruct((BATCH,), jnp.int32, sharding=training.batch_sharding)
      compiled = training.step.lower(state, pixels, labels).compile()
      counts = ", ".join(f"{count} {kind}" for kind, count in collectives(compiled.as_text() or "").items())
      memory = compiled.memory_analysis()
      share = memory.alias_size_in_bytes / nbytes(state) if memory else float("nan")  # donated, and so all of the state
      rows.append([name, f"{chips // fsdp} × {fsdp}", f"{share:.3f}", counts])
  head = ["optimizer", "data × fsdp", "state per chip / state", "collectives in the step"]
  facts = f"{chips} chips of TPU v5e on two hosts, width {WIDTH}, {BATCH} images a step"
  write("sharded_example.md", heading("The step of examples/train_sharded.py", facts), markdown_table(head, rows))


if __name__ == "__main__":
  main()
