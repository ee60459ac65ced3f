#!/usr/bin/env bash
# On the CPU a living NumPy view of an array makes jit keep a donated argument, without a warning.
#
# Expected: an argument in donate_argnums is deleted and its memory used again, or jax says that the donated buffer was not usable.
# What happens: np.asarray(x) and jax.device_get(x) do not copy on the CPU. As long as the result lives, a donated x is neither deleted nor
#   used again: the step takes new memory, and x can still be read. So a loop that keeps np.asarray(params) for a log or a checkpoint
#   needs twice the memory in that step, and code that reads a donated array by mistake works until the view goes. np.array(x) copies.
# Since: seen with jax 0.10.2 and 0.12.0.1.
# Where from: found by running; the docstring of jax.jit says of donated arguments only that they should not be used again.
# Date seen: 2026-11-28.
#
# Output seen:
#   jax 0.12.0.1
#   nothing                  donated x deleted: True   same memory: True   warnings: 0
#   np.array(x)              donated x deleted: True   same memory: True   warnings: 0
#   np.asarray(x), dropped   donated x deleted: True   same memory: True   warnings: 0
#   np.asarray(x), kept      donated x deleted: False  same memory: False  warnings: 0
#   jax.device_get(x), kept  donated x deleted: False  same memory: False  warnings: 0
set -euo pipefail
PYTHON=${PYTHON:-python3}
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null ||
  { echo "This needs Python 3.12 or later: set PYTHON to one." >&2; exit 2; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  jax==0.12.0.1 jaxlib==0.12.0.1 numpy==2.5.5 ml_dtypes==0.6.0
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - <<'EOF'
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np

print("jax", jax.__version__)
step = jax.jit(lambda x: x * 2, donate_argnums=0)
LOOKS = {
  "nothing": lambda x: None,
  "np.array(x)": np.array,
  "np.asarray(x), dropped": lambda x: float(np.asarray(x).sum()),
  "np.asarray(x), kept": np.asarray,
  "jax.device_get(x), kept": jax.device_get,
}
deleted = {}
for name, look in LOOKS.items():
  x = jnp.ones(1 << 16)
  kept = look(x)
  address = x.unsafe_buffer_pointer()
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    result = step(x)
  deleted[name] = x.is_deleted()
  print(f"{name:24} donated x deleted: {x.is_deleted()!s:5}  same memory: {result.unsafe_buffer_pointer() == address!s:5}",
        f" warnings: {len(caught)}")
  del kept
if not deleted["nothing"]:
  sys.exit("No longer so: without any view the donated array is not deleted either, so donation cannot be seen.")
if deleted["np.asarray(x), kept"]:
  sys.exit("No longer so: a donated array is deleted even while a NumPy view of it lives.")
EOF
