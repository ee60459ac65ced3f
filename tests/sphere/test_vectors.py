import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from support import enable_x64, jitted

import optax_ext
from optax_ext._sphere.transforms import coefficient

FLOATS = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)  # XLA flushes subnormal numbers to 0
SHAPES = st.sampled_from([(1, 1), (1, 4), (2, 3), (5, 2)])  # few, as each is compiled
MATRICES = hnp.arrays(np.float32, SHAPES, elements=FLOATS)


def apply(tx, updates, params):
  return tx.update(updates, tx.init(params), params)[0]


def project(g, w, axes=(0,)):
  return apply(optax_ext.project_out_params(axes), jnp.asarray(g), jnp.asarray(w))


projected = jitted(project)
normalized = jitted(lambda w: optax_ext.normalize_vectors(w, (0,)))
renormalized = jitted(lambda update, w: optax.apply_updates(w, apply(optax_ext.renormalize_params((0,)), update, w)))


@given(w=MATRICES, data=st.data())
@settings(deadline=None, max_examples=60)
def test_projection_is_a_projection(w, data):
  """Tangent to the vector, idempotent, and the identity where the vector is 0."""
  g = data.draw(hnp.arrays(np.float32, w.shape, elements=FLOATS))
  once = np.asarray(projected(g, w))
  lengths = np.linalg.norm(w.astype(np.float64), axis=0)
  size = np.linalg.norm(g.astype(np.float64), axis=0) + 1e-30
  usable = lengths > 1e-18  # shorter, and the square of the length leaves float32
  cosine = (once * w.astype(np.float64)).sum(0)[usable] / (lengths * size)[usable]
  np.testing.assert_array_less(np.abs(cosine), 1e-5)
  np.testing.assert_allclose((projected(once, w) - once) / size, 0, atol=1e-5)
  zero = lengths == 0
  np.testing.assert_array_equal(once[:, zero], g[:, zero])


def test_projection_of_vectors_that_are_not_unit():
  """g − (g·w)/(w·w) w, where the printed g − (g·w) w would be no projection."""
  np.testing.assert_allclose(project([[3.0], [4.0]], [[10.0], [0.0]]), [[0.0], [4.0]], atol=1e-6)


@given(w=MATRICES, data=st.data())
@settings(deadline=None, max_examples=60)
def test_renormalised_vectors_have_unit_length(w, data):
  update = data.draw(hnp.arrays(np.float32, w.shape, elements=st.floats(-10, 10, width=32, allow_subnormal=False)))
  w = np.asarray(normalized(w))
  new = np.asarray(renormalized(update, w))
  lengths = np.linalg.norm(new.astype(np.float64), axis=0)
  moved = np.linalg.norm(w.astype(np.float64) + update, axis=0)
  assert np.isfinite(new).all()
  np.testing.assert_allclose(lengths[moved > 1e-3], 1, atol=1e-5)
  np.testing.assert_array_equal(lengths[moved == 0], 0)


@given(w=hnp.arrays(np.float32, (4, 3), elements=st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)))
@settings(deadline=None, max_examples=60)
def test_normalize_vectors(w):
  """Unit length whatever the magnitude, the same direction, and normalising twice changes nothing."""
  unit = np.asarray(optax_ext.normalize_vectors(w, (0,)))
  lengths = np.linalg.norm(w.astype(np.float64), axis=0)
  normal = np.abs(w).max(0) > 1e-37
  np.testing.assert_allclose(np.linalg.norm(unit.astype(np.float64), axis=0)[normal], 1, atol=1e-6)
  np.testing.assert_allclose(unit[:, normal], w[:, normal] / lengths[normal], rtol=1e-5, atol=1e-37)
  np.testing.assert_allclose(optax_ext.normalize_vectors(unit, (0,)), unit, rtol=1e-6)
  np.testing.assert_array_equal(unit[:, lengths == 0], 0)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.complex64])
@pytest.mark.parametrize("size", [3e38, 1e38, 1e-20, 1.2e-38])
def test_normalize_vectors_of_the_largest_and_smallest_numbers(size, dtype):
  """Outside of a program, inside, and as a constant of one, where XLA may order products and divisions anew."""
  w, normalize = jnp.full((2, 3), size, dtype), lambda w: optax_ext.normalize_vectors(w, (0,))
  for got in (normalize(w), jax.jit(normalize)(w), jax.jit(lambda: normalize(w))()):
    np.testing.assert_allclose(np.asarray(got, np.complex64), 0.5**0.5, rtol=4e-3 if dtype == jnp.bfloat16 else 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1e30, 1.0, 1e-30, 0.0])
def test_derivative_of_normalize_vectors(size):
  """(I − ww')/‖w‖ for unit w, and I where w = 0."""
  w = jnp.array([[size], [2 * size]])
  got = jax.jacobian(lambda w: optax_ext.normalize_vectors(w, (0,)).ravel())(w)[..., 0]
  want = np.array([[4, -2], [-2, 1]]) / 5 / (5**0.5 * size) if size else np.eye(2)
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_normalize_vectors_keeps_dtypes_and_scalars():
  params = {
    "kernel": jnp.full((4, 2), 2, jnp.bfloat16),
    "bias": jnp.full(2, 2.0),
    "none": None,
    "empty": jnp.ones((0, 3)),
  }
  got = optax_ext.normalize_vectors(params, lambda path, leaf: (0,) if path in ("kernel", "empty") else None)
  assert got["kernel"].dtype == jnp.bfloat16
  np.testing.assert_array_equal(got["kernel"], 0.5)
  np.testing.assert_array_equal(got["bias"], 2)
  assert got["none"] is None
  assert got["empty"].shape == (0, 3)


def test_complex_vectors_are_vectors_of_their_parts():
  rng = np.random.default_rng(0)
  w, g = (rng.normal(size=(3, 2)) + 1j * rng.normal(size=(3, 2)) for _ in range(2))
  parts = lambda x: np.concatenate([x.real, x.imag])
  with enable_x64(True):
    np.testing.assert_allclose(parts(project(g, w)), project(parts(g), parts(w)), rtol=1e-12)
    np.testing.assert_allclose(
      parts(np.asarray(optax_ext.normalize_vectors(w, (0,)))), optax_ext.normalize_vectors(parts(w), (0,)), rtol=1e-12
    )


@pytest.mark.parametrize("factor", [1e-30, 1e-20, 1e20, 1e30])
def test_extreme_lengths_give_finite_updates(factor):
  """Where the squared length leaves float32 a vector counts as zero in projection, and keeps its length afterwards."""
  w, g = jnp.full((3, 2), factor), jnp.ones((3, 2))
  assert np.isfinite(project(g, w)).all()
  assert np.isfinite(apply(optax_ext.renormalize_params((0,)), 1e-3 * g, w)).all()


def test_a_quotient_that_overflows_projects_nothing():
  w, g = jnp.full((2, 1), 1e-19), jnp.array([[1e25], [2e25]])
  np.testing.assert_array_equal(project(g, w), g)
  assert coefficient(jnp.float32(1e6), jnp.float32(1e-37)) == 0


def test_per_vector_sums():
  grads = {"a/kernel": jnp.ones((3, 3, 2, 4)), "bias": jnp.full(4, 3.0)}
  square = optax_ext.per_vector(lambda path, leaf: (0, 1, 2) if path.endswith("kernel") else None)
  got = {path: square(path, g) for path, g in grads.items()}
  assert got["a/kernel"].shape == (1, 1, 1, 4)
  np.testing.assert_array_equal(got["a/kernel"], 18)
  np.testing.assert_array_equal(got["bias"], 9)


PARAMS = {"a": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}, "b": [jnp.ones((4, 3, 2))]}
FORMS = {
  "callable": lambda path, leaf: {"a/kernel": (0,), "a/bias": None, "b/0": (-1, 0)}[path],
  "tree": {"a": {"kernel": (0,), "bias": None}, "b": [(0, 2)]},
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_axes(form):
  got = optax_ext.normalize_vectors(PARAMS, FORMS[form])
  np.testing.assert_allclose(got["a"]["kernel"], 2**-0.5, rtol=1e-6)
  np.testing.assert_allclose(got["a"]["bias"], 1)
  np.testing.assert_allclose(got["b"][0], 8**-0.5, rtol=1e-6)


def test_axes_of_trees_of_other_kinds():
  """A module is callable, and a tree all the same; its functions stay what they are, and empty tuples hold nothing."""

  @functools.partial(jax.tree_util.register_dataclass, data_fields=["kernel", "activation"], meta_fields=[])
  @dataclasses.dataclass
  class Module:
    kernel: Any
    activation: Any

    def __call__(self, x):
      raise AssertionError

  unit = lambda axis: lambda tree: np.testing.assert_allclose(np.linalg.norm(tree, axis=axis), 1, rtol=1e-6)
  got = optax_ext.normalize_vectors(Module(jnp.ones((2, 3)), None), Module((0,), None))
  unit(0)(got.kernel)
  structure = optax_ext.structure_from_params(Module(jnp.ones((2, 3)), None))
  got = optax_ext.normalize_vectors(Module(jnp.ones((2, 3)), jnp.tanh), structure)
  unit(0)(got.kernel)
  assert got.activation is jnp.tanh
  layers = [(jnp.ones((3, 2)), jnp.ones(2)), (), (jnp.ones((2, 1)), jnp.ones(1))]
  axes = [((0,), None), (), ((0,), None)]
  unit(0)(optax_ext.normalize_vectors(layers, axes)[2][0])


def test_axes_of_a_structure_and_one_tuple_for_all():
  params = {"a": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
  by_structure = optax_ext.normalize_vectors(params, optax_ext.structure_from_params(params))
  by_tree = optax_ext.normalize_vectors(params, {"a": {"kernel": (0,), "bias": None}})
  by_tuple = optax_ext.normalize_vectors(params, (0,))
  assert jax.tree.all(
    jax.tree.map(
      lambda *same: np.array_equal(same[0], same[1]) and np.array_equal(*same[1:]), by_structure, by_tree, by_tuple
    )
  )
  assert jax.tree.all(jax.tree.map(np.array_equal, optax_ext.normalize_vectors(params, None), params))


def test_trees_of_axes_under_masks():
  tx = optax.masked(optax_ext.renormalize_params(FORMS["tree"]), {"a": False, "b": True})
  got = optax.apply_updates(PARAMS, apply(tx, jax.tree.map(jnp.zeros_like, PARAMS), PARAMS))
  np.testing.assert_allclose(got["b"][0], 8**-0.5, rtol=1e-6)
  np.testing.assert_array_equal(got["a"]["kernel"], 1)


@pytest.mark.parametrize("make", [optax_ext.project_out_params, optax_ext.renormalize_params])
def test_wrong_axes(make):
  w = {"kernel": jnp.ones((2, 3))}
  with pytest.raises(TypeError, match=r"must be None or a tuple of one or more ints, but were 0; write \(0,\)"):
    make(0)
  with pytest.raises(TypeError, match=r"axes of leaf 'kernel' .* but were 0; write \(0,\)"):
    make({"kernel": 0})
  with pytest.raises(TypeError, match=r"but were \[0\]"):
    apply(make(lambda path, leaf: [0]), w, w)
  with pytest.raises(TypeError, match="one or more"):
    apply(make(()), w, w)
  with pytest.raises(
    ValueError, match=r"Axes \(2,\) were given for leaf 'kernel', but its shape \(2, 3\) has no axis 2"
  ):
    apply(make((2,)), w, w)
  with pytest.raises(ValueError, match="one axis twice"):
    apply(make((0, -2)), w, w)
  with pytest.raises(ValueError, match="No axes were given for leaf 'kernel'"):
    apply(make({"other": (0,)}), w, w)


def test_leaves_without_axes_are_named():
  w = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
  with pytest.raises(ValueError, match="No axes were given for leaf 'bias', nor for any other: add it"):
    optax_ext.normalize_vectors(w, {})
  with pytest.raises(ValueError, match="No axes were given for leaf 'bias', only for 'kernel': add it"):
    optax_ext.normalize_vectors(w, {"kernel": (0,)})
  with pytest.raises(ValueError, match="only for 'a0', 'a1', 'a2', 'a3', 'a4' and so on: add it"):
    optax_ext.normalize_vectors(w, {f"a{i}": None for i in range(6)})


def test_masks_hide_missing_gradients():
  params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
  mask = optax_ext.vector_mask({"kernel": (0,), "bias": None})
  assert mask(params | {"kernel": None}) == {"kernel": False, "bias": False}
  tx = optax.masked(optax.scale(50.0), mask)
  updates = tx.update(params | {"kernel": None}, tx.init(params), params)[0]
  assert updates["kernel"] is None
  np.testing.assert_array_equal(updates["bias"], 1)


@pytest.mark.parametrize("make", [optax_ext.project_out_params, optax_ext.renormalize_params])
def test_params_are_needed(make):
  tx, w = make((0,)), jnp.ones((2, 3))
  with pytest.raises(ValueError, match="not passing `params`"):
    tx.update(w, tx.init(w))
