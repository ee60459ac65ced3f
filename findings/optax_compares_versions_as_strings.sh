#!/usr/bin/env bash
# optax 0.2.8 compares jax's version as a string, so jax 0.10 and later count as older than 0.7.2.
#
# Expected: an optimizer that works on explicitly sharded arrays with jax 0.9 works with jax 0.12 too, and the tests that optax ships
#   run and would say so if it did not.
# What happens: "0.12.0.1" < "0.7.2" is true for strings. optax.tree.vdot takes its path for old versions of jax and fails, and with it
#   optax.contrib.prodigy and optax.contrib.momo. 54 of the 80 tests in optax/_src/sharding_test.py skip themselves for the same reason.
#   With another text in jax.__version__, and nothing else changed, the same calls work, no test is skipped, and two tests fail, both of
#   optax.lbfgs: the skipping hid them.
# Since: optax 0.2.8 (the newest) with jax 0.10.0 or later; seen with jax 0.10.2 and 0.12.0.1.
# Where from: `if jax.__version__ < '0.7.2'` in optax/tree_utils/_tree_math.py, and the like in optax/microbatching/_microbatching.py and
#   optax/_src/sharding_test.py.
# Date seen: 2026-11-28.
#
# Output seen:
#   optax 0.2.8 jax 0.12.0.1
#   '0.12.0.1' < '0.7.2' is True
#   jax.__version__ = '0.12.0.1': {'tree.vdot': 'ShardingTypeError', 'adam': 'works', 'contrib.prodigy': 'ShardingTypeError', 'contrib.momo': 'ShardingTypeError'}
#     optax/_src/sharding_test.py: 80 tests, 54 skipped, failed: []
#   jax.__version__ = '9.9.9': {'tree.vdot': 'works', 'adam': 'works', 'contrib.prodigy': 'works', 'contrib.momo': 'works'}
#     optax/_src/sharding_test.py: 80 tests, 0 skipped, failed: ['test_state_sharding_type_init_match_update_lbfgs', 'test_state_sharding_type_preserved_with_jit_lbfgs']
set -euo pipefail
PYTHON=${PYTHON:-python3}
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null ||
  { echo "This needs Python 3.12 or later: set PYTHON to one." >&2; exit 2; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  optax==0.2.8 jax==0.12.0.1 jaxlib==0.12.0.1 numpy==2.5.5 ml_dtypes==0.6.0
cd "$folder"
JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=8 "$folder/venv/bin/python" -W ignore - <<'EOF'
import sys
import unittest

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from optax._src import sharding_test

true_version = jax.__version__
print("optax", optax.__version__, "jax", true_version)
print(f"'{true_version}' < '0.7.2' is", true_version < "0.7.2")
mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))


def step(optimizer, **more):
  w = jax.device_put(jnp.ones((8, 4)), NamedSharding(mesh, PartitionSpec("x", None)))
  return optimizer.update(w, optimizer.init(w), w, **more)


def vdot():
  w = jax.device_put(jnp.ones((8, 4)), NamedSharding(mesh, PartitionSpec("x", None)))
  return optax.tree.vdot(w, w)


CALLS = {
  "tree.vdot": vdot,
  "adam": lambda: step(optax.adam(1e-3)),
  "contrib.prodigy": lambda: step(optax.contrib.prodigy()),
  "contrib.momo": lambda: step(optax.contrib.momo(), value=jnp.float32(1.0)),
}


def outcome(call):
  with jax.set_mesh(mesh):
    try:
      jax.block_until_ready(call())
    except Exception as error:
      return type(error).__name__
  return "works"


def look(version):
  jax.__version__ = version
  outcomes = {name: outcome(call) for name, call in CALLS.items()}
  result = unittest.TestResult()
  unittest.defaultTestLoader.loadTestsFromModule(sharding_test).run(result)
  print(f"jax.__version__ = '{version}':", outcomes)
  print(f"  optax/_src/sharding_test.py: {result.testsRun} tests, {len(result.skipped)} skipped,",
        "failed:", [test.id().split(".")[-1] for test, _ in result.failures + result.errors])
  return outcomes, len(result.skipped)


now, skipped = look(true_version)
then, skipped_then = look("9.9.9")
if now["tree.vdot"] == "works" or then["tree.vdot"] != "works" or skipped <= skipped_then:
  sys.exit("No longer so: optax.tree.vdot and optax's sharding tests do not depend on how jax's version sorts as text.")
EOF
