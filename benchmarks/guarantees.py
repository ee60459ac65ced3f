"""One table of what is guaranteed: runs all tests and optax's own suites, and adds the results of the longer runs.

From the repository root, with the test extra: python benchmarks/guarantees.py > benchmarks/results/guarantees.md
Where the tests have just run, with `pytest -n 2 --junitxml=tests.xml`: add `--tests tests.xml`.
The longer runs are read from benchmarks/results/: kill_test.md, fuzz.md, meshes.md, each made by the command in it.
"""

import argparse
import collections
import datetime
import json
import pathlib
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree

import jax
import optax

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import test_optax_suites as suites  # noqa: E402


def own_tests() -> dict[str, collections.Counter[str]]:
  """Runs all tests and counts them."""
  with tempfile.NamedTemporaryFile(suffix=".xml") as report:
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", f"--junitxml={report.name}"]
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
    return counted(report.name)


def counted(report: str) -> dict[str, collections.Counter[str]]:
  """Cases of each test file in a JUnit report: run, failed, and skipped by reason."""
  counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
  for case in ElementTree.parse(report).iter("testcase"):
    name = case.get("classname", "").split(".")
    of_file = counts[" ".join(part for part in name if part.startswith("test_")) or "doctests"]
    of_file["run"] += 1
    for outcome in case:
      if outcome.tag in ("failure", "error"):
        of_file["failed"] += 1
      elif outcome.tag == "skipped":
        of_file[f"skipped: {outcome.get('message')}"] += 1
  return dict(sorted(counts.items()))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--tests", help="the JUnit report of all tests, if they need not run again")
  options = parser.parse_args()
  versions = f"jax {jax.__version__}, optax {optax.__version__}"
  print(f"`python benchmarks/guarantees.py`, {datetime.date.today()}, {versions}, CPU\n")
  print("| suite | cases run | failed | skipped | failures that are expected, and why |\n|---|---|---|---|---|")
  for suite, path in suites.PATHS.items():
    done = subprocess.run(
      [sys.executable, "tests/test_optax_suites.py", suite], cwd=ROOT, capture_output=True, text=True, check=False
    )
    result = json.loads(done.stdout)
    unexpected, passed, skipped = suites.verdict(suite, result)
    why = " ".join(reason for of, pattern, reason in suites.KNOWN if of == suite and pattern not in passed)
    expected = len(result["failed"]) - len(unexpected)
    skips = "; ".join(sorted(set(skipped.values()))) if skipped else "0"
    print(f"| optax's {path} | {result['cases']} | {len(unexpected)} | {skips} | {expected}. {why} |", flush=True)
  for name, counts in (counted(options.tests) if options.tests else own_tests()).items():
    skips = "; ".join(f"{n} {what}" for what, n in counts.items() if what.startswith("skipped")) or "0"
    print(f"| {name} | {counts['run']} | {counts['failed']} | {skips} | |", flush=True)
  longer_runs()


def longer_runs() -> None:
  """What the longer runs left."""
  for name in "kill_test", "fuzz", "meshes":
    text = (ROOT / "benchmarks" / "results" / f"{name}.md").read_text(encoding="utf-8")
    print(f"\n## {name}\n\n{text.strip()}")


if __name__ == "__main__":
  main()
