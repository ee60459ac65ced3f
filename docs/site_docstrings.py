"""Docstrings as reStructuredText: equations stay as they are laid out, and types of plugs have the words after them."""

import ast
import pathlib
import re

from sphinx.pycode import ModuleAnalyzer

import optax_ext

SECTION = re.compile(r"(Args|Attributes|Example|Raises|References|Returns|Warns):$")


def as_text(line):
  """A line of prose: a bar is a bar, and letters may follow code at once, as in `leaf`s."""
  parts = line.split("`")
  parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
  parts[2::2] = [(r"\ " if re.match(r"\w", part) else "") + part for part in parts[2::2]]
  return "`".join(parts)


def as_rest(lines):
  """A docstring of which indented blocks before its first section are code, and all else but the example is prose."""
  marked, section, inside = [], None, False
  for number, line in enumerate(lines):
    if found := SECTION.match(line):
      section = found[1]
    indented = line.startswith("    ")
    if section is None and indented and not inside and (number == 0 or not lines[number - 1].strip()):
      marked += [".. code-block:: text", "   :class: equation", ""]
      inside = True
    inside = inside and (indented or not line.strip())
    marked.append(line if inside or section == "Example" else as_text(line))
  return marked


def defining_module(name):
  """The private module from which the package imports a public name."""
  tree = ast.parse(pathlib.Path(optax_ext.__file__).read_text(encoding="utf-8"))
  imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
  return str(next(node.module for node in imports if name in {alias.name for alias in node.names}))


def words_after(name):
  """The string that stands after a type such as `Gain` where it is defined."""
  module = defining_module(name)
  return ModuleAnalyzer.for_module(module).find_attr_docs()["", name]


def process(app, what, name, obj, options, lines):
  """Changes one docstring in place, before napoleon reads its sections."""
  package, _, short = name.rpartition(".")
  if what == "data" and package == "optax_ext":
    lines[:] = words_after(short)
  lines[:] = as_rest(lines)


def setup(app):
  """Connects with Sphinx."""
  app.connect("autodoc-process-docstring", process, priority=400)  # napoleon's is 500
  return {"parallel_read_safe": True}
