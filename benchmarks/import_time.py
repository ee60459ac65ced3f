"""How much longer `import optax_ext` takes than `import optax`: processes in pairs, one after the other.

Run `python benchmarks/import_time.py`; raw output goes to `benchmarks/results/`, dated.
"""

import datetime
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys

import jax
import optax

import optax_ext

PAIRS = 21


def cpu_seconds(module):
  """Of a new process that imports a module, its own and its children's."""
  before = resource.getrusage(resource.RUSAGE_CHILDREN)
  subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
  after = resource.getrusage(resource.RUSAGE_CHILDREN)
  return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main():
  for module in ("optax", "optax_ext"):  # once, for the files that Python compiles and the disk reads
    cpu_seconds(module)
  pairs = [(cpu_seconds("optax"), cpu_seconds("optax_ext")) for _ in range(PAIRS)]
  ratios = sorted(ours / theirs for theirs, ours in pairs)
  found = {
    "what": "CPU seconds of import optax and import optax_ext, in pairs",
    "ratio": {"median": statistics.median(ratios), "lowest": ratios[0], "highest": ratios[-1]},
    "python": platform.python_version(),
    "jax": jax.__version__,
    "optax": optax.__version__,
    "optax_ext": optax_ext.__version__,
    "machine": platform.machine(),
    "cores": os.cpu_count(),
    "load": round(os.getloadavg()[0], 1),
    "pairs": pairs,
  }
  print(found["ratio"])
  out = pathlib.Path(__file__).parent / "results" / f"import_time-{datetime.date.today()}.json"
  out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
  main()
