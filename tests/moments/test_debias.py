import functools

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import enable_x64, open_loop, relative, run

import optax_ext
from optax_ext import Moments

B1, B2, EPS = 0.9, 0.999, 1e-8


def apply(rule, t, g, m, v):
  with enable_x64(True):
    return Moments(*map(np.asarray, rule(t)(Moments(*(jnp.asarray(x, jnp.float64) for x in (g, m, v))))))


def test_standard():
  g, m, v = np.array([1.0, -2.0, 0.0]), np.array([0.3, 0.0, -1.0]), np.array([1e-3, 0.0, 4.0])
  for t in (1, 2, 100, 10**6):
    got = apply(optax_ext.standard(B1, B2), t, g, m, v)
    c1, c2 = 1 - B1**t, 1 - B2**t
    np.testing.assert_allclose(got, [g / c1, m / c1, v / c2], rtol=1e-12)


def test_cross_moment():
  g, m, v = np.array([1.0, -2.0, 1e-3]), np.array([0.3, 1e-5, -1.0]), np.array([1e-3, 1e-9, 4.0])
  for t in (1, 2, 100, 10**5):
    got = apply(optax_ext.cross_moment(B1, B2, EPS), t, g, m, v)
    c1, c2 = 1 - B1**t, 1 - B2**t
    d1 = 1 + v / (v + EPS) * B2**t
    d2 = 1 + m**2 / (m**2 + EPS) * B1**t
    np.testing.assert_allclose(got, [g / c1 * d1, m / c1 * d1, v / c2 * d2], rtol=1e-12)


def test_worked_example_of_the_exadam_paper():
  """Section 2.2 claims g̃ ≈ 2g at v = 0.1 and ≈ 1.1g at v = 0.001; its formula gives 1.905g for both."""
  for v in (0.1, 0.001):
    got = apply(optax_ext.cross_moment(0.0, 0.999, EPS), 100, [1.0], [0.0], [v])
    assert got.grad == pytest.approx(1.905, abs=1e-3)


@pytest.mark.heavy
@given(
  m=st.floats(-1e30, 1e30),
  v=st.floats(0, 1e37),
  t=st.integers(1, 2**31 - 1),
  eps=st.sampled_from([0.0, 1e-8, 1e-3, 1.0]),
)
@settings(deadline=None, max_examples=200)
def test_cross_factors_lie_between_one_and_two(m, v, t, eps):
  got = optax_ext.cross_moment(B1, B2, eps)(jnp.int32(t))(Moments(*(jnp.float32(x) for x in (1.0, m, v))))
  plain = optax_ext.standard(B1, B2)(jnp.int32(t))(Moments(*(jnp.float32(x) for x in (1.0, m, v))))
  assert 1 - 1e-6 <= got.grad / plain.grad <= 2 + 1e-6
  if 0 < plain.square < 1e37:
    assert 1 - 1e-6 <= got.square / plain.square <= 2 + 1e-6


@pytest.mark.parametrize("eps", [0.0, 1e-8])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_cross_fractions_are_zero_at_zero_and_one_at_infinity(eps, dtype):
  with enable_x64(True):
    zero, infinite = jnp.zeros((), dtype), jnp.asarray(jnp.inf, dtype)
    rule, t = optax_ext.cross_moment(B1, B2, eps), 5
    c1 = 1 - B1**t
    assert rule(t)(Moments(zero + 1, zero, zero)).grad == pytest.approx(1 / c1, rel=1e-6)
    assert rule(t)(Moments(zero + 1, zero, infinite)).grad == pytest.approx((1 + B2**t) / c1, rel=1e-6)
    assert rule(t)(Moments(zero, zero, zero)) == (0, 0, 0)


def test_cross_moment_of_complex_means_uses_their_size():
  """|m|² = 25; against a small ε any size would do."""
  t = 3
  for eps, fraction in ((EPS, 1), (25.0, 0.5)):
    got = optax_ext.cross_moment(B1, B2, eps)(t)(Moments(jnp.array([1 + 1j]), jnp.array([3 - 4j]), jnp.array([2.0])))
    assert got.square.dtype == jnp.float32
    np.testing.assert_allclose(got.square, 2 / (1 - B2**t) * (1 + B1**t * fraction), rtol=1e-5)


@pytest.mark.parametrize("b1", [0.0, 0.5, 0.9])
def test_nesterov_is_nadam(b1):
  steps, shape = 200, (20,)
  grads = open_loop(shape, steps)
  tx = optax.chain(
    optax_ext.scale_by_moments(
      optax_ext.constant_gain(b1),
      optax_ext.constant_gain(B2),
      debias=optax_ext.nesterov(b1, B2),
      ratio=optax_ext.accelerated_ratio(EPS),
    ),
    optax.scale_by_learning_rate(1e-2),
  )
  with enable_x64(True):
    ours, theirs = (
      run(opt, np.ones(shape), lambda t, p: grads[t - 1], steps) for opt in (tx, optax.nadam(1e-2, b1=b1))
    )
  assert relative(ours, theirs) < 1e-12


@pytest.mark.parametrize(
  "make",
  [
    lambda: optax_ext.standard(1.0, 0.9),
    lambda: optax_ext.standard(0.9, -0.1),
    lambda: optax_ext.cross_moment(0.9, 1.0),
    lambda: optax_ext.cross_moment(0.9, 0.999, -1e-8),
    lambda: optax_ext.nesterov(1.0, 0.999),
    lambda: optax_ext.adam_ratio(-1e-8),
    lambda: optax_ext.accelerated_ratio(1e-8, -1.0),
  ],
)
def test_bad_values(make):
  with pytest.raises(ValueError, match="must be a number in"):
    make()


@pytest.mark.parametrize(
  ("mean_gain", "square_gain", "rates"),
  [
    (optax_ext.constant_gain(B1), optax_ext.constant_gain(B2), (B1, B2)),
    (optax_ext.constant_gain(B1), optax_ext.adamnx_gain(0.99), (B1, 0.0)),
    (optax_ext.adam_gain(B1), optax_ext.constant_gain(B2), (0.0, B2)),
    (optax_ext.adam_gain(B1), optax_ext.adafactor_gain(), (0.0, 0.0)),
    (optax_ext.adam_gain(B1), optax_ext.adax_gain(), (0.0, 0.0)),
  ],
)
@pytest.mark.parametrize("rule", [optax_ext.standard, functools.partial(optax_ext.cross_moment, eps=EPS)])
def test_without_decay_rates_it_asks_the_gains(rule, mean_gain, square_gain, rates):
  grads = open_loop((5,), 4)
  updates = []
  for debias in (rule(), rule(*rates)):
    tx = optax_ext.scale_by_moments(mean_gain, square_gain, debias=debias)
    state, seen = tx.init(jnp.zeros(5)), []
    for g in grads:
      update, state = tx.update(jnp.asarray(g, jnp.float32), state)
      seen.append(update)
    updates.append(np.stack(seen))
  np.testing.assert_array_equal(*updates)
  assert np.any(updates[0])


def test_gains_that_do_not_say_what_is_left_of_their_start():
  of_ones_own = lambda t: 0.1
  with pytest.raises(TypeError, match=r"^square_gain is <function .*give the debias rule its decay rates, as standard"):
    optax_ext.scale_by_moments(optax_ext.constant_gain(0.9), of_ones_own, debias=optax_ext.standard())
  with pytest.raises(TypeError, match=r"^A debias rule without decay rates asks the gains"):
    optax_ext.cross_moment()(1)
  with pytest.raises(TypeError, match=r"^b2 must be a number in \[0, 1\), but was None"):
    optax_ext.cross_moment(0.9)
