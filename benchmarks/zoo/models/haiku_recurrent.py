"""Haiku: an LSTM and then a GRU, each unrolled by a scan over time, between two linear layers."""

from typing import Any

from expected import bias, weight

PACKAGE, PYTHON = "dm-haiku", "3.13"
REQUIRES = ["dm-haiku==0.0.17", "jax==0.12.0.1", "optax==0.2.8"]
MODEL = "`LSTM`, `GRU`, `dynamic_unroll`"


def build() -> tuple[Any, Any, tuple[Any, ...]]:
  import haiku as hk
  import jax
  import jax.numpy as jnp

  def forward(xs: Any) -> Any:
    lstm, gru = hk.LSTM(6, name="lstm"), hk.GRU(7, name="gru")
    xs = hk.Linear(5, name="first")(xs)
    xs, _ = hk.dynamic_unroll(lstm, xs, lstm.initial_state(3))
    xs, _ = hk.dynamic_unroll(gru, xs, gru.initial_state(3))
    return hk.Linear(2, name="last")(xs)

  xs = jnp.ones((9, 3, 4))
  model = hk.without_apply_rng(hk.transform(forward))
  return model.apply, model.init(jax.random.key(0), xs), (xs,)


# _src/recurrent.py:338: the LSTM is one Linear of [input, hidden], w (5 + 6, 4 * 6), whose input follows `first`: 1.
# :575-591, GRU: gates_x = x w_i; w_h is split in two, the first two thirds meet the state and are added to gates_x's,
# the last meets r * state, where r is of that sum: one product later. The least counts: that of w_i, 2. So GRU is two
# layers deep, and `last` has depth 4. (b is added to sums of w_i's and w_h's products: to which it belongs is not
# asked here.)
LAYERS = 5
EXPECTED = {
  "first/w": weight(0, 20, (0,)),
  "first/b": bias("first/w", 0, 20),
  "lstm/linear/w": weight(1, 11 * 24, (0,)),
  "lstm/linear/b": bias("lstm/linear/w", 1, 11 * 24),
  "gru/w_i": weight(2, 6 * 21, (0,)),
  "gru/w_h": weight(2, 7 * 21, (0,)),
  "last/w": weight(4, 14, (0,)),
  "last/b": bias("last/w", 4, 14),
}
