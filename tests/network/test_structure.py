import copy
import dataclasses
import itertools
import math
import pickle
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

import optax_ext
from optax_ext import Additive, ByDepth, ByPath, LeafFacts, Multiplicative, Structure

RULES = [Additive(), Multiplicative(), Multiplicative(signed=True), ByDepth()]


def mlp(*sizes):
  return {
    f"Dense_{i}": {"kernel": jnp.ones((a, b)), "bias": jnp.ones((b,))}
    for i, (a, b) in enumerate(itertools.pairwise(sizes))
  }


def layers_with(counts):
  """A structure of unconnected layers with these numbers of connections."""
  params = {f"l{i}": {"kernel": jnp.zeros((1, count))} for i, count in enumerate(counts)}
  return optax_ext.structure_from_params(params)


def facts_of(params):
  return {facts.path: facts for facts in optax_ext.structure_from_params(params).leaves()}


def test_flax_mlp():
  structure = optax_ext.structure_from_params({"params": mlp(8, 64, 32, 1)})
  assert structure.num_layers == 3
  facts = structure.facts["params"]["Dense_1"]["kernel"]
  assert facts == LeafFacts("Dense_1/kernel", (64, 32), "Dense_1/kernel", 1, 2048, (0,))
  bias = structure.facts["params"]["Dense_1"]["bias"]
  assert bias == LeafFacts("Dense_1/bias", (32,), "Dense_1/kernel", 1, 2048, None)


def test_numbered_layers_count_naturally():
  facts = facts_of(mlp(*[2] * 14))
  assert [facts[f"Dense_{i}/kernel"].depth for i in range(13)] == list(range(13))


@pytest.mark.parametrize(
  ("name", "shape", "axes"),
  [
    ("kernel", (5, 7), (0,)),
    ("kernel", (3, 3, 2, 4), (0, 1, 2)),
    ("w", (5, 7), (0,)),
    ("weight", (7, 5), (1,)),
    ("weight", (4, 2, 3, 3), (1, 2, 3)),
    ("weight_ih", (4, 2), (1,)),
    ("bias", (3, 7), None),
    ("scale", (3, 7), None),
    ("embedding", (100, 7), None),
    ("embeddings", (100, 7), None),
    ("kernel", (5,), None),
    ("kernel", (0, 5), None),
    ("kernel", (), None),
  ],
)
def test_contracting_axes_by_name_and_shape(name, shape, axes):
  facts = facts_of({"m": {name: jax.ShapeDtypeStruct(shape, jnp.float32)}})[f"m/{name}"]
  assert facts.contracting_axes == axes
  assert (facts.layer == facts.path) == (axes is not None)


def test_biases_belong_to_the_weight_beside_them():
  params = {
    "lstm": {"weight_ih": jnp.ones((8, 2)), "weight_hh": jnp.ones((8, 4)), "bias_ih": jnp.ones(8), "b": jnp.ones(8)},
    "plain": {"w1": jnp.ones((2, 3)), "b1": jnp.ones(3), "w2": jnp.ones((3, 4)), "b2": jnp.ones(4)},
    "pairs": [(jnp.ones((2, 3)), jnp.ones(3)), (jnp.ones((3, 4)), jnp.ones(4))],
    "norm": {"scale": jnp.ones(4), "bias": jnp.ones(4)},
  }
  layers = {path: facts.layer for path, facts in facts_of(params).items()}
  assert layers["lstm/bias_ih"] == "lstm/weight_ih"
  assert layers["lstm/b"] is None
  assert layers["plain/b1"] == "plain/w1"
  assert layers["plain/b2"] == "plain/w2"
  assert layers["pairs/1/1"] == "pairs/1/0"
  assert layers["norm/scale"] is None
  assert layers["norm/bias"] is None


def test_leaves_of_no_layer_have_the_depth_of_the_weight_before():
  params = {"A_norm": {"scale": jnp.ones(2)}, **mlp(2, 2, 2), "z_norm": {"scale": jnp.ones(2)}}
  facts = facts_of(params)
  assert (facts["A_norm/scale"].depth, facts["z_norm/scale"].depth) == (0, 1)
  assert facts["z_norm/scale"].connections == 0


def test_table_shows_scales():
  table = optax_ext.structure_from_params(mlp(8, 64, 32, 1)).table(Additive())
  lines = table.splitlines()
  assert lines[0].split()[-1] == "scale"
  assert [line.split()[-1] for line in lines[1:-1:2]] == ["1", "0.05", "1.95"]
  assert lines[-1] == "3 layers deep"
  assert "scale" not in str(optax_ext.structure_from_params(mlp(2, 2)))


# rules


@pytest.mark.heavy
@given(counts=st.lists(st.integers(1, 10**4), min_size=1, max_size=8), gamma=st.floats(0.0, 1.0))
@settings(deadline=None, max_examples=60)
def test_additive(counts, gamma):
  scales = Additive(gamma).scales(layers_with(counts))
  for i, count in enumerate(counts):
    assert scales[f"l{i}"]["kernel"] == pytest.approx(reference.additive(count, counts, gamma))
    assert 1 - gamma <= scales[f"l{i}"]["kernel"] <= 1 + gamma


@pytest.mark.heavy
@given(counts=st.lists(st.integers(1, 10**4), min_size=1, max_size=8), gamma=st.floats(1.0, 10.0), signed=st.booleans())
@settings(deadline=None, max_examples=60)
def test_multiplicative(counts, gamma, signed):
  scales = Multiplicative(gamma, signed).scales(layers_with(counts))
  for i, count in enumerate(counts):
    scale = scales[f"l{i}"]["kernel"]
    assert scale == pytest.approx(reference.multiplicative(count, counts, gamma, signed))
    assert (1 / gamma if signed else 1) * (1 - 1e-12) <= scale <= gamma * (1 + 1e-12)


@given(num_layers=st.integers(1, 20), gamma=st.floats(-0.5, 10.0))
@settings(deadline=None, max_examples=30)
def test_by_depth(num_layers, gamma):
  scales = ByDepth(gamma).scales(layers_with([4] * num_layers))
  for depth in range(num_layers):
    assert scales[f"l{depth}"]["kernel"] == pytest.approx(reference.by_depth(depth, num_layers, gamma))


def test_published_network():
  """8→64→32→1: the equations' factors, not those that the authors' code applied."""
  structure = optax_ext.structure_from_params(mlp(8, 64, 32, 1))
  for rule, want in [
    (Additive(), [1, 0.05, 1.95]),
    (Multiplicative(), [1, 5, 5]),
    (Multiplicative(signed=True), [1, 0.2, 5]),
    (ByDepth(), [2 ** (2 / 3), 2 ** (1 / 3), 1]),
  ]:
    scales = rule.scales(structure)
    for part in ("kernel", "bias"):
      assert [scales[f"Dense_{i}"][part] for i in range(3)] == pytest.approx(want)


@pytest.mark.parametrize("rule", RULES[:3])
@pytest.mark.parametrize("counts", [[7], [7, 7, 7], [7, 7, 9], [5, 7, 7], [1, 7, 7, 7, 100]])
def test_degenerate_counts_give_one_at_the_median(rule, counts):
  """c_min = c_max, median = min ≠ max, median = max: the printed formulas are 0/0."""
  scales = rule.scales(layers_with(counts))
  for i, count in enumerate(counts):
    if count == np.median(counts):
      assert scales[f"l{i}"]["kernel"] == 1
    assert np.isfinite(scales[f"l{i}"]["kernel"])


@pytest.mark.parametrize("rule", RULES)
def test_trees_without_layers(rule):
  for params in ({"scale": jnp.ones(3)}, jnp.ones(()), {"a": None, "b": 1.0}):
    scales = rule.scales(optax_ext.structure_from_params(params))
    assert all(scale == 1 for scale in jax.tree.leaves(scales))


def test_equal_layers_give_one():
  for rule in RULES[:3]:
    assert all(s == 1 for s in jax.tree.leaves(rule.scales(optax_ext.structure_from_params(mlp(3, 3, 3, 3)))))


def test_leaves_of_no_layer():
  structure = optax_ext.structure_from_params({**mlp(8, 64, 1), "Norm": {"scale": jnp.ones(4)}})
  for rule in RULES[:3]:
    assert rule.scales(structure)["Norm"]["scale"] == 1
  assert ByDepth().scales(structure)["Norm"]["scale"] == ByDepth().scales(structure)["Dense_1"]["kernel"]


def test_mean_scale():
  """The paper's E[S] ≥ 1 does not hold for the additive rule: 0.96 over the layers of 256-128-64-32."""
  structure = optax_ext.structure_from_params(mlp(8, 256, 128, 64, 32, 1))
  mean = lambda rule: np.mean([rule.scales(structure)[f"Dense_{i}"]["kernel"] for i in range(5)])
  assert mean(Additive()) == pytest.approx(0.96, abs=0.01)
  assert mean(Multiplicative()) > 1
  assert mean(ByDepth()) > 1


def test_products():
  structure = optax_ext.structure_from_params(mlp(8, 64, 32, 1))
  product = Additive() * ByDepth() * Multiplicative()
  want = jax.tree.map(
    lambda a, b, c: a * b * c, *(rule.scales(structure) for rule in (Additive(), ByDepth(), Multiplicative()))
  )
  assert product.scales(structure) == want
  with pytest.raises(TypeError):
    _ = Additive() * 2.0


def test_scanned_layers_get_one_scale_each():
  """Depth along the leading axis; each scanned layer counts once in the statistics, copies as one."""
  leaf = LeafFacts("stack/kernel", (3, 4, 4), "stack/kernel", np.array([1, 2, 3]), 16, (1,), (0,), (0,))
  copies = LeafFacts("experts/kernel", (5, 2, 2), "experts/kernel", 4, 4, (1,), (0,))
  first = LeafFacts("in/kernel", (8, 4), "in/kernel", 0, 32, (0,))
  last = LeafFacts("out/kernel", (8, 8), "out/kernel", 4, 64, (0,))
  structure = Structure({"in": first, "stack": leaf, "experts": copies, "out": last}, num_layers=5)
  scale = ByDepth(1.0).scales(structure)["stack"]
  np.testing.assert_allclose(scale, np.reshape([2**0.6, 2**0.4, 2**0.2], (3, 1, 1)))
  counts = [32, 16, 16, 16, 4, 64]
  assert Additive().scales(structure)["in"] == pytest.approx(reference.additive(32, counts, 0.95))
  assert Additive().scales(structure)["experts"] == pytest.approx(reference.additive(4, counts, 0.95))
  tx = optax_ext.scale_by_structure(ByDepth(), structure)
  grads = {
    "in": jnp.ones((8, 4)),
    "stack": jnp.ones((3, 4, 4)),
    "experts": jnp.ones((5, 2, 2)),
    "out": jnp.ones((8, 8)),
  }
  np.testing.assert_allclose(tx.update(grads, tx.init(grads))[0]["stack"][1], 2**0.4, rtol=1e-6)


def test_rules_and_structures_can_be_copied():
  structure = optax_ext.structure_from_params(mlp(8, 64, 1))
  for thing in (structure, *RULES, Additive() * ByDepth()):
    assert pickle.loads(pickle.dumps(thing)) == copy.deepcopy(thing) == thing
  assert not any(callable(rule) for rule in [*RULES, Additive() * ByDepth()])


@pytest.mark.parametrize(
  "make",
  [
    lambda: Additive(-0.1),
    lambda: Additive(1.5),
    lambda: Multiplicative(0.0),
    lambda: Multiplicative(float("inf")),
    lambda: ByDepth(-1.0),
  ],
)
def test_gamma_outside_its_range(make):
  with pytest.raises(ValueError, match="gamma must be a number in"):
    make()


# scale_by_structure


def scaled(tx, grads):
  return tx.update(grads, tx.init(grads))[0]


def test_explicit_scales():
  grads = {"a": jnp.ones((2, 3)), "b": jnp.ones(3, jnp.bfloat16), "c": None}
  got = scaled(optax_ext.scale_by_structure({"a": np.array([[2.0], [3.0]]), "b": 0.5, "c": None}), grads)
  np.testing.assert_array_equal(got["a"], [[2.0] * 3, [3.0] * 3])
  np.testing.assert_array_equal(got["b"], [0.5] * 3)
  assert got["c"] is None
  np.testing.assert_array_equal(scaled(optax_ext.scale_by_structure(2.0), jnp.ones(3)), [2.0] * 3)


@pytest.mark.parametrize("mask", [optax_ext.decay_mask(), optax_ext.label_paths("kernel"), optax_ext.vector_mask((0,))])
def test_a_mask_called_as_a_schedule_says_so(mask):
  """inject_hyperparams calls every callable with the count; a mask of False would decay nothing, without a word."""
  params = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}
  injected = optax.inject_hyperparams(optax.adamw)(1.0, weight_decay=0.5, mask=mask)
  with pytest.raises(TypeError, match=r"called with a step count.*static_args"):
    injected.init(params)
  tx = optax.inject_hyperparams(optax.adamw, static_args="mask")(1.0, weight_decay=0.5, mask=mask)
  updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
  assert updates["kernel"][0, 0] == -0.5


def test_an_explicit_structure_sees_masked_leaves():
  params = mlp(8, 64, 32, 1)
  structure = optax_ext.structure_from_params(params)
  visible = {"Dense_0": False, "Dense_1": True, "Dense_2": False}
  of_all = scaled(optax.masked(optax_ext.scale_by_structure(Additive(), structure), visible), params)
  assert float(of_all["Dense_1"]["kernel"][0, 0]) == pytest.approx(0.05)
  with pytest.warns(UserWarning, match="sees 1 layer in 2 leaves"):
    of_part = scaled(optax.masked(optax_ext.scale_by_structure(Additive()), visible), params)
  assert float(of_part["Dense_1"]["kernel"][0, 0]) == 1
  explicit = {f"Dense_{i}": {"kernel": 2.0, "bias": 3.0} for i in range(3)}
  assert float(scaled(optax.masked(optax_ext.scale_by_structure(explicit), visible), params)["Dense_1"]["bias"][0]) == 3


def test_a_structure_may_know_more_than_the_optimizer_sees():
  params = mlp(8, 64, 32, 1)
  structure = optax_ext.structure_from_params(params)
  got = scaled(optax_ext.scale_by_structure(Additive(), structure), {"Dense_1": params["Dense_1"]})
  assert float(got["Dense_1"]["kernel"][0, 0]) == pytest.approx(0.05)
  with pytest.raises(ValueError, match="structure does not match the parameters: it has nothing for 'Dense_7/bias'"):
    scaled(optax_ext.scale_by_structure(Additive(), structure), {"Dense_7": params["Dense_1"]})


def test_scales_that_do_not_match():
  grads = {"a": jnp.ones((2, 3)), "b": jnp.ones(3)}
  with pytest.raises(ValueError, match="tree of scales does not match the parameters: it has nothing for 'b'"):
    scaled(optax_ext.scale_by_structure({"a": 1.0}), grads)
  with pytest.raises(ValueError, match="it names 'z', which they do not have"):
    scaled(optax_ext.scale_by_structure({"a": 1.0, "b": 1.0, "z": 1.0}), grads)
  with pytest.raises(ValueError, match=r"scale of leaf 'b' has shape \(2, 3\), which does not broadcast"):
    scaled(optax_ext.scale_by_structure({"a": 1.0, "b": np.ones((2, 3))}), grads)
  with pytest.raises(ValueError, match=r"scale of leaf 'b' has shape \(2,\), which does not broadcast"):
    scaled(optax_ext.scale_by_structure({"a": 1.0, "b": np.ones(2)}), grads)
  structure = optax_ext.structure_from_params(grads)
  for show in (structure.table, lambda rule: structure.plot("never.png", rule)):
    with pytest.raises(ValueError, match="it has nothing for 'b'"):
      show({"a": 1.0})
    with pytest.raises(TypeError, match="rule must be"):
      show("additive")


@pytest.mark.parametrize("bad", [None, "additive", Multiplicative, lambda structure: structure, {"a": "x"}, True, {}])
def test_things_that_are_no_rule(bad):
  with pytest.raises(TypeError, match="rule must be"):
    optax_ext.scale_by_structure(bad)


def test_things_that_are_no_structure():
  with pytest.raises(TypeError, match="structure must be a Structure"):
    optax_ext.scale_by_structure(Additive(), {"a": 1})
  with pytest.raises(TypeError, match=r"structure must be a Structure.* but was a dict"):
    optax_ext.decay_mask({"a": 1})  # pyright: ignore


def test_rules_of_ones_own_multiply_from_both_sides():
  class Twice:
    def scales(self, structure):
      return jax.tree.map(lambda facts: 2.0, structure.facts)

  structure = optax_ext.structure_from_params({"a": {"kernel": jnp.ones((2, 2))}, "b": {"kernel": jnp.ones((2, 2))}})
  want = jax.tree.map(lambda scale: 2 * scale, ByDepth().scales(structure))
  assert (Twice() * ByDepth()).scales(structure) == (ByDepth() * Twice()).scales(structure) == want


def test_depths_in_any_order_are_shown_from_least_to_most():
  shown = {(0, 1, 2): "0..2", (2, 1, 0): "2..0", (1, 3, 0, 2): "0..3", (0, 1, 2, 0, 0): "0..2"}
  for depths, brief in shown.items():
    facts = LeafFacts("w", (len(depths), 2, 2), "w", np.array(depths), 4, (1,), (0,), (0,))
    assert f"itself  {brief} " in Structure({"w": facts}, 4).table()


def test_products_of_rules():
  assert optax_ext.Product(Additive(), ByDepth()) == Additive() * ByDepth()
  with pytest.raises(TypeError, match=r"second must be a rule, .* but was 2\.0"):
    optax_ext.Product(Additive(), 2.0)


# a structure of another model


WRONG = {
  "wider": ({"w": jnp.ones((4, 3))}, r"leaf 'w' has shape \(4, 3\), but \(2, 3\) in the structure; make the structure"),
  "stacked": ({"w": jnp.ones((5, 2, 3))}, r"leaf 'w' has shape \(5, 2, 3\), but \(2, 3\) in the structure"),
}


@pytest.mark.parametrize(("params", "message"), WRONG.values(), ids=WRONG)
def test_a_structure_of_other_shapes_is_an_error(params, message):
  structure = optax_ext.structure_from_params({"w": jnp.ones((2, 3)), "more": jnp.ones((3, 3))})
  steps = [
    lambda: scaled(optax_ext.scale_by_structure(Additive(), structure), params),
    lambda: scaled(optax_ext.caadam(1e-3, structure=structure), params),
    lambda: optax_ext.decay_mask(structure)(params),
    lambda: structure.muon_dimension_numbers()(params),
    lambda: optax_ext.nd_adam(1e-3, structure=structure).init(params),
    lambda: optax_ext.nd_adam(1e-3, axes=structure).init(params),
    lambda: optax_ext.normalize_vectors(params, structure),
  ]
  for step in steps:
    with pytest.raises(ValueError, match=message):
      step()


@pytest.mark.slow
def test_members_under_vmap_have_the_structure_of_one():
  params = {"a": {"kernel": jnp.ones((4, 2, 3))}, "b": {"kernel": jnp.ones((4, 3, 1))}}
  one = jax.tree.map(lambda leaf: leaf[0], params)
  structure = optax_ext.structure_from_params(one)
  for tx in (optax_ext.scale_by_structure(ByDepth(), structure), optax_ext.nd_adam(0.1, structure=structure)):
    step = lambda params, tx=tx: tx.update(params, tx.init(params), params)[0]
    got, want = jax.vmap(step)(params), step(one)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, jnp.broadcast_to(b, a.shape), rtol=1e-6), got, want)
  with pytest.raises(ValueError, match="structure is of another model"):
    scaled(optax_ext.scale_by_structure(ByDepth(), structure), params)


def in_parts(f, params, specs):
  mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
  return jax.jit(jax.shard_map(f, mesh=mesh, in_specs=(specs,), out_specs=specs))(params)


def test_parts_of_devices_have_the_structure_of_the_whole():
  """Inside shard_map a leaf is a device's part: the number of axes is compared, and the sizes are not."""
  params = {"a": {"kernel": jnp.ones((4, 2))}, "b": {"kernel": jnp.ones((2, 1))}}
  specs = {"a": {"kernel": jax.P("x")}, "b": {"kernel": jax.P()}}
  structure = optax_ext.structure_from_params(params)
  got = in_parts(lambda part: scaled(optax_ext.scale_by_structure(ByDepth(), structure), part), params, specs)
  np.testing.assert_allclose(got["a"]["kernel"], np.full((4, 2), 2**0.5), rtol=1e-6)
  assert in_parts(lambda part: jax.tree.map(jnp.float32, optax_ext.decay_mask(structure)(part)), params, jax.P()) == {
    "a": {"kernel": 1},
    "b": {"kernel": 1},
  }
  names = lambda path, leaf: "x" if path == "a/kernel" else None
  units = in_parts(lambda part: in_vectors(part, structure, names), params, specs)
  np.testing.assert_allclose(jnp.linalg.norm(units["a"]["kernel"], axis=0), 1, rtol=1e-6)
  other = optax_ext.structure_from_params({"a": {"kernel": jnp.ones((1, 4, 2))}, "b": {"kernel": jnp.ones((2, 1))}})
  with pytest.raises(ValueError, match=r"leaf 'a/kernel' has shape \(2, 2\), but \(1, 4, 2\) in the structure"):
    in_parts(lambda part: scaled(optax_ext.scale_by_structure(ByDepth(), other), part), params, specs)


def in_vectors(part, structure, names):
  tx = optax_ext.renormalize_params(structure, axis_name=names)
  return optax.apply_updates(part, tx.update(part, tx.init(part), part)[0])


# Muon


def facts_like(path, shape, axes, **more):
  return LeafFacts(path, shape, path if axes else None, 0, math.prod(shape), axes, **more)


def test_muon_takes_what_is_one_matrix():
  facts = {
    "dense": facts_like("dense", (8, 4), (0,), uses=("product@0",)),
    "heads": facts_like("heads", (8, 2, 4), (0,), uses=("product@1",)),
    "stack": facts_like("stack", (3, 8, 4), (1,), stacked_axes=(0,), uses=("product@2",)),
    "grouped": facts_like("grouped", (3, 3, 2, 8), (0, 1, 2), uses=("product@3",), groups=4),
    "depthwise": facts_like("depthwise", (3, 3, 1, 8), (0, 1, 2), uses=("product@4",), groups=8),
    "table": facts_like("table", (100, 4), None, uses=("lookup@0",)),
    "tied": facts_like("tied", (100, 4), (1,), uses=("lookup@0", "product@5")),
    "unseen": facts_like("unseen", (4, 4), None, note="it enters a kernel"),
    "head": facts_like("head", (4, 10), (0,), uses=("product@5",)),
  }
  structure = Structure(facts, 6)
  params = {path: jax.ShapeDtypeStruct(one.shape, jnp.float32) for path, one in facts.items()}
  numbers = structure.muon_dimension_numbers()(params)
  spec = optax.contrib.MuonDimensionNumbers
  taken = {"dense": spec((0,), (1,)), "heads": spec((0,), (1, 2)), "stack": spec((1,), (2,)), "head": spec((0,), (1,))}
  assert {path: one for path, one in numbers.items() if one is not None} == taken
  without_head = structure.muon_dimension_numbers(exclude="^head$|^sta")(params)
  assert {path for path, one in without_head.items() if one is not None} == {"dense", "heads"}


def test_muon_trains_without_what_is_excluded():
  params = mlp(4, 5, 3)
  numbers = optax_ext.structure_from_params(params).muon_dimension_numbers(exclude="Dense_1")
  tx = optax.contrib.muon(1.0, muon_weight_dimension_numbers=numbers)
  state = tx.init(params)
  tx.update(params, state, params)
  adam = optax.tree.get(state.inner_states["adam"], "mu")
  assert isinstance(adam["Dense_0"]["kernel"], optax.MaskedNode)
  assert adam["Dense_1"]["kernel"].shape == (5, 3)


def test_what_muon_cannot_exclude():
  structure = optax_ext.structure_from_params(mlp(4, 5, 3))
  with pytest.raises(TypeError, match=r"exclude must be a regular expression, .* but was \['head'\]"):
    structure.muon_dimension_numbers(exclude=["head"])
  with pytest.warns(UserWarning, match="'haed' is found in no path .*'Dense_0/bias'"):
    structure.muon_dimension_numbers(exclude="haed")


def test_facts_of_other_groups_are_not_equal():
  one = facts_like("w", (2, 2), (0,))
  assert one.groups == 1
  assert one != dataclasses.replace(one, groups=2)


# factors by path


def test_factors_by_path():
  """The first expression that is found counts, and rules multiply."""
  structure = optax_ext.structure_from_params(mlp(4, 5, 3))
  rule = ByPath({"Dense_1": 10.0, "kernel|nothing": 0.5})
  want = {"Dense_0": {"kernel": 0.5, "bias": 1.0}, "Dense_1": {"kernel": 10.0, "bias": 10.0}}
  assert rule.scales(structure) == want
  assert ByPath({"kernel": 0.5, "Dense_1": 10.0}).scales(structure)["Dense_1"] == {"kernel": 0.5, "bias": 10.0}
  both = (ByDepth() * rule).scales(structure)
  assert both == jax.tree.map(lambda a, b: a * b, ByDepth().scales(structure), want)
  assert "Dense_1" in structure.table(rule).splitlines()[-2].split("  ")[-1]
  params = mlp(4, 5, 3)
  tx = optax_ext.adamnx(0.1, weight_decay=0.0, rule=ByPath({"bias": 0.0}))
  updates = tx.update(params, tx.init(params), params)[0]
  np.testing.assert_array_equal(updates["Dense_0"]["bias"], 0)
  np.testing.assert_allclose(updates["Dense_0"]["kernel"], -0.1, rtol=1e-5)


def test_wrong_factors_by_path():
  with pytest.raises(
    TypeError, match=r"factors must be a dict from regular expressions to numbers, but was \['head'\]"
  ):
    ByPath(["head"])
  with pytest.raises(ValueError, match=r"factors\['head'\] must be .* but was -1"):
    ByPath({"head": -1})
  with pytest.raises(ValueError, match=r"factors must be a regular expression, but '\(' is none: "):
    ByPath({"(": 1.0})
  with pytest.raises(TypeError, match="rule must be a rule"):
    optax_ext.structure_from_params(mlp(4, 5, 3)).table(ByPath)
  with pytest.warns(UserWarning, match="'haed' is found in no path"):
    ByPath({"haed": 2.0}).scales(optax_ext.structure_from_params(mlp(4, 5, 3)))


# what wrappers hide


HIDDEN = {
  "flatten": (optax.flatten, r"in 1 leaf \('' of shape \(\d+,\)\)"),
  "masked": (lambda tx: optax.masked(tx, optax_ext.label_paths("bias")), r"in 3 leaves \('Dense_0/bias' of shape"),
  "partition": (
    lambda tx: optax.partition({True: tx, False: optax.sgd(1.0)}, optax_ext.label_paths("bias")),
    r"in 3 leaves \('Dense_0/bias' of shape",
  ),
}


def warned(f):
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    result = f()
  assert all(one.category is UserWarning for one in caught)
  return result, [str(one.message) for one in caught]


@pytest.mark.parametrize(("wrap", "seen"), HIDDEN.values(), ids=HIDDEN)
@pytest.mark.parametrize("make", [optax_ext.caadam, lambda rate: optax_ext.caadam(rate, rule=ByDepth() * Additive())])
def test_a_network_that_is_hidden_gets_a_word_once(wrap, seen, make):
  params, tx = mlp(2, 3, 4, 1), wrap(make(1e-3))
  state, told = warned(lambda: tx.init(params))
  assert len(told) == 1
  assert re.match(rf"scale_by_structure sees 0 layers {seen}.* give it the structure= .*optax\.flatten", told[0])
  assert not warned(lambda: jax.jit(tx.update)(params, state, params))[1]
  if wrap is not optax.flatten:  # which has no place for a tree without leaves
    assert not warned(lambda: optax.tree.map_params(tx, lambda leaf: leaf, state))[1]


@pytest.mark.parametrize(("wrap", "seen"), HIDDEN.values(), ids=HIDDEN)
def test_vectors_that_are_hidden_get_a_word_once(wrap, seen):
  params = mlp(2, 3, 4, 1)
  for kwargs in ({}, {"axes": lambda path, leaf: (0,) if leaf.ndim > 1 else None}):
    tx = wrap(optax_ext.nd_adam(1e-3, **kwargs))
    state, told = warned(lambda tx=tx: tx.init(params))
    assert len(told) == 1
    assert re.match(
      rf"nd_adam sees no weight vector {seen}.* Or wrappers hide the weights: ", told[0].replace("among", "in")
    )
    assert not warned(lambda tx=tx, state=state: jax.jit(tx.update)(params, state, params))[1]


def test_what_is_not_hidden_needs_no_word():
  params = mlp(2, 3, 1)
  structure = optax_ext.structure_from_params(params)
  one = {"Dense_0": params["Dense_0"]}
  for tx, tree in [
    (optax_ext.caadam(1e-3), params),
    (optax_ext.caadam(1e-3, structure=structure), one),
    (optax_ext.scale_by_structure({"Dense_0": {"kernel": 2.0, "bias": 1.0}}), one),
    (optax_ext.nd_adam(1e-3), optax_ext.normalize_vectors(one, structure)),
    (optax_ext.nd_adam(1e-3), {}),
    (optax_ext.caadam(1e-3), {"a": None}),
  ]:
    assert not warned(lambda tx=tx, tree=tree: tx.init(tree))[1]
  told = warned(lambda: optax_ext.caadam(1e-3).init(one))[1]
  assert [message.partition(",")[0] for message in told] == [
    "scale_by_structure sees 1 layer in 2 leaves ('Dense_0/bias' of shape (3"
  ]


@pytest.mark.slow
def test_nd_adam_takes_the_guessed_axes_of_the_whole_list():
  """In `[k, b]` of attention the bias has two axes, and is no vector."""
  params = [jnp.ones((8, 2, 4)), jnp.ones((2, 4)), jnp.ones((8, 3))]
  tx = optax_ext.nd_adam(1e-3)
  state = tx.init(params)
  assert [leaf.shape for leaf in optax.tree.get(state, "nu")] == [(1, 1, 4), (2, 4), (1, 3)]
  tx.update(params, state, params)
