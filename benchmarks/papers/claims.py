"""What the papers say, in numbers, beside which the report sets ours."""

from typing import NamedTuple


class Regression(NamedTuple):
  """A row of CaAdam's Tables I and III: California Housing."""

  rmse: float
  epochs: float
  gain: float  # the RMSE below Adam's, in % of it


ARMS: tuple[str, ...] = (
  "adam",
  "adamw",
  "adamax",
  "nadam",
  "additive, as published",
  "multiplicative, as published",
  "depth, as published",
)
_COLUMNS = {  # network: RMSE, epochs and gain of each arm
  "64-32": (
    (0.466, 0.466, 0.472, 0.465, 0.463, 0.446, 0.464),
    (170.43, 147.23, 322.87, 130.17, 119.00, 111.87, 138.30),
    (0.00, 0.06, -1.24, 0.31, 0.61, 2.07, 0.41),
  ),
  "128-64-32": (
    (0.459, 0.459, 0.467, 0.460, 0.451, 0.446, 0.454),
    (88.27, 86.50, 155.07, 80.87, 77.37, 70.73, 86.30),
    (0.00, 0.18, -1.68, -0.17, 1.77, 2.87, 1.26),
  ),
  "128-128-64": (
    (0.456, 0.456, 0.464, 0.456, 0.451, 0.446, 0.452),
    (76.57, 77.07, 111.53, 75.33, 68.83, 69.50, 73.33),
    (0.00, 0.06, -1.82, 0.08, 1.14, 2.24, 0.99),
  ),
  "256-128-64-32": (
    (0.452, 0.451, 0.459, 0.454, 0.447, 0.446, 0.448),
    (68.83, 68.57, 96.47, 67.43, 64.47, 67.93, 68.40),
    (0.00, 0.27, -1.52, -0.30, 1.15, 1.43, 0.93),
  ),
  "128-128-128-128-128": (
    (0.455, 0.453, 0.464, 0.454, 0.450, 0.448, 0.450),
    (61.33, 58.27, 72.60, 60.80, 56.83, 61.13, 59.87),
    (0.00, 0.25, -2.06, 0.09, 1.07, 1.44, 1.08),
  ),
  "1024-256-64-16": (
    (0.442, 0.442, 0.452, 0.441, 0.440, 0.443, 0.440),
    (72.50, 72.83, 93.00, 75.77, 69.00, 68.87, 71.03),
    (0.00, 0.00, -2.23, 0.22, 0.49, -0.26, 0.50),
  ),
}
CALIFORNIA: dict[str, dict[str, Regression]] = {
  network: dict(zip(ARMS, map(Regression, *columns), strict=True)) for network, columns in _COLUMNS.items()
}

# CaAdam on Fashion-MNIST: what it adds to the accuracy, in % of Adam's (Table IV), and Adam's in % (Table II).
FASHION_MNIST = {"additive": 0.31, "multiplicative": -0.02, "depth": 0.39}
FASHION_MNIST_ADAM = 92.3

# EXAdam on Shakespeare: training loss and validation loss after the last step (Table 3).
SHAKESPEARE = {
  "exadam": (0.611, 1.794),
  "adam": (1.322, 1.567),
  "adamw": (1.324, 1.560),
  "ademamix": (1.287, 1.545),
  "signum": (0.972, 1.530),
  "adafactor": (0.813, 1.682),
  "sgd": (2.744, 2.766),
}
