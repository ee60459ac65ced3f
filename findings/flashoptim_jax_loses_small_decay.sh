#!/usr/bin/env bash
# With flashoptim-jax a decay of 0.05 at rate 1e-4 leaves a weight of 1 at exactly 1, for ever.
#
# Expected: 4,000 steps of decay alone leave (1 - 5e-6)^4000 = 0.980 of a weight.
# What happens: a bfloat16 weight and an int8 residual, rounded to the nearest, hold steps of 2^-8/254 = 1.5e-5 of a weight near 1, so that
#   changes below 0.8e-5 are lost in every step. A decay of some steps is biased: 1e-4 a step, 2,000 times, leaves 0.8204 of normal weights
#   in the mean where 0.8187 is right. Small steps of Adam are lost too. With master_weight_bits=32 none is.
# Since: 0.1.0, the only release.
# Where from: _split_to_low_precision_ecc in flashoptim_jax/utils.py.
# Date seen: 2026-11-28.
#
# Output seen:
#   flashoptim-jax 0.1.0, jax 0.12.0.1
#   24 bits: a weight of 1 is 1.0000 (0.9802 is right); of normal weights 0.8204 is left, from 0.814 to 0.828 (0.8187 is right)
#   32 bits: a weight of 1 is 0.9802 (0.9802 is right); of normal weights 0.8187 is left, from 0.819 to 0.819 (0.8187 is right)
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
from flashoptim_jax import flash_adamw, reconstruct_weights

print("flashoptim-jax 0.1.0, jax", jax.__version__)


def left(weights, rate, decay, steps, bits):
  """What so many steps with a gradient of 0 leave of the weights."""
  tx = flash_adamw(rate, weight_decay=decay, master_weight_bits=bits, fused=False)
  params = {"w": weights.astype(jnp.bfloat16)}
  zeros = jax.tree.map(jnp.zeros_like, params)
  run = jax.jit(lambda start: jax.lax.scan(lambda c, _: (tx.step(*c, zeros), None), start, length=steps)[0])
  end, state = run((params, tx.init(params)))
  return reconstruct_weights(end, state.ecc)["w"] / params["w"].astype(jnp.float32)


ones, normal = jnp.ones(64), jax.random.normal(jax.random.key(0), (65536,))
found = {}
for bits in (24, 32):
  one = found[bits] = float(left(ones, 1e-4, 0.05, 4000, bits)[0])
  some = left(normal, 1e-3, 0.1, 2000, bits)
  print(f"{bits} bits: a weight of 1 is {one:.4f} (0.9802 is right); of normal weights {some.mean():.4f} is left, from",
        f"{some.min():.3f} to {some.max():.3f} (0.8187 is right)")
if found[24] < 0.999:
  sys.exit("No longer so: a small decay shrinks a weight of 1 in 24 bits.")
EOF
