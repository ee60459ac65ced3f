"""All tests see 8 virtual devices, as meshes need them; what asks for none runs on the first.

Property tests draw the same cases in every run, so that a commit passes or fails for good; `benchmarks/fuzz.py` looks
for new ones.

What one test compiled, the others of its process read from a folder that is new in every run.
"""

import collections
import functools
import gc
import os
import tempfile

import chex
import hypothesis
import jax
import pytest

from optax_ext._common import tpu
from optax_ext._network.jaxpr import reader

jax.config.update("jax_num_cpu_devices", 8)
hypothesis.settings.register_profile("same every time", derandomize=True)
hypothesis.settings.load_profile("same every time")

# Their subject is what the compiler makes, to the last bit, or what a reader sees. The others take less time where LLVM
# optimizes little; XLA's own passes, fusion among them, run in all.
FULLY_OPTIMIZED = {"test_compiled", "test_docs", "test_nd_adam_kernel", "test_one_pass", "test_scale_by_moments"}
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"  # for the programs that tests start

# Tracing allocates much and frees most of it by counting references.
gc.freeze()
gc.set_threshold(200_000, 20, 100)


WEIGHTS = {"heavy": 15, "slow": 4}  # of time, where that of others is 1


def asked_for(config, mark):
  return mark in config.option.markexpr.replace(f"not {mark}", "")


def pytest_configure(config):
  """A folder for each process: jax writes entries in place, and another process would read half of one.

  Files are given to processes in the order below; pytest-xdist would order them by their number of tests.
  """
  if hasattr(config.option, "loadscopereorder"):
    config.option.loadscopereorder = False
  if asked_for(config, "aot"):  # compilers for devices that are not here
    return
  config.compiled = tempfile.TemporaryDirectory()
  jax.config.update("jax_compilation_cache_dir", config.compiled.name)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_collection_modifyitems(config, items):
  """Tests marked aot, browser or pages run where -m names them. What is heavy is slow.

  Files that take long come first, so that none ends alone.
  """
  marks = [mark for mark in ("aot", "browser", "pages") if not asked_for(config, mark)]
  left_out = [item for item in items if any(map(item.get_closest_marker, marks))]
  items[:] = [item for item in items if item not in left_out]
  config.hook.pytest_deselected(items=left_out)
  weights = collections.Counter()
  for item in items:
    if item.get_closest_marker("heavy"):
      item.add_marker("slow")
    weights[item.path] += next((weight for mark, weight in WEIGHTS.items() if item.get_closest_marker(mark)), 1)
  items.sort(key=lambda item: -weights[item.path])


def pytest_unconfigure(config):
  if hasattr(config, "compiled"):
    config.compiled.cleanup()


@pytest.fixture(autouse=True, scope="module")
def _optimization(request):
  jax.config.update("jax_disable_most_optimizations", request.module.__name__ not in FULLY_OPTIMIZED)


@pytest.fixture(autouse=True)
def _faults_of_the_reader_are_errors(monkeypatch):
  """Users get a note where the reader of networks meets a form that it does not know; tests get the error."""
  monkeypatch.setattr(reader, "safety_net", False)


@pytest.fixture(autouse=True)
def _traces_are_counted_in_each_test():
  chex.clear_trace_counter()


@pytest.fixture
def interpreted_kernels(monkeypatch):
  """Kernels for TPUs run as plain programs, on any platform."""
  monkeypatch.setattr(tpu, "INTERPRETED", "tpu")


@functools.cache
def has_float16():
  """Whether XLA compiles float16 for this processor: with SSE4.2 alone, without F16C, it does not."""
  try:
    jax.jit(lambda x: x * 2).lower(jax.ShapeDtypeStruct((3,), jax.numpy.float16)).compile()
  except jax.errors.JaxRuntimeError:
    return False
  return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
  """What XLA cannot compile on this processor is no fault of ours, and is told as skipped."""
  try:
    return (yield)
  except jax.errors.JaxRuntimeError as error:
    if "Failed to materialize symbols" in str(error) and not has_float16():
      pytest.skip("XLA compiles no float16 for this processor")
    raise
