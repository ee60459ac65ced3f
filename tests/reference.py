"""The four papers' equations in NumPy float64, written from the papers. Shares nothing with the library.

Each function runs `steps` steps and returns the parameters after each, an array of shape (steps + 1, ...). `gradient`
maps (t, params) to the gradient of step t ≥ 1.
"""

import numpy as np


def exadam(params, gradient, steps, lr=1e-3, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, decay=0.0, log_step=True):
  m = v = np.zeros_like(params)
  path = [params]
  for t in range(1, steps + 1):
    p, g = path[-1], gradient(t, path[-1])
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * g**2
    c1, c2 = 1 - b1**t, 1 - b2**t
    d1 = 1 + b2**t * v / (v + eps)
    d2 = 1 + b1**t * m**2 / (m**2 + eps)
    m_tilde, v_tilde, g_tilde = m / c1 * d1, v / c2 * d2, g / c1 * d1
    step_size = lr * np.log(np.sqrt(2) * np.sqrt(t + 1)) if log_step else lr
    path.append(p * (1 - lr * decay) - step_size * (m_tilde + g_tilde) / (np.sqrt(v_tilde + eps_root) + eps))
  return np.stack(path)


def adamnx(params, gradient, steps, lr=1e-3, b1=0.9, b2=0.99, eps=1e-8, eps_root=0.0, decay=0.01):
  m = v = np.zeros_like(params)
  path, k = [params], 1 - b2
  for t in range(1, steps + 1):
    p, g = path[-1], gradient(t, path[-1])
    b1_t = (b1 - b1**t) / (1 - b1**t)
    b2_t = (1 - b2 ** (k * (t - 1))) / (1 - b2 ** (k * t))
    m = b1_t * m + (1 - b1_t) * g
    v = b2_t * v + (1 - b2_t) * g**2
    path.append(p * (1 - lr * decay) - lr * m / (np.sqrt(v + eps_root) + eps))
  return np.stack(path)


def caadam(params, gradient, steps, scale, lr=1e-3, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, decay=0.0):
  m = v = np.zeros_like(params)
  path = [params]
  for t in range(1, steps + 1):
    p, g = path[-1], gradient(t, path[-1])
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * g**2
    m_hat, v_hat = m / (1 - b1**t), v / (1 - b2**t)
    path.append(p * (1 - lr * decay) - lr * scale * m_hat / (np.sqrt(v_hat + eps_root) + eps))
  return np.stack(path)


def nd_adam(params, gradient, steps, axes, lr=5e-2, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0):
  """Of one weight whose vectors run along `axes`; the scalars take Adam's step, which is `caadam` with scale 1."""

  def dot(a, b):
    return (a * b).sum(axis=axes, keepdims=True)

  m, v = np.zeros_like(params), np.zeros_like(dot(params, params))
  path = [params]
  for t in range(1, steps + 1):
    w, g = path[-1], gradient(t, path[-1])
    length2 = dot(w, w)
    g = g - np.where(length2 > 0, dot(g, w) / np.where(length2 > 0, length2, 1), 0) * w
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * dot(g, g)
    m_hat, v_hat = m / (1 - b1**t), v / (1 - b2**t)
    w = w - lr * m_hat / (np.sqrt(v_hat + eps_root) + eps)
    length = np.sqrt(dot(w, w))
    path.append(np.where(length > 0, w / np.where(length > 0, length, 1), 0))
  return np.stack(path)


def additive(count, counts, gamma):
  low, middle, high = min(counts), np.median(counts), max(counts)
  if count <= middle:
    return 1 + gamma * (middle - count) / (middle - low) if count != middle else 1.0
  return 1 - gamma * (count - middle) / (high - middle)


def multiplicative(count, counts, gamma, signed=False):
  low, middle, high = min(counts), np.median(counts), max(counts)
  if count <= middle:
    return gamma ** ((middle - count) / (middle - low)) if count != middle else 1.0
  sigma = (count - middle) / (high - middle)
  return gamma ** (-sigma if signed else sigma)


def by_depth(depth, num_layers, gamma):
  return (1 + gamma) ** ((num_layers - (1 + depth)) / num_layers)
