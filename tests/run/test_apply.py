"""`update_and_apply` beside `optax.apply_updates`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import jitted

from optax_ext import update_and_apply


@pytest.mark.parametrize("compiled", [False, True])
def test_a_sum_of_bfloat16_numbers_is_optax_s(compiled):
  """Every bfloat16 number, with updates of every size beside it: the same number."""
  params = jax.lax.bitcast_convert_type(jnp.arange(2**16, dtype=jnp.uint16), jnp.bfloat16)
  tx, state = optax.identity(), optax.identity().init(params)
  step = functools.partial(update_and_apply, tx)
  for shift in (0, 1, 3, 127, 128, 1000, 2**15, 2**15 + 1, 40_000):
    updates = jnp.roll(params, shift)
    got, _ = (jitted(step) if compiled else step)(updates, state, params)
    assert got.dtype == jnp.bfloat16
    want = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(got.astype(jnp.float32), want.astype(jnp.float32))


def test_a_compiled_step_rounds_the_update_as_optax_does():
  """In one program XLA would otherwise add the update of float32."""
  params, grads = jax.random.normal(jax.random.key(0), (2, 4096), jnp.bfloat16)
  tx = optax.sgd(0.1)
  updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
  got, _ = jax.jit(functools.partial(update_and_apply, tx))(grads, tx.init(params), params)
  np.testing.assert_array_equal(got, optax.apply_updates(params, updates))


def test_numbers_of_python_are_summed_as_optax_does():
  for param, update in ((1.0, jnp.ones([], jnp.bfloat16)), (jnp.ones([], jnp.bfloat16), 2.0)):
    got, _ = update_and_apply(optax.identity(), update, optax.EmptyState(), param)
    want = optax.apply_updates(param, update)
    assert (got, got.dtype) == (want, want.dtype)


def test_other_dtypes_are_summed_as_optax_does():
  params = {"wide": jnp.ones(2), "half": jnp.ones(2, jnp.float16), "mixed": jnp.ones(2, jnp.bfloat16), "whole": 3}
  updates = {"wide": jnp.ones(2), "half": jnp.ones(2, jnp.float16), "mixed": jnp.full(2, 2.0**-9), "whole": 1}
  got, _ = update_and_apply(optax.identity(), updates, optax.EmptyState(), params)
  want = optax.apply_updates(params, updates)
  assert jax.tree.map(lambda x: (x.dtype, x.tolist()), got) == jax.tree.map(lambda x: (x.dtype, x.tolist()), want)


def test_parameters_are_needed():
  with pytest.raises(ValueError, match=r"^update_and_apply needs the parameters"):
    update_and_apply(optax.adam(0.1), jnp.ones(2), optax.adam(0.1).init(jnp.ones(2)), None)
