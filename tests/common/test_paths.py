import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.tree_util import DictKey, GetAttrKey, SequenceKey

import optax_ext
from optax_ext import label_paths, path_string
from optax_ext._common.paths import by_path, check_paths, map_with_paths, natural_key


@pytest.mark.parametrize(
  ("path", "string"),
  [
    ((DictKey("a"), DictKey("kernel")), "a/kernel"),
    ((DictKey("params"), DictKey("a"), DictKey("kernel")), "a/kernel"),
    ((DictKey("layers"), DictKey(0), DictKey("kernel"), GetAttrKey("value")), "layers/0/kernel/value"),
    ((GetAttrKey("actor"), GetAttrKey("value")), "actor/value"),
    ((GetAttrKey("layers"), SequenceKey(3), GetAttrKey("weight")), "layers/3/weight"),
    ((DictKey("attention"), DictKey("value"), DictKey("kernel")), "attention/value/kernel"),
    ((DictKey("value"),), "value"),
    ((DictKey("params"),), "params"),
    ((DictKey("a"), DictKey("params"), DictKey("w")), "a/params/w"),
    ((), ""),
  ],
)
def test_path_string(path, string):
  assert path_string(path) == string


@given(st.lists(st.integers(0, 10**6), unique=True), st.sampled_from(["Dense_{}/kernel", "layers/{}/bias", "w{}"]))
def test_natural_order_counts(numbers, name):
  names = [name.format(number) for number in numbers]
  assert sorted(names, key=natural_key) == [name.format(number) for number in sorted(numbers)]


def test_natural_order_does_not_mix_modules():
  assert sorted(["b10/x", "b2/x", "b/x", "a/z", "a_1/z"], key=natural_key) == ["a/z", "a_1/z", "b/x", "b2/x", "b10/x"]
  assert sorted(["σ²", "σ1²"], key=natural_key) == ["σ1²", "σ²"]  # ² is a digit that is no number


def test_shared_names_are_an_error():
  with pytest.raises(ValueError, match="same path: 'w'"):
    by_path({"params": {"w": 1.0}, "w": 2.0})


PARAMS = {"a": {"kernel": jnp.ones(2), "bias": jnp.ones(1)}, "b": jnp.ones(3)}


def test_matching_paths():
  check_paths("x", ["a/kernel", "a/bias", "b"], PARAMS)
  check_paths("x", ["a/kernel", "a/bias", "b"], {"a": optax.MaskedNode(), "b": jnp.ones(3)})
  check_paths("x", ["a/kernel", "a/bias", "b", "c"], PARAMS, more=True)
  check_paths("x", [], optax.MaskedNode())


def test_missing_and_unknown_paths_are_named():
  with pytest.raises(ValueError, match=r"The scales does not match the parameters: it has nothing for 'a/bias', 'b'\."):
    check_paths("The scales", ["a/kernel"], PARAMS)
  with pytest.raises(ValueError, match="it names 'c/w', which they do not have"):
    check_paths("x", ["a/kernel", "a/bias", "b", "c/w"], PARAMS)
  with pytest.raises(ValueError, match="and 3 more"):
    check_paths("x", [], {str(i): 1.0 for i in range(8)})


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Head:
  value: Any
  bias: Any


def test_a_field_called_value_is_a_name():
  """Boxes are known by their kind, not by the name of their attribute."""
  tree = {"actor": Head(jnp.ones(2), jnp.ones(1)), "critic": Head(Head(jnp.ones(2), None), None)}
  names = ["actor/bias", "actor/value", "critic/value/value"]
  assert sorted(by_path(tree)) == names
  assert sorted(jax.tree.leaves(map_with_paths(lambda path, leaf: path, tree))) == names
  assert label_paths("value")(tree)["actor"] == Head(True, False)


def test_names_at_init_and_update_agree_in_flax():
  nn, nnx = pytest.importorskip("flax.linen"), pytest.importorskip("flax.nnx")
  for box in (nn.Partitioned, nn.LogicallyPartitioned):
    boxed = {"params": {"d": {"kernel": box(jnp.ones((2, 2)), names=("x", "y"))}}}
    assert list(by_path(boxed)) == list(by_path(nn.unbox(boxed))) == ["d/kernel"]
    named = map_with_paths(lambda path, leaf: path, boxed)
    assert nn.unbox(named) == {"params": {"d": {"kernel": "d/kernel"}}}
  assert list(by_path(box(jnp.ones(2), names=("x",)))) == [""]
  module = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
  state = nnx.state(module, nnx.Param)
  assert set(by_path(state)) == set(by_path(nnx.to_pure_dict(state))) == {"kernel", "bias"}
  assert set(by_path(module)) == {"kernel", "bias"}
  assert jax.tree.leaves(state)


def test_an_nnx_module_with_a_field_called_value():
  nnx = pytest.importorskip("flax.nnx")

  class Critic(nnx.Module):
    def __init__(self, rngs):
      self.value = nnx.Linear(2, 1, rngs=rngs)
      self.log = nnx.Param({"value": jnp.ones(2), "rest": jnp.ones(3)})

  state = nnx.state(Critic(nnx.Rngs(0)), nnx.Param)
  names = {"value/kernel", "value/bias", "log/value", "log/rest"}
  assert set(by_path(state)) == set(by_path(nnx.to_pure_dict(state))) == names


def test_missing_leaves_are_kept():
  tree = {"a": None, "b": jnp.ones(2)}
  assert map_with_paths(lambda path, leaf, other: (path, other), tree, {"a": {"x": 1}, "b": 2}) == {
    "a": None,
    "b": ("b", 2),
  }


def test_an_expression_that_finds_nothing_gets_a_word():
  with pytest.warns(UserWarning, match=r"regular expression 'kernal' is found in no path .* 'a/bias', 'a/kernel', 'b'"):
    assert not any(jax.tree.leaves(label_paths("kernal")(PARAMS)))
  for quiet in ({}, {"a": None}, {"a": optax.MaskedNode(), "b": jnp.ones(3)}):
    label_paths("kernel")(quiet)
  assert label_paths("b")({"a": jnp.ones(1), "b": None}) == {"a": False, "b": None}
  # Inside a partition the mask of an inner link sees a part of the tree, where it need not find anything.
  inner = optax.masked(optax.scale(2.0), label_paths("kernel"))
  tx = optax.partition({True: inner, False: optax.sgd(1.0)}, label_paths("b$"))
  updates, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
  assert float(updates["b"][0]) == 1


@pytest.mark.parametrize("make", [optax_ext.exadam, optax_ext.adamnx, optax_ext.caadam, optax_ext.nd_adam])
def test_two_parameters_with_one_path_are_an_error(make):
  """By the path go random bits, scales, axes, labels."""
  with pytest.raises(ValueError, match="have the same path: 'a/b'"):
    make(1e-3).init({"a/b": jnp.ones((2, 3)), "a": {"b": jnp.ones((2, 3))}})
