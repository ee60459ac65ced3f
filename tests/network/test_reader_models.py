"""Facts read from small models of many architectures against those derived by hand, and optimizers that use them."""

import functools
import operator

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from flax import linen, nnx
from models import (
  MODELS,
  NnxMLP,
  conv_equinox,
  gpt_tied,
  mlp_bfloat16,
  mlp_equinox,
  mlp_linen,
  mlp_nnx,
  rand,
  resnet20,
  scanned,
  unet,
  unet_transpose_kernel,
)
from plain_models import check, ensemble_conv, leaves_by_path, mlp_dict, nested_scan, scale_by_hand
from support import jitted

from optax_ext import (
  Additive,
  ByDepth,
  Multiplicative,
  caadam,
  nd_adam,
  normalize_vectors,
  scale_by_structure,
  structure_from_model,
  structure_from_params,
)


@pytest.fixture(scope="module", params=MODELS, ids=lambda build: build.__name__)
def model(request):
  return request.param()


@pytest.fixture(scope="module")
def structure(model):
  return structure_from_model(model.apply, model.params, *model.inputs)


@pytest.mark.slow
def test_facts(model, structure):
  check(structure, model)


def test_shapes_suffice(model, structure):
  shapes = jax.eval_shape(lambda *args: args, model.params, *model.inputs)
  assert structure_from_model(model.apply, *shapes).leaves() == structure.leaves()


def test_loss_has_the_same_facts(model, structure):
  def loss(params, *inputs):
    penalty = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
    return jnp.mean((model.apply(params, *inputs) - 1) ** 2) + 0.01 * penalty

  traced = structure_from_model(jax.jit(loss), model.params, *model.inputs)
  check(traced, model)
  assert [facts.macs for facts in traced.leaves()] == [facts.macs for facts in structure.leaves()]


RULES = [Additive(), Multiplicative(signed=True), ByDepth()]


def stack(trees):
  return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def trained(tx, params, grads):
  """The parameters after one step for each of the gradients, which are stacked."""

  def step(carry, grad):
    params, state = carry
    updates, state = tx.update(grad, state, params)
    return (optax.apply_updates(params, updates), state), None

  return jax.lax.scan(step, (params, tx.init(params)), grads)[0][0]


@pytest.mark.slow
def test_scales_are_those_of_the_paper(model, structure):
  """Facts by hand, equations in NumPy float64."""
  ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), model.params)
  for rule in RULES:
    scaled, _ = scale_by_structure(rule, structure).update(ones, optax.EmptyState())
    for path, leaf in leaves_by_path(scaled).items():
      want = np.broadcast_to(scale_by_hand(rule, model, path, leaf.shape), leaf.shape)
      np.testing.assert_allclose(leaf, want, rtol=1e-6, err_msg=f"{path} {rule}")


@pytest.mark.heavy
@pytest.mark.parametrize("build", [mlp_bfloat16, mlp_equinox, mlp_nnx, scanned, nested_scan])
def test_caadam_is_its_equations(build):
  """In trees of every framework, with one scale for a leaf and with one for each layer of a stack."""
  model = build()
  grads = [jax.tree.map(lambda leaf, t=t: np.asarray(rand(leaf.shape, t)), model.params) for t in (1, 2, 3)]
  structure = structure_from_model(model.apply, model.params, *model.inputs)
  tx = caadam(1e-2, rule=functools.reduce(operator.mul, RULES), structure=structure)
  moved = leaves_by_path(jitted(functools.partial(trained, tx))(model.params, stack(grads)))
  given, grads = leaves_by_path(model.params), [leaves_by_path(grad) for grad in grads]
  for path, leaf in given.items():
    gradient = lambda t, _, path=path: np.float64(grads[t - 1][path])
    scale = functools.reduce(operator.mul, [scale_by_hand(rule, model, path, leaf.shape) for rule in RULES])
    want = reference.caadam(np.float64(leaf), gradient, 3, scale, lr=1e-2)[-1]
    np.testing.assert_allclose(moved[path], want, rtol=1e-4, atol=2e-5, err_msg=path)


@pytest.mark.slow
def test_nd_adam_has_one_second_moment_for_each_vector(model, structure):
  """The moments' shapes tell along which axes the vectors run."""
  tx = nd_adam(1e-3, structure=structure)
  shapes = jax.eval_shape(lambda params: params, model.params)
  state = jax.eval_shape(tx.init, shapes)
  assert jax.tree.leaves(jax.eval_shape(tx.update, shapes, state, shapes)) == jax.tree.leaves((shapes, state))
  given = leaves_by_path(shapes)
  for path, square in leaves_by_path(optax.tree.get(state, "nu")).items():
    along = model.facts[path].contracting or ()
    assert square.shape == tuple(1 if axis in along else n for axis, n in enumerate(given[path].shape)), path


@pytest.mark.heavy
def test_nd_adam_keeps_vectors_at_length_1():
  """One leaf for each number of axes and each way to contract them: a step depends on no other leaf."""
  builders = mlp_dict, conv_equinox, gpt_tied, scanned, nested_scan, ensemble_conv, unet_transpose_kernel
  params, axes = {}, {}
  for model in (build() for build in builders):
    facts = leaves_by_path(structure_from_model(model.apply, model.params, *model.inputs).facts)
    for path, leaf in leaves_by_path(model.params).items():
      kind = f"{leaf.ndim} axes, {model.facts[path].contracting}"
      params[kind], axes[kind] = leaf, facts[path].contracting_axes
  assert len(params) == 13
  params = jitted(lambda params: normalize_vectors(params, axes))(params)
  grads = jax.tree.map(lambda leaf: np.asarray(rand((100, *leaf.shape))), params)
  for kind, leaf in jitted(functools.partial(trained, nd_adam(1e-3, axes=axes)))(params, grads).items():
    if axes[kind] is not None:
      np.testing.assert_allclose(np.sqrt((np.asarray(leaf) ** 2).sum(axes[kind])), 1, rtol=1e-5)
    assert not np.allclose(leaf, params[kind], atol=1e-3), kind


@pytest.mark.slow
def test_muon_on_attention_and_scanned_layers():
  numbers = optax.contrib.MuonDimensionNumbers
  model = gpt_tied()
  dims = leaves_by_path(
    structure_from_model(model.apply, model.params, *model.inputs).muon_dimension_numbers()(model.params),
    lambda x: x is None or isinstance(x, numbers),
  )
  by_hand = {}
  for i in (0, 1):
    for part in ("query", "key", "value"):
      by_hand[f"block_{i}/attention/{part}/kernel"] = numbers((0,), (1, 2))
    by_hand[f"block_{i}/attention/out/kernel"] = numbers((0, 1), (2,))
    by_hand |= {f"block_{i}/{part}/kernel": numbers((0,), (1,)) for part in ("up", "down")}
  assert {path: value for path, value in dims.items() if value is not None} == by_hand

  model = scanned()
  spec = structure_from_model(model.apply, model.params, *model.inputs).muon_dimension_numbers()(model.params)
  spec_by_hand = jax.tree_util.tree_map_with_path(
    lambda path, leaf: (
      None
      if leaf.ndim < 2 or "bias" in str(path) or "norm" in str(path)
      else numbers((leaf.ndim - 2,), (leaf.ndim - 1,))
    ),
    model.params,
  )
  grads = jax.tree.map(lambda leaf: rand(leaf.shape, 7), model.params)
  step = lambda tx: jitted(lambda g: tx.update(g, tx.init(g), g)[0])
  steps = [step(optax.contrib.muon(0.1, muon_weight_dimension_numbers=dims))(grads) for dims in (spec, spec_by_hand)]
  chex.assert_trees_all_equal(*steps)
  one = {"layer": grads["params"]["layers"]["up"]["kernel"][1]}  # Muon of one layer of the stack, by itself
  alone = step(optax.contrib.muon(0.1))(one)["layer"]
  np.testing.assert_allclose(steps[0]["params"]["layers"]["up"]["kernel"][1], alone, rtol=2e-3, atol=1e-4)


@pytest.mark.heavy
def test_muon_on_a_module_that_can_be_called_and_on_parameters_beside_statistics():
  """Muon calls what is callable: the numbers must not be a tree of the shape of the module."""
  module, x = NnxMLP(nnx.Rngs(0)), rand((3, 4))
  numbers = structure_from_model(NnxMLP.__call__, module, x).muon_dimension_numbers()
  tx, params = optax.contrib.muon(1e-3, muon_weight_dimension_numbers=numbers), nnx.state(module, nnx.Param)
  train = lambda module: nnx.Optimizer(module, tx, wrt=nnx.Param).update(module, params)
  nnx.eval_shape(train, module)
  assert numbers(params)["layers"][1]["kernel"].get_value() == optax.contrib.MuonDimensionNumbers((0,), (1,))

  class Normed(linen.Module):
    @linen.compact
    def __call__(self, x):
      return linen.Dense(2, name="head")(linen.BatchNorm(use_running_average=True)(linen.Dense(3, name="first")(x)))

  variables = jax.eval_shape(Normed().init, jax.random.key(0), x)
  numbers, params = structure_from_model(Normed().apply, variables, x).muon_dimension_numbers(), variables["params"]
  tx = optax.contrib.muon(1e-3, muon_weight_dimension_numbers=numbers)
  jax.eval_shape(lambda params: tx.update(params, tx.init(params), params), params)
  assert numbers(params)["head"]["kernel"] == optax.contrib.MuonDimensionNumbers((0,), (1,))


def test_one_call_for_each_framework():
  """The module's own call, with no recipe around it."""
  module, x = NnxMLP(nnx.Rngs(0)), rand((3, 4))
  facts = leaves_by_path(structure_from_model(NnxMLP.__call__, module, x).facts)
  params = nnx.state(module, nnx.Param)
  assert facts["layers/1/kernel"].contracting_axes == (0,)
  assert facts["layers/2/kernel"].depth == 2
  tx = caadam(1e-3, structure=structure_from_model(NnxMLP.__call__, module, x))
  jax.eval_shape(lambda params: tx.update(params, tx.init(params), params), params)

  model = mlp_linen()
  assert structure_from_model(model.apply, model.params, *model.inputs).num_layers == 3


def test_statistics_are_not_layers():
  """Running statistics that the function updates belong to no layer, and nothing is said to be unused."""
  structure = structure_from_model(NnxMLP.__call__, NnxMLP(nnx.Rngs(0)), rand((3, 4)))
  facts = leaves_by_path(structure.facts)
  assert facts["norm/mean"].layer is None
  assert facts["norm/mean"].note == ""


def test_multiply_accumulates():
  """A place of the input meets a transposed kernel once; a kernel meets every place of its output."""
  model = unet()
  facts = leaves_by_path(structure_from_model(model.apply, model.params, *model.inputs).facts)
  assert facts["down0/kernel"].macs == 8 * 8 * (3 * 3 * 1 * 2)
  assert facts["down1/kernel"].macs == 4 * 4 * (3 * 3 * 2 * 4)
  assert facts["up1/kernel"].macs == 2 * 2 * (2 * 2 * 6 * 4)


def test_paths_and_trace_differ_where_paths_cannot_know():
  model = resnet20()
  guessed = leaves_by_path(structure_from_params(model.params).facts)
  traced = leaves_by_path(structure_from_model(model.apply, model.params, *model.inputs).facts)
  assert traced["proj_1_0/kernel"].depth == traced["conv_1_0a/kernel"].depth
  assert guessed["proj_1_0/kernel"].depth > guessed["head/kernel"].depth


@pytest.mark.slow
def test_plot(tmp_path):
  pytest.importorskip("matplotlib")
  for build in (resnet20, scanned):
    model = build()
    structure = structure_from_model(model.apply, model.params, *model.inputs)
    structure.plot(tmp_path / "plain.png")
    structure.plot(tmp_path / "scaled.svg", ByDepth())
    assert (tmp_path / "plain.png").stat().st_size > 10_000
    assert "connections" in (tmp_path / "scaled.svg").read_text()
