"""The posterior of Gaussian-mixture data under a linear measurement, in closed form and numpy's float64.

x ~ sum_k w_k N(m_k, C_k), y = A x + std n: given y it is a mixture again, each component by the
Kalman update and weighted by its evidence,

    S_k = A C_k A^T + std^2 I,    G_k = C_k A^T S_k^-1,    w_k N(y; A m_k, S_k),
    mean  m_k + G_k (y - A m_k),    covariance  C_k - G_k A C_k.
"""

from typing import NamedTuple

import numpy as np


class Mixture(NamedTuple):
    """weights [k], means [k, d], covariances [k, d, d]."""

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray


def posterior(prior: Mixture, a: np.ndarray, std: float, y: np.ndarray) -> tuple[Mixture, float]:
    """The mixture given y [m], a [m, d], and log p(y) in nats."""
    innovations = a @ prior.covariances @ a.T + std**2 * np.eye(len(a))
    gains = prior.covariances @ a.T @ np.linalg.inv(innovations)
    residuals = y - prior.means @ a.T
    solved = np.linalg.solve(innovations, residuals[..., None])[..., 0]
    _, log_dets = np.linalg.slogdet(2 * np.pi * innovations)
    log_joint = np.log(prior.weights) - 0.5 * (np.sum(residuals * solved, axis=1) + log_dets)
    log_evidence = np.logaddexp.reduce(log_joint)
    return Mixture(
        np.exp(log_joint - log_evidence),
        prior.means + np.einsum("kdm,km->kd", gains, residuals),
        prior.covariances - gains @ a @ prior.covariances,
    ), float(log_evidence)


def moments(mixture: Mixture) -> tuple[np.ndarray, np.ndarray]:
    """Mean [d] and covariance [d, d]."""
    mean = mixture.weights @ mixture.means
    apart = mixture.means - mean
    within = np.tensordot(mixture.weights, mixture.covariances, axes=1)
    return mean, within + (mixture.weights[:, None] * apart).T @ apart


def draw(rng: np.random.Generator, mixture: Mixture, n: int) -> np.ndarray:
    """n independent samples [n, d]."""
    chosen = rng.choice(len(mixture.weights), n, p=mixture.weights)
    roots = np.linalg.cholesky(mixture.covariances)
    z = rng.standard_normal((n, mixture.means.shape[1]))
    return mixture.means[chosen] + np.einsum("nij,nj->ni", roots[chosen], z)
