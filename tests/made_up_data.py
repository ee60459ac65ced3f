"""Writes made-up data with the names, shapes and kinds of the papers': `python tests/made_up_data.py FOLDER`."""

import gzip
import io
import pathlib
import sys
import tarfile

import numpy as np


def write(folder: pathlib.Path) -> None:
  """California Housing of full size, 600 and 200 images, 100 and 20 photographs, 40,000 characters."""
  rng = np.random.default_rng(0)
  x = rng.normal(3, 2, (20640, 8)).astype(np.float32)
  (folder / "fashion-mnist").mkdir(parents=True, exist_ok=True)
  np.savez(folder / "california_housing.npz", x=x, y=1000 * (x @ np.arange(8)) + x[:, 0] ** 2)
  (folder / "tinyshakespeare.txt").write_text("to be, or not to be. " * 2000, "ascii")
  for part, examples in [("train", 600), ("t10k", 200)]:
    pixels = bytes(16) + np.arange(examples * 784).astype(np.uint8).tobytes()
    labels = bytes(8) + (np.arange(examples) % 10).astype(np.uint8).tobytes()
    for kind, content in [("images-idx3", pixels), ("labels-idx1", labels)]:
      (folder / "fashion-mnist" / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(content, 1))
  with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz", compresslevel=1) as archive:
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
      content = b"".join(bytes([i % 10, *((p % 251 + i) % 256 for p in range(3072))]) for i in range(20))
      member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
      member.size = len(content)
      archive.addfile(member, io.BytesIO(content))


if __name__ == "__main__":
  write(pathlib.Path(sys.argv[1]))
