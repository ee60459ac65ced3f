#!/usr/bin/env bash
# On TPUs a step that adds bfloat16 numbers and writes int8 beside them moves 1.4 times as much memory (on tpu7x twice as much) as the same
# step with the sum in float32, which has the same results.
#
# Expected: a bfloat16 sum is computed in float32 and rounded (chips before v6e have no other way), so that it makes no difference whether a
#   program casts before the sum; and elementwise work on arrays of one shape is one pass over memory, 8 bytes for each element here.
# What happens: with the sum in bfloat16 there is a pass for each result, and both read the state and the gradients: 11 bytes. On tpu7x the
#   pass that writes the weights costs 14 more. Cast both sides to float32 and the sum back to bfloat16: one pass (on tpu7x and a copy of 4
#   bytes). A sum of two bfloat16 numbers rounded through float32 is the nearest bfloat16 number, so that nothing else changes; but
#   jax.lax.reduce_precision has to round the update, because XLA leaves out a cast to bfloat16 and back. With a float32 state in place of
#   int8 both forms are one pass.
# Since: seen with jax 0.12.0.1 and libtpu 0.0.50.1; programs are compiled ahead of time, nothing runs.
# Where from: XLA's fusion for TPUs, in libtpu.
# Date seen: 2026-11-29.
#
# Output seen:
#   jax 0.12.0.1, libtpu 0.0.50.1
#   v5e    int8 state: sum in bfloat16 11.0 bytes an element, in float32 8.0 | float32 state: 14.0, 14.0
#   v6e    int8 state: sum in bfloat16 11.0 bytes an element, in float32 8.0 | float32 state: 14.0, 14.0
#   tpu7x  int8 state: sum in bfloat16 25.0 bytes an element, in float32 12.0 | float32 state: 14.0, 14.0
#   On this CPU both forms give the same 4096 weights.
set -euo pipefail
PYTHON=${PYTHON:-python3}
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null ||
  { echo "This needs Python 3.12 or later: set PYTHON to one." >&2; exit 2; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  jax==0.12.0.1 jaxlib==0.12.0.1 libtpu==0.0.50.1 numpy==2.5.5 ml_dtypes==0.6.0
cd "$folder"
TPU_SKIP_MDS_QUERY=1 ALLOW_MULTIPLE_LIBTPU_LOAD=1 JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - <<'EOF'
import importlib.metadata
import sys

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

SHAPE = (16384, 8192)  # more than fits on a chip


def step(weight, state, grad, wide):
  """A bfloat16 weight moves against the mean of its gradients, which is stored in the state's dtype."""
  mean = state.astype(jnp.float32)
  mean = mean + 0.1 * (grad.astype(jnp.float32) - mean)
  update = (-1e-3 * mean).astype(jnp.bfloat16)
  if wide:
    rounded = jax.lax.reduce_precision(update.astype(jnp.float32), exponent_bits=8, mantissa_bits=7)
    weight = (weight.astype(jnp.float32) + rounded).astype(jnp.bfloat16)
  else:
    weight = weight + update
  return weight, (jnp.round(mean) if state.dtype == jnp.int8 else mean).astype(state.dtype)


def moved(target, dtype, wide):
  """Bytes of memory read and written for each element."""
  chips = topologies.get_topology_desc(topology_name=target, platform="tpu").devices
  of = lambda dtype: jax.ShapeDtypeStruct(SHAPE, dtype, sharding=SingleDeviceSharding(chips[0]))
  program = jax.jit(step, static_argnums=3, donate_argnums=(0, 1)).lower(of(jnp.bfloat16), of(dtype), of(jnp.bfloat16), wide)
  return program.compile().cost_analysis()["bytes accessed"] / (SHAPE[0] * SHAPE[1])


print(f"jax {jax.__version__}, libtpu {importlib.metadata.version('libtpu')}")
changed = []
for name, target in {"v5e": "v5e:2x2", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}.items():
  narrow, wide = (moved(target, jnp.int8, form) for form in (False, True))
  plain = [moved(target, jnp.float32, form) for form in (False, True)]
  print(f"{name:6} int8 state: sum in bfloat16 {narrow:.1f} bytes an element, in float32 {wide:.1f}",
        f"| float32 state: {plain[0]:.1f}, {plain[1]:.1f}")
  if narrow < 1.3 * wide or plain[0] > 1.1 * plain[1]:
    changed.append(name)
if changed:
  sys.exit(f"No longer so on {', '.join(changed)}: beside int8 a sum in bfloat16 moves 1.3 times the bytes of one in float32 or more, and beside float32 as many.")
weight, grad = jax.random.normal(jax.random.key(0), (2, 4096), jnp.bfloat16)
run = jax.jit(step, static_argnums=3)
narrow, wide = (run(1e-2 * weight, jnp.ones(4096, jnp.int8), grad, form)[0] for form in (False, True))
if not (narrow == wide).all():
  sys.exit("No longer so: both forms give the same weights.")
print(f"On this CPU both forms give the same {narrow.size} weights.")
EOF
