"""The papers' data: from the folder that OPTAX_EXT_DATA names, else from the original source through scikit-learn."""

import gzip
import os
import pathlib
import re
import tarfile
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

VARIABLE = "OPTAX_EXT_DATA"
SHAKESPEARE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


class Images(NamedTuple):
  """Pixels in [0, 1], (examples, height, width, channels), and labels (examples,)."""

  pixels: np.ndarray
  labels: np.ndarray


def california_housing() -> tuple[np.ndarray, np.ndarray]:
  """The eight raw columns of 20,640 districts, float32, and their median house values in dollars.

  Columns: longitude, latitude, median age, rooms, bedrooms, population, households, median income.

  Raises:
    ValueError: the data is neither in the folder nor can be fetched.
  """
  path = _file("california_housing.npz")
  if path:
    with np.load(path) as arrays:
      return np.asarray(arrays["x"], np.float32), np.asarray(arrays["y"], np.float32)
  return _fetched("California Housing", "california_housing.npz", _fetch_california)


def fashion_mnist() -> tuple[Images, Images]:
  """60,000 training and 10,000 test images of clothes, 28×28, ten classes.

  Raises:
    ValueError: the data is neither in the folder nor can be fetched.
  """
  if _file("fashion-mnist/train-images-idx3-ubyte.gz"):
    return _idx("train"), _idx("t10k")
  return _fetched("Fashion-MNIST", "fashion-mnist/train-images-idx3-ubyte.gz", _fetch_fashion_mnist)


def cifar_10() -> tuple[Images, Images]:
  """50,000 training and 10,000 test photographs, 32×32 in three colours, ten classes.

  Raises:
    ValueError: the data is neither in the folder nor can be fetched.
  """
  path = _file("cifar-10-binary.tar.gz")
  if path:
    with tarfile.open(path) as archive:
      return _cifar_part(archive, r"data_batch_\d.bin"), _cifar_part(archive, "test_batch.bin")
  return _fetched("CIFAR-10", "cifar-10-binary.tar.gz", _fetch_cifar_10)


def tiny_shakespeare() -> np.ndarray:
  """1,115,394 characters as int32 codes 0 to 64, in the order of the alphabet.

  Raises:
    ValueError: the data is neither in the folder nor can be fetched.
  """
  path = _file("tinyshakespeare.txt") or _fetched("tiny Shakespeare", "tinyshakespeare.txt", _fetch_shakespeare)
  text = np.frombuffer(pathlib.Path(path).read_bytes(), np.uint8)
  return np.unique(text, return_inverse=True)[1].astype(np.int32)


def _file(name: str) -> pathlib.Path | None:
  """A file of the folder; `None` where the variable is not set.

  Raises:
    ValueError: the variable is set, but the file is not there.
  """
  folder = os.environ.get(VARIABLE)
  if not folder:
    return None
  path = pathlib.Path(folder) / name
  if not path.is_file():
    raise ValueError(
      f"{VARIABLE} names the folder {folder!r}, but there is no {name} in it: add it, or unset {VARIABLE}."
    )
  return path


def _idx(part: str) -> Images:
  def read(kind: str, header: int) -> np.ndarray:
    path = _file(f"fashion-mnist/{part}-{kind}-ubyte.gz")
    assert path is not None
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)

  return _images(read("images-idx3", 16), read("labels-idx1", 8))


def _cifar_part(archive: tarfile.TarFile, pattern: str) -> Images:
  """The files of a part, in order; each example is its label and 3×32×32 bytes."""
  names = sorted(name for name in archive.getnames() if re.search(pattern, name))
  files = [archive.extractfile(name) for name in names]
  rows = np.concatenate([np.frombuffer(file.read(), np.uint8).reshape(-1, 3073) for file in files if file])
  return _images(rows[:, 1:], rows[:, 0], (3, 32, 32))


def _images(pixels: np.ndarray, labels: np.ndarray, shape: tuple[int, int, int] = (1, 28, 28)) -> Images:
  """From rows of channels × height × width."""
  images = (np.asarray(pixels, np.float32) / 255).reshape(-1, *shape)
  return Images(np.moveaxis(images, 1, -1), np.asarray(labels, np.int32))


def _fetched(what: str, name: str, fetch: Callable[[], Any]) -> Any:
  """What `fetch` gets from the network.

  Raises:
    ValueError: it gets nothing; what to do instead.
  """
  try:
    return fetch()
  except Exception as error:  # of the network, of the source, of what came
    reason = str(error).strip().partition("\n")[0]
    raise ValueError(
      f"{what} could not be fetched ({type(error).__name__}: {reason}): let {VARIABLE} name a folder that holds {name}."
    ) from error


def _fetch_california() -> tuple[np.ndarray, np.ndarray]:
  """scikit-learn has averages for each household where the original has totals of the district."""
  from sklearn.datasets import fetch_california_housing

  rows, value = fetch_california_housing(return_X_y=True)
  income, age, rooms, bedrooms, population, occupancy, latitude, longitude = np.asarray(rows, np.float64).T
  households = np.round(population / occupancy)
  totals = [np.round(rooms * households), np.round(bedrooms * households), population, households]
  columns = [longitude, latitude, age, *totals, income]
  return np.stack(columns, axis=1).astype(np.float32), np.asarray(np.round(value * 1e5), np.float32)


def _fetch_fashion_mnist() -> tuple[Images, Images]:
  return _from_openml("Fashion-MNIST", 60_000, (1, 28, 28))


def _fetch_cifar_10() -> tuple[Images, Images]:
  return _from_openml("CIFAR_10", 50_000, (3, 32, 32))


def _from_openml(name: str, train: int, shape: tuple[int, int, int]) -> tuple[Images, Images]:
  from sklearn.datasets import fetch_openml

  found: Any = fetch_openml(name, version=1, as_frame=False)
  images = _images(found.data, found.target, shape)
  return Images(*(part[:train] for part in images)), Images(*(part[train:] for part in images))


def _fetch_shakespeare() -> pathlib.Path:
  from sklearn.datasets import fetch_file

  return fetch_file(SHAKESPEARE, sha256=SHAKESPEARE_SHA256)
