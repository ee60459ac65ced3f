"""How far training on 8 devices goes from training on one, for each mesh and optimizer.

python benchmarks/meshes.py > benchmarks/results/meshes.md
"""

import datetime
import os
import pathlib
import sys

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests" / "run"))
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests"))

import jax
import jax.numpy as jnp
import test_distribution as distribution


def main() -> None:
  facts = f"jax {jax.__version__}, 8 virtual CPU devices, {distribution.STEPS} steps"
  print(f"`python benchmarks/meshes.py`, {datetime.date.today()}, {facts}\n")
  print("Largest difference of any parameter from the run on one device, relative to its leaf's largest value.\n")
  print(f"| dtype | optimizer | {' | '.join(distribution.MESHES)} |\n|---|---|{'---|' * len(distribution.MESHES)}")
  for dtype in jnp.float64, jnp.float32:
    with jax.enable_x64(dtype == jnp.float64):
      for optimizer in distribution.OPTIMIZERS:
        apart = [
          distribution.deviation(distribution.trajectory(optimizer, dtype, mesh), distribution.alone(optimizer, dtype))
          for mesh in distribution.MESHES
        ]
        print(f"| {jnp.dtype(dtype)} | {optimizer} | {' | '.join(f'{x:.1e}' for x in apart)} |", flush=True)


if __name__ == "__main__":
  main()
