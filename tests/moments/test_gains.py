import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads
from support import enable_x64

import optax_ext
from optax_ext._common import two_floats

T = np.unique(np.round(np.logspace(0, 7, 2000)).astype(np.int64))

# the gains in extended precision, as the papers print them or in an equivalent form without cancellation
Long = np.longdouble


def exact_constant(b, t):
  return (1 - Long(b)) + 0 * t


def exact_adam(b, t):
  return (1 - Long(b)) / (1 - Long(b) ** t)


def exact_adamnx(b, t):
  growth = (1 - Long(b)) * np.log(Long(b))
  return np.exp(growth * (t - 1)) * np.expm1(growth) / np.expm1(growth * t)


def exact_adax(b, t):
  growth = np.log1p(Long(b))
  return Long(b) * np.exp(-growth * t) / -np.expm1(-growth * t)


def exact_adafactor(power, t):
  return t ** -Long(power)


GAINS = {
  "constant": (optax_ext.constant_gain, exact_constant, [0.0, 0.5, 0.9, 0.999]),
  "adam": (optax_ext.adam_gain, exact_adam, [0.0, 0.1, 0.9, 0.99, 0.999, 0.9999]),
  "adamnx": (
    optax_ext.adamnx_gain,
    exact_adamnx,
    [1e-30, 1e-6, 0.05, 0.24994840694800982, 0.3, 0.5, 0.7, 0.9, 0.945, 0.99, 0.999, 0.9999],
  ),
  "adax": (
    optax_ext.adax_gain,
    exact_adax,
    [1e-7, 1e-5, 1e-4, 1.005e-4, 1e-2, 0.3, 0.5, 0.7073951089370635, 2.0, 1e3, 7.5e5],
  ),
  "adafactor": (optax_ext.adafactor_gain, exact_adafactor, [0.0, 0.5, 0.8, 1.0]),
}


def worst(got, exact):
  """Relative error over the promised bound, where float32 can hold the value at all.

  A logarithm of one float, not two, comes to 0.95: the tests ask for less.
  """
  got, seen = np.broadcast_to(np.asarray(got, np.float64), exact.shape), exact > 1.2e-38
  assert np.all(got[~seen] <= 1.3e-38)
  bound = 1e-6 + 1e-7 * np.abs(np.log(exact[seen]))
  return float((np.abs(got[seen] - exact[seen]) / exact[seen] / bound).max())


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [jax.jit, lambda f: f], ids=["jit", "eager"])
@pytest.mark.parametrize("name", GAINS)
def test_gain_accuracy(name, compiled):
  make, exact, values = GAINS[name]
  for value in values:
    assert worst(compiled(make(value))(jnp.asarray(T, jnp.int32)), exact(value, Long(1) * T)) <= 0.75, value


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [jax.jit, lambda f: f], ids=["jit", "eager"])
@pytest.mark.parametrize("name", GAINS)
def test_gain_accuracy_of_traced_values(name, compiled):
  """The bound holds against exact arithmetic on the float32 that was received."""
  make, exact, values = GAINS[name]
  gain = compiled(lambda value, t: make(value)(t))
  drawn = np.random.default_rng(0).uniform(size=60)
  values = [*values, *{"adamnx": 0.5 + drawn / 2, "adax": 10 ** (8 * drawn - 7)}.get(name, ())]
  for value in jnp.asarray(values, jnp.float32):
    assert worst(gain(value, jnp.asarray(T, jnp.int32)), exact(np.float32(value), Long(1) * T)) <= 0.75, value


@pytest.mark.slow
@pytest.mark.parametrize("gain", [optax_ext.adamnx_gain, optax_ext.adax_gain])
@pytest.mark.parametrize("value", [1e-3, 0.3, 0.9, 0.99])
def test_gains_are_differentiable_in_the_rate(gain, value):
  with enable_x64(True):
    check_grads(lambda b: gain(b)(7), (value,), order=1)


@pytest.mark.parametrize("x", [1e-37, 3e-3, 0.7025, 0.7072, 0.99999994, 1.0, 1.0000001, 1.4143, 3e38])
def test_logarithm_as_two_floats(x):
  x = np.float32(x)
  want = np.log(Long(x))
  for log in (two_floats.log, jax.jit(two_floats.log)):
    high, low = (np.float64(part) for part in log(x))
    assert abs(high + low - want) <= 4e-8 * abs(want)


@pytest.mark.parametrize("name", GAINS)
def test_gain_is_float64_under_x64(name):
  make, exact, values = GAINS[name]
  with enable_x64(True):
    got = make(values[-1])(jnp.asarray(T, jnp.int32))
    assert got.dtype == jnp.float64
    got = np.broadcast_to(got, T.shape)
    want = exact(values[-1], Long(1) * T)
    seen = want > 1e-300
    np.testing.assert_allclose(got[seen], want[seen].astype(np.float64), rtol=1e-10)


@pytest.mark.parametrize("name", ["adam", "adamnx", "adax", "adafactor"])
def test_first_value_is_kept(name):
  make, _, values = GAINS[name]
  for value in values:
    assert make(value)(jnp.int32(1)) == pytest.approx(1, abs=1e-6)


def test_gain_at_the_last_step():
  last = jnp.int32(2**31 - 1)
  for make, _, values in GAINS.values():
    assert all(0 <= float(make(value)(last)) <= 1 for value in values)


@given(b2=st.floats(0.5, 0.9999), t=st.integers(2, 10**6))
@settings(deadline=None, max_examples=100)
def test_adamnx_lies_below_the_mean_and_the_mean_below_adam(b2, t):
  """w_AdamNX(t) ≤ 1/t ≤ w_Adam(t), and AdamNX's gain decreases."""
  adamnx, adam = float(optax_ext.adamnx_gain(b2)(t)), float(optax_ext.adam_gain(b2)(t))
  assert adamnx <= (1 + 1e-5) / t
  assert adam >= (1 - 1e-5) / t
  assert adamnx <= float(optax_ext.adamnx_gain(b2)(t - 1)) * (1 + 1e-5)


@given(b2=st.floats(0.5, 0.9999), t=st.integers(1, 10**5))
@settings(deadline=None, max_examples=100)
def test_adamnx_is_adax(b2, t):
  """With β = β₂^{−(1−β₂)} − 1 the two gains are the same function."""
  beta = math.expm1(-(1 - b2) * math.log(b2))
  exponent = t * math.log1p(beta)
  np.testing.assert_allclose(
    optax_ext.adamnx_gain(b2)(t), optax_ext.adax_gain(beta)(t), rtol=2e-6 + 2e-7 * exponent, atol=1e-37
  )


def average(gain, values):
  mean = 0.0
  for t, value in enumerate(values, 1):
    mean = mean + float(gain(t)) * (value - mean)
  return mean


def test_average_with_adam_gain_is_debiased_adam():
  values, b = np.random.default_rng(0).normal(size=50), 0.9
  mean = functools.reduce(lambda m, x: b * m + (1 - b) * x, values, 0.0)
  with enable_x64(True):
    assert average(optax_ext.adam_gain(b), values) == pytest.approx(mean / (1 - b**50), rel=1e-13)


def test_average_with_adax_gain_is_adax():
  """v ← (1 + β₂)v + β₂g², v̂ = v/((1 + β₂)ᵗ − 1)."""
  values, b = np.random.default_rng(0).normal(size=50) ** 2, 0.01
  v = functools.reduce(lambda v, x: (1 + b) * v + b * x, values, 0.0)
  with enable_x64(True):
    assert average(optax_ext.adax_gain(b), values) == pytest.approx(v / ((1 + b) ** 50 - 1), rel=1e-13)


def test_adamnx_as_printed():
  """β₂,ₜ = (1 − β₂^{k(t−1)})/(1 − β₂^{kt})."""
  b2, k = 0.9, 0.1
  with enable_x64(True):
    for t in (1, 2, 7, 50):
      printed = (1 - b2 ** (k * (t - 1))) / (1 - b2 ** (k * t))
      assert 1 - optax_ext.adamnx_gain(b2)(t) == pytest.approx(printed, rel=1e-11, abs=1e-14)


def test_adamnx_at_the_published_decay():
  """Time constant and remaining weight at β₂ = 0.99, as the docstring states them."""
  gains = jax.vmap(optax_ext.adamnx_gain(0.99))
  later = lambda t: 10 * float(gains(jnp.linspace(t, t + 2e5, 20_000)).sum())
  assert -1 / ((1 - 0.99) * math.log(0.99)) == pytest.approx(9950, rel=1e-3)
  assert later(3e4) == pytest.approx(0.05, rel=0.05)
  assert later(5e4) == pytest.approx(0.007, rel=0.07)


def test_log_step_size():
  schedule = optax_ext.log_step_size()
  for count in (0, 1, 2, 99, 10**6):
    assert float(schedule(jnp.int32(count))) == pytest.approx(math.log(math.sqrt(2) * math.sqrt(count + 2)), rel=1e-6)
  assert float(schedule(jnp.int32(0))) == pytest.approx(0.693, abs=1e-3)
  assert float(schedule(jnp.int32(1))) < 1 < float(schedule(jnp.int32(2)))
  assert np.isfinite(float(schedule(jnp.int32(2**31 - 1))))


@pytest.mark.parametrize(
  "inner", [optax.linear_schedule(0.0, 1.0, 10), optax.warmup_cosine_decay_schedule(0.0, 1.0, 5, 20)]
)
def test_log_step_size_multiplies_schedules(inner):
  for count in range(0, 25, 3):
    assert float(optax_ext.log_step_size(inner)(count)) == pytest.approx(
      float(inner(count)) * math.log(2 * (count + 2)) / 2, rel=1e-6
    )


@pytest.mark.parametrize(
  ("make", "bad"),
  [
    (optax_ext.constant_gain, 1.0),
    (optax_ext.constant_gain, -0.1),
    (optax_ext.adam_gain, 1.5),
    (optax_ext.adam_gain, float("nan")),
    (optax_ext.adamnx_gain, 0.0),
    (optax_ext.adamnx_gain, 1.0),
    (optax_ext.adax_gain, 0.0),
    (optax_ext.adax_gain, np.float32(-1)),
    (optax_ext.adafactor_gain, -0.5),
    (optax_ext.log_step_size, -1e-3),
  ],
)
def test_values_outside_the_range(make, bad):
  with pytest.raises(ValueError, match="must be a number"):
    make(bad)


@pytest.mark.parametrize("make", [optax_ext.constant_gain, optax_ext.adamnx_gain, optax_ext.log_step_size])
@pytest.mark.parametrize("bad", ["0.9", None, True, [0.9], 1j])
def test_values_that_are_no_numbers(make, bad):
  with pytest.raises(TypeError, match="must be a number"):
    make(bad)


def test_jax_arrays_are_not_looked_at():
  assert not np.isfinite(float(optax_ext.adam_gain(jnp.float32(jnp.nan))(3)))
