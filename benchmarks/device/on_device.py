"""A plugin for pytest: kernels for GPUs run on the GPU at hand, in tests that interpret them.

    PYTHONPATH=benchmarks/device python -m pytest -p on_device tests/memory

Tests set `tpu.INTERPRETED` to the platform whose kernels are to run as plain programs. Where a GPU is at hand, setting
it to "cuda" does nothing, so that the kernel is compiled. Kernels for TPUs are interpreted still. Tests that want more
devices than there are skip, and say so. On a machine without a GPU the plugin changes nothing.
"""

import sys
import types

import jax
import pytest

from optax_ext._common import tpu


class CompiledOnGPU(types.ModuleType):
  """The module, whose flag does not take "cuda". Its functions read `__dict__`, as globals."""

  @property
  def INTERPRETED(self):  # noqa: N802
    """As it is in the module."""
    return self.__dict__["INTERPRETED"]

  @INTERPRETED.setter
  def INTERPRETED(self, value):  # noqa: N802
    if value != "cuda":
      self.__dict__["INTERPRETED"] = value


def pytest_configure():
  if jax.default_backend() == "gpu":
    sys.modules[tpu.__name__].__class__ = CompiledOnGPU


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
  try:
    return (yield)
  except ValueError as error:
    if "Number of devices" in str(error) and jax.default_backend() != "cpu":
      pytest.skip(f"wants more devices than the {jax.device_count()} at hand")
    raise
