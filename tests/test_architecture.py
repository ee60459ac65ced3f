"""The layers of the library: which package may import which, no cycles, and what is public is documented."""

import ast
import graphlib
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import optax_ext
from optax_ext import compare

ROOT = Path(optax_ext.__file__).parent
LAYERS = [
  ["_common"],
  ["_moments", "_network"],
  ["_sphere", "_memory", "_run"],
  ["_optimizers"],
  ["__init__", "linen", "nnx"],
  ["compare"],
]
FILES = sorted(ROOT.rglob("*.py"))


def name_of(file):
  """A file's module below the package, "_moments.gains"; a package's own file ends in __init__."""
  return ".".join(file.relative_to(ROOT).with_suffix("").parts)


MODULES = {name_of(file): file for file in FILES}


def imports_of(file):
  """The modules of this package that a file imports anywhere, in functions too."""
  for node in ast.walk(ast.parse(file.read_text())):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{file} has a relative import"
      names = [f"{node.module}.{alias.name}" for alias in node.names]
    else:
      continue
    for name in names:
      head, *rest = name.split(".")
      if head == "optax_ext":
        yield next(module for module in _candidates(rest) if module in MODULES)


def _candidates(parts):
  """Of `a.b.c`: the module c of package a.b, the package a.b.c, and those of which c is a name."""
  for end in range(len(parts), -1, -1):
    yield ".".join(parts[:end])
    yield ".".join([*parts[:end], "__init__"])


def layer_of(module):
  top = module.split(".")[0]
  return next(number for number, packages in enumerate(LAYERS) if top in packages)


GRAPH = {module: set(imports_of(file)) - {module} for module, file in MODULES.items()}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_each_module_imports_only_what_stands_below_its_package(module):
  own = module.split(".")[0]
  above = [other for other in GRAPH[module] if other.split(".")[0] != own and layer_of(other) >= layer_of(module)]
  assert not above, f"{module} imports {above}"


def test_there_is_no_cycle_of_imports():
  list(graphlib.TopologicalSorter(GRAPH).static_order())


@pytest.mark.parametrize("module", [optax_ext, compare])
def test_what_is_listed_exists_and_is_documented(module):
  assert sorted(module.__all__) == sorted(set(module.__all__))
  for name in module.__all__:
    value = getattr(module, name)
    assert not inspect.ismodule(value)
    if inspect.isclass(value) or inspect.isfunction(value):
      assert inspect.getdoc(value), f"{name} has no docstring"
    else:  # the type of a plug: a string literal stands after it where it is defined
      assert any(f"\n{name} = " in text and '\n"""' in text.split(f"\n{name} = ")[1] for text in _sources()), name


def _sources():
  return [file.read_text() for file in FILES]


def test_public_names_come_from_private_modules():
  """So that a user finds each at one place."""
  public = {name for name in vars(optax_ext) if not name.startswith("_")}
  modules = {name for name in public if inspect.ismodule(getattr(optax_ext, name))}
  assert public - modules == set(optax_ext.__all__)
  assert modules <= {"compare", "linen", "nnx"}


@pytest.mark.slow
def test_importing_the_library_imports_little_else():
  """Pallas for TPUs alone takes several times as long as optax_ext."""

  def loaded(module):
    code = f"import sys, {module}; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())

  added = {name for name in loaded("optax_ext") - loaded("optax") if name.partition(".")[0] != "optax_ext"}
  assert not added, added


def test_pallas_is_imported_before_a_function_is_traced(monkeypatch):
  """Imported within a trace, it makes jax 0.12 trace and compile the function once more."""
  imported = []
  monkeypatch.setattr(importlib, "import_module", imported.append)
  optax_ext.quantize_state(optax_ext.adamnx(1.0), kernel="pallas")
  optax_ext.nd_adam(1.0, kernel="pallas")
  assert imported == ["jax.experimental.pallas.tpu", "jax.experimental.pallas.triton"] * 2


def test_the_citation_names_this_version():
  citation = (ROOT.parent / "CITATION.cff").read_text("utf-8")
  assert f"\nversion: {optax_ext.__version__}\n" in citation
