"""Runs the tests on the versions of Python, jax, optax and Flax that are supported, each in a new virtual environment.

    python benchmarks/versions.py [--keep FOLDER] [name ...]

Prints one row for each environment: the versions, what passed, failed and was skipped. Ends non-zero if a test failed
or an interpreter is missing; the row of pre-releases is for information alone.
"""

import argparse
import dataclasses
import glob
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[1]
# What depends on jax and optax alone: formulas, reading of networks, storage, kernels.
CORE = (
  "common moments sphere memory network/test_structure.py network/test_reader.py run/test_sharding.py test_compiled.py "
  "test_contract.py test_golden.py test_optax_suites.py test_optimizers.py test_stress.py"
)
FLAX = "network/test_reader_models.py run/test_checkpoints.py test_flax.py test_messages.py"
EVERYTHING = ""
# The lower bounds of pyproject.toml, and what the tests need beside them.
LOWEST = [
  *("jax==0.7.1", "jaxlib==0.7.1", "optax==0.2.7", "flax==0.12.0", "orbax-checkpoint==0.12.0"),
  *("chex", "equinox", "flatbuffers", "hypothesis", "matplotlib"),
  *("pytest>=8", "pytest-xdist", "rich", "scikit-learn", "scipy"),
]


@dataclasses.dataclass(frozen=True)
class Environment:
  """Where tests run.

  Attributes:
    python: The interpreter's version.
    packages: What pip installs before optax_ext; with none it installs the extra `test`, whose versions are the newest.
    files: Test files and folders, in `tests`; all where there is none.
    pre: Whether pip takes pre-releases of jax, optax and Flax. Failures then are reported, and are no failures here.
    only: Tests that are run, as pytest's -m has it.
  """

  python: str
  packages: list[str] = dataclasses.field(default_factory=list)
  files: str = EVERYTHING
  pre: bool = False
  only: str = ""


ENVIRONMENTS = {
  "lowest": Environment("3.11", LOWEST, f"{CORE} {FLAX}", only="not heavy"),
  "3.11": Environment("3.11"),
  "3.12": Environment("3.12"),
  "3.13": Environment("3.13"),
  "core on 3.11": Environment("3.11", files=CORE, only="not slow"),
  "pre-releases": Environment("3.13", files=CORE, pre=True, only="not heavy"),
}


def interpreter(version: str) -> str | None:
  """An interpreter of that version: on the path, or one that pyenv has."""
  root = os.environ.get("PYENV_ROOT", str(pathlib.Path.home() / ".pyenv"))
  candidates = [shutil.which(f"python{version}"), *sorted(glob.glob(f"{root}/versions/{version}.*/bin/python"))]
  for candidate in filter(None, candidates):  # pyenv puts names on the path that may not run
    if subprocess.run([candidate, "-c", ""], capture_output=True, check=False).returncode == 0:
      return candidate
  return None


def run(name: str, folder: pathlib.Path) -> tuple[bool, str]:
  """Makes the environment, runs its tests and returns whether all went well, and the row."""
  environment, begin, place = ENVIRONMENTS[name], time.time(), folder / name.replace(" ", "-")
  python = interpreter(environment.python)
  if python is None:
    return False, f"| {name} | Python {environment.python} is missing | – | – | – | – | – |"
  subprocess.run([python, "-m", "venv", place], check=True)
  inside = str(place / "bin" / "python")
  pip = [inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
  if environment.packages:
    subprocess.run([*pip, *environment.packages], check=True)
    subprocess.run([*pip, "--no-deps", "-e", ROOT], check=True)
  else:
    subprocess.run([*pip, "-e", f"{ROOT}[test]"], check=True)
  if environment.pre:
    released = versions(inside)
    subprocess.run([*pip, "--upgrade", "--pre", "jax", "jaxlib", "optax", "flax"], check=False)
    if versions(inside) == released:
      return True, f"| {' | '.join([name, *released, 'pip has none', f'{time.time() - begin:.0f} s'])} |"
  files = [str(ROOT / "tests" / file) for file in environment.files.split()]
  command = [inside, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", "-p", "no:cacheprovider", "-rs", *files]
  command += ["-m", environment.only] if environment.only else []
  variables = os.environ | {"JAX_PLATFORMS": "cpu"}
  done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
  log = done.stdout + done.stderr
  (folder / f"{place.name}.log").write_text(log)
  outcome = (done.stdout.strip().splitlines() or ["nothing"])[-1].strip("= ")
  outcome = re.sub(r" in [\d.]+s.*", "", outcome)
  if done.returncode:
    print("\n".join(re.findall(r"^(?:FAILED|ERROR) .*", log, re.MULTILINE)) or log[-3000:], file=sys.stderr)
  row = [name, *versions(inside), outcome, f"{time.time() - begin:.0f} s"]
  return done.returncode == 0 or environment.pre, f"| {' | '.join(row)} |"


def versions(python: str) -> list[str]:
  """The versions of Python, jax, optax and Flax in an environment."""
  listed = subprocess.run([python, "-m", "pip", "list", "--format=json"], capture_output=True, text=True, check=True)
  found = {package["name"].lower(): package["version"] for package in json.loads(listed.stdout)}
  own = subprocess.run([python, "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
  return [own, *(found.get(package, "–") for package in ("jax", "optax", "flax"))]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("names", nargs="*", help=f"of {', '.join(ENVIRONMENTS)}; all by default", metavar="name")
  parser.add_argument("--keep", type=pathlib.Path, help="make the environments, and logs, in this folder")
  parser.add_argument("--which", metavar="VERSION", help="print an interpreter of that version, and do nothing else")
  args = parser.parse_args()
  if args.which:
    python = interpreter(args.which)
    print(python or f"Python {args.which} is missing.", file=sys.stdout if python else sys.stderr)
    raise SystemExit(python is None)
  if unknown := set(args.names) - set(ENVIRONMENTS):
    parser.error(f"no environment is called {', '.join(sorted(unknown))}; there are {', '.join(ENVIRONMENTS)}")
  with tempfile.TemporaryDirectory() as temporary:
    folder = args.keep or pathlib.Path(temporary)
    folder.mkdir(parents=True, exist_ok=True)
    print("| environment | Python | jax | optax | Flax | tests | time |\n|---|---|---|---|---|---|---|", flush=True)
    well = []
    for name in args.names or ENVIRONMENTS:
      passed, row = run(name, folder)
      well.append(passed)
      print(row, flush=True)
  raise SystemExit(not all(well))


if __name__ == "__main__":
  main()
