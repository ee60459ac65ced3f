"""How the gallery shows the scripts of `examples/`.

Each gets a title, since its docstring is the help of its command line. The fast ones run with few epochs, and the
pictures that they save are shown.
"""

import pathlib
import shutil
import tempfile

from sphinx_gallery.scrapers import figure_rst

TITLES = {
  "compose": "Optimizers made of pieces",
  "digits": "What the examples share",
  "structure": "The layers of a ResNet and of a GPT",
  "train_digits": "Optimizers side by side in Flax NNX",
  "train_digits_linen": "Optimizers side by side in Flax linen",
  "train_sharded": "Sharded training that restarts",
}
OUT = pathlib.Path(tempfile.mkdtemp())
ARGUMENTS = {
  "structure.py": [str(OUT)],
  "train_digits_linen.py": ["--epochs", "6", "--optimizers", "adam", "adamnx", "nd_adam", "--out", str(OUT)],
}


def arguments(gallery_conf, script_vars):
  """The command line of a script."""
  return ARGUMENTS.get(pathlib.Path(script_vars["src_file"]).name, [])


def saved_pictures(block, block_vars, gallery_conf):
  """The pictures that the last block of a script has saved, as reStructuredText."""
  shown = []
  for picture in sorted(OUT.glob("*.png")):
    shown.append(next(block_vars["image_path_iterator"]))
    shutil.move(picture, shown[-1])
  return figure_rst(shown, gallery_conf["src_dir"])


def with_title(app, docname, content):
  """Gives the page of an example its title, after the label at its start."""
  folder, _, script = docname.rpartition("/")
  if folder == "gallery/examples" and script in TITLES:
    label = f".. _sphx_glr_gallery_examples_{script}.py:\n"
    assert label in content[0]
    content[0] = content[0].replace(label, f"{label}\n{TITLES[script]}\n{'=' * len(TITLES[script])}\n", 1)


def setup(app):
  """Connects with Sphinx."""
  app.connect("source-read", with_title)
  return {"parallel_read_safe": True}
