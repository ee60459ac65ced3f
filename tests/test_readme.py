"""The README's code runs, and prints what it says."""

import pathlib
import re

import pytest

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language):
  return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_python_blocks_run(capsys):
  names = {}
  for block in blocks("python"):
    exec(block, names)
  printed = capsys.readouterr().out
  assert blocks("text")
  assert all(table in printed for table in blocks("text"))


def test_there_are_two_commands():
  commands = blocks("sh")
  assert len(commands) == 2
  assert all(len(command.splitlines()) == 1 for command in commands)
