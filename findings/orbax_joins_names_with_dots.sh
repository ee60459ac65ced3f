#!/usr/bin/env bash
# orbax-checkpoint names arrays by their keys joined with dots: {"a.b": x, "a": {"b": y}} comes back with one of the two arrays twice.
#
# Expected: what is restored is what was saved, or an error at saving. Keys with "/" are kept apart.
# What happens: both leaves are called "a.b" on disk and one overwrites the other; which one differs from run to run. Nothing is said when
#   saving or restoring, with a target or without. A list's places count as keys: {"a": [x], "a.0": y} collides too. With different
#   shapes or dtypes saving fails, with an error of the storage that does not name the cause. The same in the old and the new
#   interface, with OCDBT, without it and with zarr3.
# Since: seen with orbax-checkpoint 0.12.8 (jax 0.12.0.1).
# Where from: '.'.join(str_keypath(keypath)) in orbax/checkpoint/_src/tree/utils.py.
# Date seen: 2026-11-28.
#
# Output seen:
#   orbax-checkpoint 0.12.8 jax 0.12.0.1
#   slash through_checkpointer  saved {'a': {'b': [2.0]}, 'a/b': [1.0]}  restored {'a': {'b': [2.0]}, 'a/b': [1.0]}
#   slash through_v1            saved {'a': {'b': [2.0]}, 'a/b': [1.0]}  restored {'a': {'b': [2.0]}, 'a/b': [1.0]}
#   dot   through_checkpointer  saved {'a': {'b': [2.0]}, 'a.b': [1.0]}  restored {'a': {'b': [2.0]}, 'a.b': [2.0]}
#   dot   through_v1            saved {'a': {'b': [2.0]}, 'a.b': [1.0]}  restored {'a': {'b': [1.0]}, 'a.b': [1.0]}
#   place through_checkpointer  saved {'a': [[2.0]], 'a.0': [1.0]}  restored {'a': [[2.0]], 'a.0': [2.0]}
#   place through_v1            saved {'a': [[2.0]], 'a.0': [1.0]}  restored {'a': [[1.0]], 'a.0': [1.0]}
set -euo pipefail
PYTHON=${PYTHON:-python3}
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null ||
  { echo "This needs Python 3.12 or later: set PYTHON to one." >&2; exit 2; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  orbax-checkpoint==0.12.8 tensorstore==0.1.86 jax==0.12.0.1 jaxlib==0.12.0.1 numpy==2.5.5 ml_dtypes==0.6.0
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - <<'EOF'
import logging
import os
import sys

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import v1

logging.disable(logging.CRITICAL)
print("orbax-checkpoint", ocp.__version__, "jax", jax.__version__)


def through_checkpointer(path, tree):
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(path, tree)
    checkpointer.wait_until_finished()
    return checkpointer.restore(path, tree)


def through_v1(path, tree):
  v1.save_pytree(path, tree)
  return v1.load_pytree(path, tree)


def plain(tree):
  return jax.tree.map(lambda x: x.tolist(), tree)


TREES = {
  "slash": {"a/b": jnp.array([1.0]), "a": {"b": jnp.array([2.0])}},
  "dot": {"a.b": jnp.array([1.0]), "a": {"b": jnp.array([2.0])}},
  "place": {"a.0": jnp.array([1.0]), "a": [jnp.array([2.0])]},
}
same = {}
for name, tree in TREES.items():
  for through in (through_checkpointer, through_v1):
    restored = through(os.path.join(os.getcwd(), name + through.__name__), tree)
    same[name, through.__name__] = plain(restored) == plain(tree)
    print(f"{name:6}{through.__name__:21} saved {plain(tree)}  restored {plain(restored)}")
if not same["slash", "through_checkpointer"]:
  sys.exit("No longer so: keys with a slash are not restored as they were saved either.")
if same["dot", "through_checkpointer"] or same["dot", "through_v1"]:
  sys.exit("No longer so: a key with a dot and nested keys are kept apart.")
EOF
