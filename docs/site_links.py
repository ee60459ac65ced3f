"""Links of the pages: from a public name in code font to the API, and from a file of the repository to its page."""

import os
import pathlib
import re

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms import SphinxTransform

import optax_ext
from optax_ext import compare

ROOT = pathlib.Path(__file__).parents[1]
NAMES = {name: f"optax_ext.{name}" for name in optax_ext.__all__}
NAMES |= {name: f"optax_ext.compare.{name}" for name in compare.__all__ if name != "compare"}
NAMES["compare"] = "optax_ext.compare.compare"
CODE = re.compile(r"(?:optax_ext\.)?(?:compare\.)?(\w+)(\(.*\))?$")
LINK = re.compile(r"(?<=\]\()([^()\s:#]+\.(?:md|py))(?=[)#])")

TITLES = {  # of reports that have none
  "coverage": "Coverage of bootstrap intervals",
  "fuzz": "Random combinations",
  "gain_accuracy": "Accuracy of the gains",
  "guarantees": "optax's own test suites",
  "kill_test": "Killed and restarted runs",
  "meshes": "Meshes against one device",
  "mutants": "Faults that the tests notice",
  "zoo": "Models of other packages, read",
}


def reports():
  """Page -> the report of measurements that it shows."""
  files = [path for path in (ROOT / "benchmarks/results").rglob("*.md") if "papers" not in path.parts]
  return {f"measurements/{path.stem.lower()}": path for path in sorted(files)}


def write_reports(app):
  """A page for each report, of one line: the reports lie outside of the folder of pages."""
  for page, report in reports().items():
    file = pathlib.Path(app.srcdir, f"{page}.md")
    title = "" if report.read_text(encoding="utf-8").startswith("# ") else f"# {TITLES[report.stem]}\n\n"
    text = f"{title}```{{include}} {os.path.relpath(report, file.parent)}\n:relative-images:\n```\n"
    file.parent.mkdir(exist_ok=True)
    if not file.exists() or file.read_text() != text:
      file.write_text(text)


def page_of(file):
  """The page that shows a file of the repository, if there is one."""
  pages = {report: f"/{page}.md" for page, report in reports().items()}
  pages |= {ROOT / "CHANGELOG.md": "/changelog.md", ROOT / "CONTRIBUTING.md": "/contributing.md"}
  pages |= {ROOT / "BUILD_NOTES.md": "/notes.md", ROOT / "README.md": "/index.md"}
  folders = {ROOT / "docs/tutorials": "/gallery/tutorials", ROOT / "examples": "/gallery/examples"}
  if file.parent in folders and file.suffix == ".py":
    return f"{folders[file.parent]}/{file.stem}.rst"
  return pages.get(file)


def to_pages(app, docname, content):
  """Turns links to files of the repository into links to the pages that show them."""
  folder = pathlib.Path(app.env.doc2path(docname)).parent

  def changed(found):
    return page_of(pathlib.Path(os.path.normpath(folder / found[1]))) or found[1]

  content[0] = LINK.sub(changed, content[0])


class LinksFromCode(SphinxTransform):
  """A public name in code font, as `adamnx` or `adamnx(1e-3)`, leads to its entry in the API."""

  default_priority = 400

  def apply(self, **kwargs):
    """Wraps the literals of a page."""
    if self.env.docname.startswith(("api/", "gallery/")):
      return
    for literal in list(self.document.findall(nodes.literal)):
      found = CODE.match(literal.astext())
      if not found or found[1] not in NAMES or isinstance(literal.parent, (nodes.reference, nodes.title)):
        continue
      of = {"refdomain": "py", "reftype": "obj", "reftarget": NAMES[found[1]], "refexplicit": True, "refwarn": True}
      link = addnodes.pending_xref("", **of)
      literal.replace_self(link)
      link += literal


def setup(app):
  """Connects with Sphinx."""
  app.connect("builder-inited", write_reports)
  app.connect("source-read", to_pages)
  app.add_transform(LinksFromCode)
  return {"parallel_read_safe": True}
