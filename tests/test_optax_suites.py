"""optax's own test suites, whole, with our optimizers in the place of optax's.

The suites are in optax's wheel. They bind their lists of optimizers when they are imported; so their source is read,
the definitions of the lists are left out, ours are there instead, and the result runs as a module, in a process of its
own with 8 devices. Two lines are changed, so that nothing is skipped in silence: versions are compared as versions
('0.10.2' < '0.7.2' as strings), and the cases of alias_test.py that name Adam name our optimizers. A third takes less
time: of 10,000 steps, the two that are watched for being compiled once are called, and a loop of XLA takes the others.

`python tests/test_optax_suites.py alias` runs one suite and prints each case that failed or was skipped.
"""

import ast
import json
import os
import pathlib
import re
import subprocess
import sys
import types
import unittest
import warnings

import jax
import optax
import pytest

import optax_ext

PATHS = {"common": "contrib/_common_test.py", "alias": "_src/alias_test.py", "sharding": "_src/sharding_test.py"}


def nd_adam_scalars(learning_rate: optax.ScalarOrSchedule, b1=0.9, b2=0.999, eps=1e-8, mu_dtype=None):
  """ND-Adam where nothing is a vector: what is to converge to matrices that are not made of unit vectors."""
  return optax_ext.nd_adam(learning_rate, b1, b2, eps, mu_dtype=mu_dtype, axes=lambda path, leaf: None)


FACTORIES = {
  "exadam": optax_ext.exadam,
  "adamnx": optax_ext.adamnx,
  "caadam": optax_ext.caadam,
  "nd_adam": optax_ext.nd_adam,
  "nd_adam_scalars": nd_adam_scalars,
}
OPTIMIZERS = [
  ("exadam", {}),
  ("exadam", {"log_step": False}),
  # by default it decays weights by 0.01, towards 0 and so away from these minima: here by 1e-4, as optax.adamw
  ("adamnx", {"weight_decay": 1e-4}),
  ("caadam", {}),  # Multiplicative()
  ("caadam", {"rule": optax_ext.Additive()}),
  ("caadam", {"rule": optax_ext.ByDepth()}),
  ("nd_adam", {}),
  ("nd_adam_scalars", {}),
]

# What fails, with the reason: a case that is named here and does not fail is an error too.
KNOWN = [
  (
    "common",
    r"test_optimizers \(opt_name='nd_adam', .*target=_setup_(matrix_parabola|mixed_tensor_target)",
    "By default every matrix is made of unit vectors, and the target is not; nd_adam_scalars runs these cases.",
  ),
  (
    "alias",
    r"test_explicit_dtype \(params_dtype='complex64', state_dtype='(bfloat16|float32)'",
    "The mean of complex gradients stays complex whatever mu_dtype, where optax drops the imaginary part.",
  ),
  (
    "sharding",
    r"test_microbatch_with_explicit_sharding_sharded",
    "No optimizer takes part in it: optax.microbatching compares versions as strings ('0.10.2' < '0.7.2'), and fails.",
  ),
]


def cases(rate, exadams, optimizers=OPTIMIZERS, **more):
  """The list of a suite. EXAdam's steps are about ten times as long as Adam's and grow with time: a rate of its own."""
  return [
    {"opt_name": name, "opt_kwargs": {"learning_rate": exadams if name == "exadam" else rate, **kwargs}, **more}
    for name, kwargs in optimizers
  ]


def ours(suite):
  """What takes the place of a suite's own definitions of these names."""
  if suite == "common":
    wrapped = [("exadam", {}), ("adamnx", {"weight_decay": 1e-4}), ("caadam", {}), ("nd_adam_scalars", {})]
    mechanic = {"wrapper_name": "mechanize", "wrapper_kwargs": {"weight_decay": 0.0}}
    return {
      "_MAIN_OPTIMIZERS_UNDER_TEST": cases(1e-2, 1e-3, wrapper_name=None, wrapper_kwargs=None),
      "_BASE_OPTIMIZERS": [],
      "_OTHER_OPTIMIZERS_UNDER_TEST": cases(1.0, 0.1, wrapped, **mechanic),
      "_get_opt_factory": FACTORIES.__getitem__,
    }
  if suite == "alias":
    return {
      "_OPTIMIZERS_UNDER_TEST": cases(1e-2, 1e-3),
      "_get_opt": lambda self, name: FACTORIES[name],
      "LBFGSTest": None,  # tests of one optimizer of optax
    }
  named = {" ".join([name, *map(repr, kwargs.values())]): FACTORIES[name](1.0, **kwargs) for name, kwargs in OPTIMIZERS}
  return {"OPTIMIZERS": named | {"adamw": optax.adamw(1.0)}}  # adamw for comparison


CHANGES = {  # pattern: replacement, how often
  "common": {},
  "alias": {
    r"\('sgd_mom', 'adam', 'adamw'\)": (repr(tuple(FACTORIES)), 1),
    r"\['adam', 'adamw'\]": (repr(list(FACTORIES)), 1),
    r"range\(10000\)(:\n +if it == 1:(?:\n.*){4}\n +)else(:\n.* = )step\(params, state\)": (
      r"range(3)\1elif it == 0\2step(params, state)\n"
      r"        else\2jax.lax.fori_loop(2, 10000, lambda _, both: step(*both), (params, state))",
      1,
    ),
  },
  "sharding": {r"jax\.__version__ < '([\d.]+)'": (r"jax.__version_info__ < tuple(map(int, '\1'.split('.')))", 3)},
}


def load(suite):
  """The suite as a module."""
  given = ours(suite)
  source = (pathlib.Path(optax.__file__).parent / PATHS[suite]).read_text(encoding="utf-8")
  for pattern, (replacement, times) in CHANGES[suite].items():
    source, found = re.subn(pattern, replacement, source)
    assert found == times, f"{PATHS[suite]} has changed: {pattern} is there {found} times, not {times}"
  tree = ast.parse(source)
  left_out = [name for node in tree.body for name in defined(node) if name in given]
  assert set(left_out) == set(given), f"{PATHS[suite]} has changed: it does not define {set(given) - set(left_out)}"
  tree.body = [node for node in tree.body if not given.keys() & set(defined(node))]
  module = types.ModuleType(f"optax_suite_{suite}")
  module.__dict__.update({name: value for name, value in given.items() if value is not None})
  sys.modules[module.__name__] = module
  exec(compile(tree, PATHS[suite], "exec"), module.__dict__)
  return module


def defined(node):
  """The names that a statement defines."""
  if isinstance(node, ast.Assign | ast.AugAssign):
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return [target.id for target in targets if isinstance(target, ast.Name)]
  return [node.name] if isinstance(node, ast.FunctionDef | ast.ClassDef) else []


def run(suite):
  """Runs a suite in this process: how many cases, which failed (with the last line), which were skipped (why)."""
  result = unittest.TestResult()
  unittest.defaultTestLoader.loadTestsFromModule(load(suite)).run(result)
  name = lambda case: getattr(case, "test_case", case)  # of a subtest its test
  # test_optimizers34 (…, target=<function _setup at 0x7f>) is called test_optimizers (…, target=_setup)
  bare = lambda text: re.sub(r"(?<=[a-z])\d+(?= \()|<function | at 0x\w+>", "", text)
  readable = lambda case: bare(str(name(case)).split(" (optax_suite")[0])
  failed = {}
  for case, trace in result.failures + result.errors:
    errors = re.findall(r"^[\w.]*(?:Error|Exception)\b.*", trace, re.MULTILINE)
    failed.setdefault(readable(case), errors[-1] if errors else trace)
  skipped = {readable(case): reason for case, reason in result.skipped}
  return {"cases": result.testsRun, "failed": failed, "skipped": skipped}


def verdict(suite, result):
  """What is wrong with a result: (unexpected failures, known ones that did not fail, unexpected skips)."""
  known = [pattern for of, pattern, _ in KNOWN if of == suite]
  matching = lambda pattern, cases: [case for case in cases if re.match(pattern, case)]
  unexpected = {case: why for case, why in result["failed"].items() if not any(re.match(p, case) for p in known)}
  passed = [p for p in known if not matching(p, result["failed"]) and not matching(p, result["skipped"])]
  old = jax.__version_info__ < (0, 8, 1)  # which lacks what these cases are about
  allowed = "Skipping sharding-in-types test" if old else None
  skipped = {case: why for case, why in result["skipped"].items() if why.rstrip(".") != allowed}
  return unexpected, passed, skipped


@pytest.mark.heavy
def test_suites(tmp_path, monkeypatch):
  """All in one process, in which no program is compiled twice: the second suite has half of them from the first."""
  pytest.importorskip("sklearn", reason="the suite alias imports it")
  from support import cache_programs  # compiles, which the process that runs the suites must not before it has devices

  cache_programs(monkeypatch, tmp_path)
  done = subprocess.run(
    [sys.executable, "-W", "error", "-W", "ignore:nd_adam keeps", "-W", "ignore:nd_adam starts", __file__, *PATHS],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr + done.stdout
  results = json.loads(done.stdout)
  assert results.pop("devices") == 8
  assert {suite: verdict(suite, result) for suite, result in results.items()} == dict.fromkeys(PATHS, ({}, [], {}))
  for suite, least in {"common": 170, "alias": 200, "sharding": 29}.items():
    assert results[suite]["cases"] >= least, suite


def test_what_a_verdict_notices():
  assert verdict("alias", {"failed": {"x": "E"}, "skipped": {"y": "why"}})[::2] == ({"x": "E"}, {"y": "why"})
  assert len(verdict("sharding", {"failed": {}, "skipped": {}})[1]) == 1


def main():
  flags = ["--xla_force_host_platform_device_count=8"]
  if jax.__version_info__ < (0, 11):
    flags.append("--xla_cpu_use_fusion_emitters=false")  # older ones, which compile faster; later, there are none
  # Parameters there are single vectors and matrices, and nd_adam_scalars has no vectors on purpose.
  warnings.filterwarnings("ignore", "(scale_by_structure|nd_adam) sees")
  os.environ |= {"XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu"}
  jax.config.update("jax_disable_most_optimizations", True)
  results = {suite: run(suite) for suite in sys.argv[1:]}
  print(json.dumps({**results, "devices": jax.device_count()}, indent=2))


if __name__ == "__main__":
  main()
