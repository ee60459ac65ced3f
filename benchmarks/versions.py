"""Runs the core tests on the oldest and the newest supported versions, each in a fresh virtual environment.

    python benchmarks/versions.py [--python python3.11] [--keep FOLDER] [name ...]

Core tests use jax and optax alone; Flax is tested with the oldest Flax that the examples support, which asks for a
newer jax than the core does. Prints one row for each environment: the versions, what passed, failed and was skipped.
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[1]
TOOLS = ["pytest>=8", "pytest-xdist", "hypothesis", "scipy", "scikit-learn", "flatbuffers"]
CORE = "alias moments debias schedules paths vectors structure golden contract stress compiled optax_suites"
FLAX = "flax paths structure softmax"
ENVIRONMENTS = {  # name: (what is installed, test files)
  "lowest": (["jax==0.6.0", "jaxlib==0.6.0", "optax==0.2.7"], CORE),
  "lowest flax": (["jax==0.7.1", "optax==0.2.7", "flax==0.12.0", "equinox"], FLAX),
  "newest": (["jax", "optax", "flax", "equinox"], f"{CORE} flax softmax"),
}


def run(name: str, python: str, folder: pathlib.Path) -> tuple[bool, str]:
  """Makes the environment, runs its tests and returns whether all went well, and the row."""
  packages, files = ENVIRONMENTS[name]
  begin, environment = time.time(), folder / name.replace(" ", "-")
  subprocess.run([python, "-m", "venv", environment], check=True)
  inside = str(environment / "bin" / "python")
  pip = [inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
  subprocess.run([*pip, *packages, *TOOLS], check=True)
  subprocess.run([*pip, "--no-deps", "-e", ROOT], check=True)
  tests = [str(path) for file in files.split() if (path := ROOT / "tests" / f"test_{file}.py").exists()]
  command = [inside, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", "-rs", *tests]
  done = subprocess.run(command, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True)
  (folder / f"{environment.name}.log").write_text(done.stdout + done.stderr)
  versions = (
    "import jax, optax, sys; print(f'{sys.version.split()[0]} | {jax.__version__} | {optax.__version__}', end='')"
  )
  found = subprocess.run([inside, "-c", versions], capture_output=True, text=True, check=True).stdout
  flax = subprocess.run([*pip[:3], "show", "flax"], capture_output=True, text=True).stdout
  flax = (re.search(r"^Version: (\S+)", flax, re.MULTILINE) or [None, "–"])[1]
  outcome = done.stdout.strip().splitlines()[-1].strip("= ")
  return done.returncode == 0, f"| {name} | {found} | {flax} | {outcome} | {time.time() - begin:.0f} s |"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
  parser.add_argument("names", nargs="*", help=f"of {', '.join(ENVIRONMENTS)}; all by default")
  parser.add_argument("--python", default=sys.executable)
  parser.add_argument("--keep", type=pathlib.Path, help="make the environments, and logs, in this folder")
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as temporary:
    folder = args.keep or pathlib.Path(temporary)
    folder.mkdir(parents=True, exist_ok=True)
    print("| environment | Python | jax | optax | Flax | tests | time |\n|---|---|---|---|---|---|---|", flush=True)
    well = []
    for name in args.names or ENVIRONMENTS:
      passed, row = run(name, args.python, folder)
      well.append(passed)
      print(row, flush=True)
  raise SystemExit(not all(well))


if __name__ == "__main__":
  main()
