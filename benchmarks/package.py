"""Builds the wheel and the source archive, and tries both where nothing else is installed.

    python benchmarks/package.py [--keep FOLDER] [version of Python ...]

For each version (3.11 and the running one by default) a new virtual environment gets the wheel with what it depends on,
then the archive in its place; `benchmarks/smoke.py` runs with both. The archive must hold every file of the repository,
and the tests of README and of the layers run in the folder that it unpacks to.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile

from versions import ROOT, interpreter

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
RUN = ("tests/test_readme.py", "tests/test_architecture.py")


def run(*command: object, **options: object) -> str:
  """A command's output; the command fails loudly."""
  done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
  if done.returncode:
    raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
  return done.stdout


def build(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
  """The wheel, made from the archive, and the archive."""
  run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
  (wheel,), (archive,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
  names = zipfile.ZipFile(wheel).namelist()
  others = {name.split("/")[0] for name in names} - {"optax_ext"}
  assert "optax_ext/py.typed" in names
  assert all(name.endswith(".dist-info") for name in others), f"the wheel also installs {others}"
  return wheel, archive


def try_in_new_environment(version: str, folder: pathlib.Path, wheel: pathlib.Path, archive: pathlib.Path) -> str:
  """What the smoke test says of both, installed one after the other."""
  python = interpreter(version)
  if python is None:
    raise SystemExit(f"Python {version} is missing.")
  run(python, "-m", "venv", folder)
  inside = folder / "bin" / "python"
  pip = (inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
  smoke = lambda: run(
    inside, "-I", ROOT / "benchmarks" / "smoke.py", cwd=folder, env=os.environ | {"JAX_PLATFORMS": "cpu"}
  )
  run(*pip, wheel)
  said = smoke()
  run(*pip, "--force-reinstall", "--no-deps", archive)
  assert smoke() == said
  return said.strip()


def check_archive(archive: pathlib.Path, folder: pathlib.Path) -> str:
  """That nothing is missing in the archive: every tracked file is there, and its tests find what they read."""
  with tarfile.open(archive) as tar:
    tar.extractall(folder, filter="data")
  (unpacked,) = folder.iterdir()
  if tracked := run("git", "-C", ROOT, "ls-files").split("\n")[:-1] if (ROOT / ".git").exists() else []:
    missing = [name for name in tracked if not (unpacked / name).exists()]
    assert not missing, f"the archive lacks {missing[:5]}, {len(missing)} files in all"
  options = {"cwd": unpacked, "env": os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(unpacked)}}
  pytest = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0")
  passed = run(*pytest, "-m", "not slow", *RUN, **options).strip().splitlines()[-1]
  return f"in the archive: {' and '.join(RUN)}: {passed.strip('= ')}"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("versions", nargs="*", help="3.11 and the running one by default", metavar="version")
  parser.add_argument("--keep", type=pathlib.Path, help="leave the wheel and the archive in this folder")
  args = parser.parse_args()
  begin = time.time()
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary)
    wheel, archive = build(args.keep or folder / "dist")
    for path in (wheel, archive):
      print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB")
    for version in args.versions or dict.fromkeys(("3.11", HERE)):
      print(try_in_new_environment(version, folder / version, wheel, archive), flush=True)
    print(check_archive(archive, folder / "unpacked"))
  print(f"{time.time() - begin:.0f} s")


if __name__ == "__main__":
  main()
