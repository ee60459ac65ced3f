#!/usr/bin/env bash
# jax indexes in the dtype of the index: int4 and int8 codes as indices read the wrong rows, or raise.
#
# Expected: table[codes] with 16 rows and int4 codes is table[codes.astype(int32)]: -1 is the last row. The like for int8 and 256 rows.
# What happens: a negative index has the number of rows added to it in its own dtype, where 16 (int4) and 256 (int8) are 0. The index stays
#   negative and is clipped: every negative int4 code reads row 0, and .at[codes].add adds to row 0, with jit and without, without a word.
#   An int8 scalar reads row 0 too, where an int8 array raises OverflowError, already for 128 rows and also if no code is negative.
#   uint4 and uint8 are right.
# Since: seen with jax 0.10.2 and 0.12.0.1, the same numbers.
# Where from: _normalize_index in jax/_src/numpy/indexing.py, which makes the number of rows a constant of the index's dtype. Unsigned indices
#   are left alone there since jax-ml/jax pull request 10150.
# Date seen: 2026-11-28.
#
# Output seen:
#   jax 0.12.0.1
#   codes                        [-8, -2, -1, 0, 7]
#   table[codes as int32]        [8.0, 14.0, 15.0, 0.0, 7.0]
#   table[codes as int4]         [0.0, 0.0, 0.0, 0.0, 7.0]
#   the same in jit              [0.0, 0.0, 0.0, 0.0, 7.0]
#   zeros.at[codes as int4].add  [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
#   256 rows, int8 scalar -1     0.0
#   127 rows, int8 array [1]    [1.0]
#   128 rows, int8 array [1]    OverflowError: Python integer 128 out of bounds for int8
#   256 rows, int8 array [1]    OverflowError: Python integer 256 out of bounds for int8
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

import jax
import jax.numpy as jnp

print("jax", jax.__version__)
table = jnp.arange(16.0)
codes = jnp.array([-8, -2, -1, 0, 7], jnp.int4)
wide = table[codes.astype(jnp.int32)].tolist()
narrow = table[codes].tolist()
compiled = jax.jit(lambda t, c: t[c])(table, codes).tolist()
print("codes                       ", codes.astype(jnp.int32).tolist())
print("table[codes as int32]       ", wide)
print("table[codes as int4]        ", narrow)
print("the same in jit             ", compiled)
print("zeros.at[codes as int4].add ", jnp.zeros(16).at[codes].add(1.0).tolist())
rows = jnp.arange(256.0)
print("256 rows, int8 scalar -1    ", float(rows[jnp.int8(-1)]))
for count in (127, 128, 256):
  try:
    print(f"{count} rows, int8 array [1]   ", jnp.arange(float(count))[jnp.array([1], jnp.int8)].tolist())
  except OverflowError as error:
    print(f"{count} rows, int8 array [1]    OverflowError: {error}")
if narrow == wide or float(rows[jnp.int8(-1)]) == 255.0:
  sys.exit("No longer so: a negative int4 or int8 index counts from the end, as int32 does.")
EOF
