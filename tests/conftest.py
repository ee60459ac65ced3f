"""All tests see 8 virtual devices, as meshes need them; what asks for none runs on the first.

Property tests draw the same cases in every run, so that a commit passes or fails for good; `benchmarks/fuzz.py` looks
for new ones.
"""

import os

import hypothesis
import jax
import pytest

from optax_ext import tracing

jax.config.update("jax_num_cpu_devices", 8)
hypothesis.settings.register_profile("same every time", derandomize=True)
hypothesis.settings.load_profile("same every time")

# Their subject is what the compiler makes, to the last bit. The others take less time where LLVM optimizes little;
# XLA's own passes, fusion among them, run in all.
FULLY_OPTIMIZED = {"test_compiled", "test_contract", "test_golden", "test_kernels", "test_moments", "test_one_pass"}
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"  # for the programs that tests start


@pytest.fixture(autouse=True, scope="module")
def _optimization(request):
  jax.config.update("jax_disable_most_optimizations", request.module.__name__ not in FULLY_OPTIMIZED)


@pytest.fixture(autouse=True)
def _faults_of_the_reader_are_errors(monkeypatch):
  """Users get a note where the reader of networks meets a form that it does not know; tests get the error."""
  monkeypatch.setattr(tracing, "safety_net", False)
