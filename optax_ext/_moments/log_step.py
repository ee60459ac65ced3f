"""EXAdam's logarithmic step size, as a schedule.

A **schedule** is optax's: it maps the count of steps made, which starts at 0, to a number. The papers' t is count + 1.
"""

import jax.numpy as jnp
import optax

from optax_ext._common.arguments import check_rate
from optax_ext._moments.gains import _time


def log_step_size(learning_rate: optax.ScalarOrSchedule = 1.0) -> optax.Schedule:
  """EXAdam's logarithmic step size, as a schedule or multiplied onto one.

      α_t = α · ln(√2·√(t+1)) = α · ½·ln(2(t+1)),   t = count + 1

  The step size grows: 0.69·α at the first step, more than α from the third, 3.8·α at the thousandth.

  Args:
    learning_rate: α, a number or a schedule (warm-up, cosine) whose values are multiplied.

  Returns:
    A schedule: a function of the count of steps made, which starts at 0.

  Raises:
    TypeError, ValueError: `learning_rate` is neither a number that is not negative nor a schedule.

  Example:
    >>> cosine = optax.cosine_decay_schedule(1e-3, decay_steps=100)
    >>> print([f"{float(log_step_size(cosine)(count)):.2e}" for count in (0, 2, 50)])
    ['6.93e-04', '1.04e-03', '1.16e-03']

  References:
    Adly, `EXAdam: The Power of Adaptive Cross-Moments <https://arxiv.org/abs/2412.20302v1>`_, 2024, Algorithm 1 of
    version 1; version 2 leaves the logarithm out.
  """
  check_rate("learning_rate", learning_rate)
  rate = learning_rate if callable(learning_rate) else lambda count: learning_rate
  return lambda count: rate(count) * (jnp.log(2 * (_time(count) + 2)) / 2)
