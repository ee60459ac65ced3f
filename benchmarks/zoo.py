"""Checks structure_from_model on models of other packages (Equinox, Haiku, Keras, ...), against facts found by hand.

    python benchmarks/zoo.py [name ...] [--keep FOLDER] [--quick]

Each package gets a virtual environment of its own. A file in `benchmarks/zoo/models` says what is installed, builds one
model, and lists the facts that a person derived from the package's source. Prints a table and every wrong leaf; a run
of all models writes them to `benchmarks/results/zoo.md` too. Ends non-zero if a leaf is wrong, or a model fails, for no
known reason.
"""

import argparse
import datetime
import importlib
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
from typing import Any

from versions import interpreter

ROOT = pathlib.Path(__file__).parents[1]
ZOO = pathlib.Path(__file__).with_suffix("")
RESULTS = ROOT / "benchmarks" / "results" / "zoo.md"
QUICK = ("equinox", "dm-haiku", "flowjax", "penzai")

# Why a leaf is wrong, and stays so: {(model, path): reason}. The path "" stands for the number of layers.
KNOWN: dict[tuple[str, str], str] = {}

sys.path.insert(0, str(ZOO))
mistakes = importlib.import_module("expected").mistakes
MODELS = sorted(path.stem for path in (ZOO / "models").glob("[!_]*.py"))
COLUMNS = ["package", "version", "jax", "Python", "model", "right", "make_jaxpr", "in all"]
COLUMNS += ["rest / inside", "rest / alone"]
HEADER = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"


def environment(model: Any, folder: pathlib.Path) -> str:
  """The interpreter of the package's virtual environment, which is made where there is none with these packages."""
  place = folder / model.PACKAGE
  inside, stamp = str(place / "bin" / "python"), place / "requirements.json"
  wanted = json.dumps([model.PYTHON, model.REQUIRES, getattr(model, "NO_DEPENDENCIES", [])])
  if stamp.exists() and stamp.read_text() == wanted:
    return inside
  python = interpreter(model.PYTHON)
  if python is None:
    raise RuntimeError(f"Python {model.PYTHON} is missing")
  subprocess.run([python, "-m", "venv", "--clear", place], check=True)
  pip = [inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
  subprocess.run([*pip, *model.REQUIRES], check=True)
  subprocess.run([*pip, "--no-deps", "-e", ROOT, *getattr(model, "NO_DEPENDENCIES", [])], check=True)
  stamp.write_text(wanted)
  return inside


def ask(name: str, model: Any, folder: pathlib.Path) -> dict[str, Any]:
  """What the package's environment says of a model; an `error` where it says nothing."""
  try:
    python = environment(model, folder)
  except (RuntimeError, subprocess.CalledProcessError) as problem:
    return {"error": str(problem)}
  variables = os.environ | {"JAX_PLATFORMS": "cpu", **getattr(model, "VARIABLES", {})}
  command = [python, str(ZOO / "inside.py"), name]
  done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
  try:
    return json.loads(done.stdout.splitlines()[-1])
  except (IndexError, json.JSONDecodeError):
    return {"error": done.stderr[-2000:]}


def compare(name: str, model: Any, said: dict[str, Any]) -> list[tuple[str, str]]:
  """The wrong leaves: path and what is wrong, uses and notes included."""
  wrong = []
  for path, expected in model.EXPECTED.items():
    leaf = said["leaves"].get(path)
    if problems := mistakes(path, expected, leaf):
      seen = f" (shape {tuple(leaf['shape'])}; {', '.join(leaf['uses']) or 'no use'})" if leaf else ""
      note = f" Note: {leaf['note']}." if leaf and leaf["note"] else ""
      wrong.append((path, f"{'; '.join(problems)}{seen}.{note}"))
  if model.LAYERS is not ... and said["num_layers"] != model.LAYERS:
    wrong.append(("", f"number of layers: expected {model.LAYERS}, said {said['num_layers']}."))
  return wrong


def row(model: Any, said: dict[str, Any], wrong: int) -> str:
  """The model's line of the table."""
  versions = said.get("versions", {})
  cells = [model.PACKAGE, versions.get(model.PACKAGE, "–"), versions.get("jax", "–"), said.get("python", "–")]
  cells.append(model.MODEL)
  if "error" in said:
    return f"| {' | '.join([*cells, 'failed', *'––––'])} |"
  checks, alone, total, inside = len(model.EXPECTED) + 1, said["trace"], said["total"], said["inside"]
  cells += [f"{checks - wrong} of {checks}", f"{alone * 1e3:.0f} ms", f"{total * 1e3:.0f} ms"]
  cells += [f"{total / inside - 1:.2f}" if inside else "–", f"{total / alone - 1:.2f}"]
  return f"| {' | '.join(cells)} |"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("names", nargs="*", metavar="name", help="models or packages; all by default")
  parser.add_argument("--keep", type=pathlib.Path, help="make the environments in this folder, and use those there")
  parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}, which install quickly")
  args = parser.parse_args()
  models = {name: importlib.import_module(f"models.{name}") for name in MODELS}
  asked = args.names or (QUICK if args.quick else [])
  if unknown := set(asked) - set(models) - {model.PACKAGE for model in models.values()}:
    parser.error(f"no model or package is called {', '.join(sorted(unknown))}; there are {', '.join(models)}")
  chosen = {name: model for name, model in models.items() if not asked or {name, model.PACKAGE} & set(asked)}

  rows, problems, ratios, new, right, checked = [HEADER], [], [], 0, 0, 0
  print(HEADER, flush=True)
  with tempfile.TemporaryDirectory() as temporary:
    folder = args.keep or pathlib.Path(temporary)
    for name, model in chosen.items():
      said = ask(name, model, folder)
      wrong = [] if "error" in said else compare(name, model, said)
      rows.append(row(model, said, len(wrong)))
      print(rows[-1], flush=True)
      if "error" in said:
        new += ("error", name) not in KNOWN
        traceback = said["error"].strip().replace("\n", "\n  ")
        problems.append(f"- `{name}` failed:\n\n  ```\n  {traceback}\n  ```")
        continue
      ratios.append(said["total"] / (said["inside"] or said["trace"]) - 1)
      checked, right = checked + len(model.EXPECTED) + 1, right + len(model.EXPECTED) + 1 - len(wrong)
      for path, what in wrong:
        reason = KNOWN.get((name, path))
        new += reason is None
        known = f" Known: {reason}" if reason else ""
        problems.append(f"- `{name}`, {f'`{path}`' if path else 'the model'}: {what}{known}")
  summary = f"{right} of {checked} right, {new} wrong for no known reason."
  if ratios:
    summary += f" Reading takes {statistics.median(ratios):.2f} of tracing in the median, {max(ratios):.2f} at most."
  print(f"\n{summary}\n", *problems, sep="\n")
  if not asked:
    machine = f"{os.cpu_count()} CPU cores, {platform.machine()}"
    head = f"`python benchmarks/zoo.py`, {datetime.date.today()}, {machine}. {summary}"
    explained = (
      "Right: leaves (and the number of layers) of which layer, depth, connections, contracting and stacked axes are "
      "all as found by hand.\nTimes are medians of 7 interleaved runs: of `jax.make_jaxpr` of the model alone, and of "
      "`structure_from_model` in all. The rest is what\nthat takes besides `make_jaxpr`, relative to the `make_jaxpr` "
      "inside it and to the one alone."
    )
    text = [head, explained, "\n".join(rows), "## Wrong", "\n".join(problems) or "Nothing."]
    RESULTS.write_text("\n\n".join(text) + "\n")
  raise SystemExit(new > 0)


if __name__ == "__main__":
  main()
