"""Random bits of one element at a time, as kernels need them: `jax.random.bits` without a generator's primitive.

Neither of jax's kernel compilers for GPUs knows threefry. The hash is a few additions, rotations and exclusive ors.
"""

from collections.abc import Sequence

import jax
import numpy as np

ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)
PARITY = np.uint32(0x1BD11BDA)


def random_words(key: Sequence[jax.Array], index: jax.Array) -> jax.Array:
  """The uint32 words that `jax.random.bits(key, shape)` has at these places.

      (x, y) = threefry2x32(key, (0, index)),     word = x ⊕ y

  Each round adds one half to the other, turns the other and mixes both; every fourth round adds two words of the key.

  Args:
    key: The two uint32 words of a threefry key.
    index: uint32; places in the flattened array, of fewer than 2³² elements.

  Returns:
    An array like `index`.

  References:
    Salmon et al., `Parallel Random Numbers: As Easy as 1, 2, 3 <https://doi.org/10.1145/2063384.2063405>`_, 2011
  """
  keys = key[0], key[1], key[0] ^ key[1] ^ PARITY
  x, y = index & np.uint32(0) | keys[0], index + keys[1]
  for i in range(5):
    for turn in ROTATIONS[i % 2]:
      x = x + y
      y = x ^ (y << np.uint32(turn) | y >> np.uint32(32 - turn))
    x = x + keys[(i + 1) % 3]
    y = y + keys[(i + 2) % 3] + np.uint32(i + 1)
  return x ^ y
