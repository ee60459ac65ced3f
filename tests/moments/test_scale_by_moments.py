import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import enable_x64, open_loop, problem, relative, run

import optax_ext

B1, B2, EPS = 0.9, 0.999, 1e-8
NARROW = [jnp.float16, jnp.bfloat16]


def adam_pieces(**kwargs):
  return optax_ext.scale_by_moments(
    optax_ext.constant_gain(B1), optax_ext.constant_gain(B2), debias=optax_ext.standard(B1, B2), **kwargs
  )


@pytest.mark.heavy
def test_adam_from_pieces_is_optax_adam():
  """exadam with debiasing and accelerator replaced; and the same with Adam's correction inside the gains."""
  gains = optax_ext.scale_by_moments(optax_ext.adam_gain(B1), optax_ext.adam_gain(B2))
  with enable_x64(True):
    want = run(optax.adam(1e-2), np.ones(20), problem((20,)), 1000)
    for pieces in (adam_pieces(), gains):
      got = run(optax.chain(pieces, optax.scale_by_learning_rate(1e-2)), np.ones(20), problem((20,)), 1000)
      assert relative(got, want) < 1e-11
  grads = open_loop((20,), 200)
  narrow = lambda tx: run(tx, np.ones(20), lambda t, p: grads[t - 1], 200, jnp.float32)
  got = narrow(optax.chain(adam_pieces(), optax.scale_by_learning_rate(1e-2)))
  assert relative(got, narrow(optax.adam(1e-2))) < 1e-5


def test_eps_root():
  ratio = optax_ext.adam_ratio(1e-3, eps_root=1e-2)
  with enable_x64(True):
    want = run(optax.adam(1e-2, eps=1e-3, eps_root=1e-2), np.ones(8), problem((8,)), 50)
    got = run(optax.chain(adam_pieces(ratio=ratio), optax.scale_by_learning_rate(1e-2)), np.ones(8), problem((8,)), 50)
  assert relative(got, want) < 1e-12


def test_complex_parameters_as_optax_adam_treats_them():
  rng = np.random.default_rng(0)
  grads = rng.normal(size=(50, 6)) + 1j * rng.normal(size=(50, 6))
  ours, theirs = (
    run(tx, np.ones(6) + 0j, lambda t, p: grads[t - 1], 50, jnp.complex64)
    for tx in (optax.chain(adam_pieces(), optax.scale_by_learning_rate(1e-2)), optax.adam(1e-2))
  )
  np.testing.assert_allclose(ours, theirs, rtol=1e-4)
  state = adam_pieces(mu_dtype=jnp.bfloat16).init(jnp.ones(3, jnp.complex64))
  assert (state.mu.dtype, state.nu.dtype) == (jnp.complex64, jnp.float32)
  with pytest.raises(TypeError, match="nu_dtype must be a floating-point dtype"):
    adam_pieces(nu_dtype=jnp.complex64)


def test_state_is_optax_scale_by_adam_state():
  params = {"a": jnp.ones((2, 3)), "b": None}
  state = adam_pieces().init(params)
  assert isinstance(state, optax.ScaleByAdamState)
  assert (state.count.dtype, state.count.shape, int(state.count)) == (jnp.int32, (), 0)
  assert jax.tree.structure(state) == jax.tree.structure(optax.scale_by_adam().init(params))
  assert set(optax.tree.get(state, "mu")) == {"a", "b"}


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("mu_dtype", [None, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("nu_dtype", [None, jnp.bfloat16, jnp.float32])
def test_storage_dtypes(dtype, mu_dtype, nu_dtype):
  tx = adam_pieces(mu_dtype=mu_dtype, nu_dtype=nu_dtype)
  params = jnp.ones(3, dtype)
  state = tx.init(params)
  updates, new = tx.update(params, state)
  assert new.mu.dtype == state.mu.dtype == (mu_dtype or dtype)
  assert new.nu.dtype == state.nu.dtype == (nu_dtype or jnp.float32)
  assert updates.dtype == jnp.float32


@pytest.mark.heavy
def test_dtypes_under_x64():
  with enable_x64(True):
    for dtype in (jnp.float64, jnp.float32, jnp.bfloat16):
      params = jnp.ones(3, dtype)
      updates, state = adam_pieces().update(params, adam_pieces().init(params))
      assert updates.dtype == state.nu.dtype == jnp.promote_types(dtype, jnp.float32)
      assert state.mu.dtype == dtype


@pytest.mark.heavy
@pytest.mark.parametrize("dtype", NARROW)
def test_narrow_gradients_are_computed_in_float32(dtype):
  """With both moments stored in float32, 300 steps agree with float32 throughout; bfloat16's 0.999 would be 1."""
  grads = np.asarray(open_loop((30,), 300) * 1e-2, dtype)
  tx = adam_pieces(mu_dtype=jnp.float32)
  state, wide = tx.init(jnp.ones(30, dtype)), tx.init(jnp.ones(30))
  for g in grads:
    updates, state = tx.update(jnp.asarray(g), state)
    want, wide = tx.update(jnp.asarray(g, jnp.float32), wide)
  np.testing.assert_array_equal(updates, want)


@pytest.mark.heavy
@pytest.mark.parametrize("nu_dtype", [None, jnp.bfloat16])
def test_second_moment_of_narrow_parameters_decays(nu_dtype):
  """Why the default keeps ν in float32: rounded to bfloat16 it cannot decay by 0.1 % a step."""
  tx = adam_pieces(nu_dtype=nu_dtype)
  grad = jnp.ones(1, jnp.bfloat16)
  state = tx.init(grad)._replace(nu=jnp.ones(1, nu_dtype or jnp.float32))
  for _ in range(200):
    _, state = tx.update(0 * grad, state)
  assert float(state.nu[0]) == pytest.approx(0.999**200 if nu_dtype is None else 1, rel=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.complex64])
@pytest.mark.parametrize("eps", [0.0, 1e-8])
def test_zero_gradients_give_zero_updates(dtype, eps):
  for ratio in (optax_ext.adam_ratio(eps), optax_ext.accelerated_ratio(eps)):
    tx = adam_pieces(ratio=ratio)
    zero = jnp.zeros(3, dtype)
    state = tx.init(zero)
    for _ in range(3):
      updates, state = tx.update(zero, state)
      np.testing.assert_array_equal(updates, 0)


@pytest.mark.parametrize("magnitude", [1e-45, 1e-30, 1e-20, 1e20, 1e30])
def test_extreme_gradients_never_become_nan(magnitude):
  """A square that overflows stays infinite and the update 0, as in optax.adam; ∞ − ∞ would be NaN."""
  tx, grad = adam_pieces(), jnp.full(2, magnitude)
  state = tx.init(grad)
  for scale in (1, -1, 0.5, 0):
    updates, state = tx.update(scale * grad, state)
    assert np.isfinite(updates).all()


def test_a_bad_leaf_does_not_spread():
  tx = adam_pieces()
  grads = {"bad": jnp.array([jnp.nan, jnp.inf, 1.0]), "good": jnp.ones(3)}
  updates, state = tx.update(grads, tx.init(grads))
  np.testing.assert_array_equal(updates["good"], tx.update(grads["good"], tx.init(grads["good"]))[0])
  assert np.isfinite(state.nu["good"]).all()
  assert np.isfinite(updates["bad"][2])


def test_count_stays_at_its_largest_value():
  tx, grad = adam_pieces(), jnp.ones(2)
  state = tx.init(grad)._replace(count=jnp.asarray(2**31 - 1, jnp.int32))
  updates, state = tx.update(grad, state)
  assert int(state.count) == 2**31 - 1
  assert np.isfinite(updates).all()


def test_step_is_counted_from_one():
  seen = []

  def gain(t):
    seen.append(int(t))
    return 0.5  # plain Python numbers are gains too

  tx = optax_ext.scale_by_moments(gain, gain)
  state = tx.init(jnp.ones(2))
  for _ in range(3):
    _, state = tx.update(jnp.ones(2), state)
  assert seen == [1, 1, 2, 2, 3, 3]
  np.testing.assert_allclose(state.mu, 1 - 0.5**3)


@pytest.mark.parametrize(
  ("name", "says"),
  [
    ("mean_gain", r"constant_gain\(0.9\)"),
    ("square_gain", r"constant_gain\(0.999\)"),
    ("debias", r"standard\(\)"),
    ("ratio", r"adam_ratio\(\)"),
    ("square", r"per_vector\(axes\)"),
  ],
)
@pytest.mark.parametrize("bad", [0.9, 0.0])
def test_numbers_in_place_of_functions(name, says, bad):
  gains = {"mean_gain": optax_ext.constant_gain(B1), "square_gain": optax_ext.constant_gain(B2)}
  with pytest.raises(TypeError, match=rf"^{name} must be a function, such as {says}, but was {bad}"):
    optax_ext.scale_by_moments(**gains | {name: bad})


def test_odd_trees_pass():
  tx = adam_pieces()
  params = {
    "none": None,
    "scalar": jnp.float32(2),
    "python": 3.0,
    "empty": jnp.ones((0, 4)),
    "numpy": np.ones(2, np.float32),
    "masked": optax.MaskedNode(),
    "tuple": (jnp.ones(1), ()),
  }
  state = tx.init(params)
  updates, new = tx.update(params, state)
  assert jax.tree.structure(updates) == jax.tree.structure(params)
  assert jax.tree.structure(new) == jax.tree.structure(state)
  np.testing.assert_allclose(updates["scalar"], 1, rtol=1e-6)
  np.testing.assert_allclose(updates["python"], 1, rtol=1e-6)
  for empty in ({}, (), None):
    assert jax.tree.leaves(tx.update(empty, tx.init(empty))[0]) == []


def test_a_missing_gradient_leaves_its_moments_alone():
  tx, params = adam_pieces(), {"a": jnp.ones(2), "b": jnp.ones(2)}
  state = tx.update(params, tx.init(params))[1]
  updates, new = tx.update({"a": None, "b": jnp.ones(2)}, state)
  assert updates["a"] is None
  np.testing.assert_array_equal(new.mu["a"], state.mu["a"])
  assert float(new.nu["b"][0]) > float(state.nu["b"][0])


def test_shapes_alone_are_enough_for_init():
  state = adam_pieces().init({"a": jax.ShapeDtypeStruct((2, 3), jnp.bfloat16)})
  assert (state.mu["a"].shape, state.mu["a"].dtype) == ((2, 3), jnp.bfloat16)


@pytest.mark.parametrize(
  ("leaf", "says"),
  [
    (jnp.ones(2, jnp.int32), "has dtype int32"),
    (np.array([True]), "has dtype bool"),
    (3, "is of type int"),
    ("text", "is of type str"),
    (jax.random.key(0), "has dtype key"),
  ],
)
def test_leaves_that_cannot_be_trained(leaf, says):
  with pytest.raises(TypeError, match=f"Parameter 'a/b' {says}"):
    adam_pieces().init({"a": {"b": leaf}})


def test_the_second_moment_may_be_one_number_per_vector():
  tx = adam_pieces(square=optax_ext.per_vector((0,)))
  grad = jnp.array([[3.0, 1.0], [4.0, 1.0]])
  updates, state = tx.update(grad, tx.init(grad))
  assert state.nu.shape == (1, 2)
  np.testing.assert_allclose(updates, grad / np.linalg.norm(grad, axis=0), rtol=1e-5)


def test_updates_are_cast_like_the_parameters_or_the_gradients():
  tx = optax_ext.cast_updates(adam_pieces())
  grads = {"a": jnp.ones(2, jnp.float16), "b": None}
  assert tx.update(grads, tx.init(grads))[0]["a"].dtype == jnp.float16
  params = {"a": jnp.ones(2, jnp.bfloat16), "b": None}
  assert tx.update(grads, tx.init(params), params)[0]["a"].dtype == jnp.bfloat16
  assert tx.update(grads, tx.init(params), params, value=1.0)[0]["b"] is None
