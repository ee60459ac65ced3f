#!/usr/bin/env bash
# A jitted function that imports Pallas while it is traced is traced and compiled a second time by the next call; one that imports json is not.
#
# Expected: importing a module of jax changes nothing for a function that has been compiled. Libraries import Pallas late, where a kernel is
#   used, as it takes longer to import than they do.
# What happens: jax.experimental.pallas registers two settings that belong to the context of every trace. The key of the first trace has them
#   not, the key of the next call has, so that nothing is found in the cache. A large training step takes its minutes of compilation twice.
# Since: seen with jax 0.12.0.1; 0.7.1 and 0.10.2 trace once.
# Where from: config.trace_context() has 51 values before the import and 53 after ("number of tracing context values differs", says
#   jax_explain_cache_misses). Import Pallas before the trace.
# Date seen: 2026-11-28.
#
# Output seen:
#   jax 0.12.0.1
#   imports json: traced 1 time in 3 calls
#   imports jax.experimental.pallas: traced 2 times in 3 calls
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
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'EOF'
import importlib
import sys

import jax
import jax.numpy as jnp


def traces(module):
  seen = []

  @jax.jit
  def double(x):
    seen.append(importlib.import_module(module))
    return 2 * x

  for _ in range(3):
    double(jnp.ones(3))
  print(f"imports {module}: traced {len(seen)} time{'s' * (len(seen) > 1)} in 3 calls")
  return len(seen)


print("jax", jax.__version__)
if [traces("json"), traces("jax.experimental.pallas")] != [1, 2]:
  sys.exit("No longer so: importing Pallas in a trace does not make jax trace again.")
EOF
