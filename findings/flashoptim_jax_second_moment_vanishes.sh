#!/usr/bin/env bash
# With flashoptim-jax a pause in the gradient can move a weight by 700,000 learning rates in one step.
#
# Expected: Adam's steps stay near the learning rate, whatever the gradients' sizes are.
# What happens: √v is stored in linear uint8 codes, with one scale for 32 neighbours. An element whose √v is less than 1/510 of the largest
#   of its 32 gets code 0, while its mean m, in codes that are finer near 0, does not. As long as its gradient goes on, v is made anew in
#   every step. In a step in which the gradient is 0, as that of an embedding or a dead unit often is, the step is m/(0 + eps), which is m times 1e8. One
#   loud gradient in the first steps is enough: its √v stays for thousands of steps, its m for dozens. Scales are float16: gradients below
#   about 1e-6 are stored as 0 too, and those above about 6e5 as infinity, and then NaN.
# Since: 0.1.0, the only release.
# Where from: quantize_variance in flashoptim_jax/quantization.py, and the same lines in its kernels.
# Date seen: 2026-11-28.
#
# Output seen:
#   flashoptim-jax 0.1.0, jax 0.12.0.1
#   all 1                    largest step:      1.22 rates, optax.adamw: 1.00
#   one burst, then pauses   largest step:  7.36e+05 rates, optax.adamw: 1.00
#   all 1e-7                 largest step:     0.908 rates, optax.adamw: 0.91
#   all 1e6                  largest step:       inf rates, optax.adamw: 1.00
set -euo pipefail
PYTHON=${PYTHON:-python3}
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null ||
  { echo "This needs Python 3.12 or later: set PYTHON to one." >&2; exit 2; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  flashoptim-jax==0.1.0 jax==0.12.0.1 jaxlib==0.12.0.1 optax==0.2.8 numpy==2.5.5 ml_dtypes==0.6.0
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - <<'EOF'
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flashoptim_jax import flash_adamw

RATE = 1e-3
print("flashoptim-jax 0.1.0, jax", jax.__version__)


def largest_steps(gradient, steps=60):
  """How many rates the largest step is long, of flash_adamw and of optax.adamw, until a weight is not finite."""
  flash = flash_adamw(RATE, weight_decay=0.0, fused=False)  # the plain path; the kernels round alike
  adam = optax.adamw(RATE, weight_decay=0.0)
  flash_step, update = jax.jit(flash.step), jax.jit(adam.update)
  weights, zeros = {"w": jnp.zeros(32, jnp.bfloat16)}, {"w": jnp.zeros(32)}
  of_flash, of_adam = flash.init(weights), adam.init(zeros)
  largest = np.zeros(2)
  for t in range(steps):
    grads = {"w": jnp.asarray(gradient(t), jnp.float32)}
    before = np.asarray(weights["w"], float)
    weights, of_flash = flash_step(weights, of_flash, grads)
    moved, of_adam = update(grads, of_adam, zeros)
    after = np.asarray(weights["w"], float)
    if not np.isfinite(after).all():
      return np.inf, largest[1] / RATE
    largest = np.maximum(largest, [np.abs(after - before).max(), np.abs(moved["w"]).max()])
  return largest / RATE


def burst(t):
  """All are 0.01, and 0 in every fifth step, but for element 0 in the first step, which is 100."""
  g = np.full(32, 0.0 if t % 5 == 4 else 0.01)
  g[0] = 100.0 if t == 0 else g[0]
  return g


found = {
  "all 1": largest_steps(lambda t: np.ones(32)),
  "one burst, then pauses": largest_steps(burst),
  "all 1e-7": largest_steps(lambda t: np.full(32, 1e-7)),
  "all 1e6": largest_steps(lambda t: np.full(32, 1e6)),
}
for name, (theirs, adams) in found.items():
  print(f"{name:24} largest step: {theirs:9.3g} rates, optax.adamw: {adams:.2f}")
if found["one burst, then pauses"][0] < 100:
  sys.exit("No longer so: the largest step after one burst is no more than 100 rates.")
EOF
