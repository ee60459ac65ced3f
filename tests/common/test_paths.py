import jax
import jax.numpy as jnp
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.tree_util import DictKey, GetAttrKey, SequenceKey

from optax_ext import path_string
from optax_ext._common.paths import by_path, check_paths, natural_key


@pytest.mark.parametrize(
  ("path", "string"),
  [
    ((DictKey("a"), DictKey("kernel")), "a/kernel"),
    ((DictKey("params"), DictKey("a"), DictKey("kernel")), "a/kernel"),
    ((DictKey("params"), DictKey("a"), DictKey("kernel"), GetAttrKey("value")), "a/kernel"),
    ((DictKey("layers"), DictKey(0), DictKey("kernel"), GetAttrKey("value")), "layers/0/kernel"),
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


def test_names_at_init_and_update_agree_in_flax():
  nn, nnx = pytest.importorskip("flax.linen"), pytest.importorskip("flax.nnx")
  boxed = {"params": {"d": {"kernel": nn.Partitioned(jnp.ones((2, 2)), names=("x", "y"))}}}
  assert list(by_path(boxed)) == list(by_path(nn.unbox(boxed))) == ["d/kernel"]
  state = nnx.state(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), nnx.Param)
  assert set(by_path(state)) == set(by_path(nnx.to_pure_dict(state))) == {"kernel", "bias"}
  assert jax.tree.leaves(state)
