"""The score matching family: what should agree does, on Gaussian data where every term has a closed form.

A linear score s = c - P x at points of N(mu, V) has J, its gradient and its variance over the
directions in closed form; the true one is P = V^-1, c = V^-1 mu.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GAUSSIAN, assert_mean

from score_jax import exact, losses, predict, shapes
from score_jax import score_matching as sm
from score_jax import sde as sdes
from score_jax.model import Model
from score_jax.types import Batch

SDE = sdes.vp()
NOISED_LOGP = exact.gaussian(GAUSSIAN.mean, GAUSSIAN.covariance)
EIGENVALUES = np.linalg.eigvalsh(GAUSSIAN.covariance)
WRONG = (np.array([[1.5, 0.3], [-0.4, 0.8]]), np.array([0.4, -0.2]))


def of_score(score, sde=SDE):
    """A model of the score: score(params, x, t)."""

    def predict_fn(params, x, t, label=None, *, keys=None, augment=None):
        return predict.read("score", sde, score(params, x, t), x, t)

    return Model(init=None, sde=lambda params: sde, predict=predict_fn)


LINEAR = of_score(lambda params, x, t: params[1] - x @ params[0].T)
FAMILY = {
    "implicit": sm.implicit,
    "sliced": sm.sliced,
    "sliced sphere": lambda *args, **kw: sm.sliced(
        *args, projection="sphere", n_projections=2, **kw
    ),
    "sliced_vr": lambda *args, **kw: sm.sliced_vr(*args, n_projections=2, **kw),
    "finite_difference": sm.finite_difference,
}


def gaussian_batch(key, n=32):
    data, examples = jax.random.split(key)
    root = np.linalg.cholesky(GAUSSIAN.covariance)
    x = GAUSSIAN.mean + jax.random.normal(data, (n, 2)) @ root.T
    return Batch(x, None, jax.random.split(examples, n), jnp.arange(n) / n)


def batch_of(x, seed=0):
    n = len(x)
    return Batch(x, None, jax.random.split(jax.random.key(seed), n), jnp.arange(n) / n)


def values(fn, params=WRONG, n=400):
    """fn(key of the times, params, batch) of n independent batches."""

    def one(key, params):
        times, examples = jax.random.split(key)
        return fn(times, params, gaussian_batch(examples))

    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params)
    return jax.jit(jax.vmap(one, (0, None)))(jax.random.split(jax.random.key(0), n), params)


def value(loss, params, batch):
    """The loss of one batch."""
    fn = jax.jit(lambda key, params, batch: loss(key, params, (), batch, 0)[0])
    return np.asarray(fn(jax.random.key(0), jax.tree.map(jnp.asarray, params), batch))


def level_coefficients(level):
    """alpha and sigma of x_t, and the unit of length, at a level of VP's."""
    if level == 0.0:
        return 1.0, 0.0, 1.0
    alpha = 1 / np.sqrt(1 + level**2)
    return alpha, level * alpha, level * alpha


@pytest.mark.parametrize("level", [0.0, None])
def test_every_objective_is_the_explicit_one_less_half_the_scores_square(level):
    """Per dimension scale^2 E ||grad log p||^2 less: of the eigenvalues l, the mean of 1 / l at the data.

    At s = alpha^2 / sigma^2 it is that of 1 / (1 + l s), whose mean over log s is [log s - log(1 + l
    s)].
    """
    if level is None:
        s = np.exp([float(end) for end in sdes.log_snr_ends(SDE)])
        integral = np.log(s) - np.log1p(np.outer(EIGENVALUES, s))
        constant = np.mean(integral[:, 0] - integral[:, 1]) / np.log(s[0] / s[1])
    else:
        alpha, sigma, scale = level_coefficients(level)
        constant = np.mean(scale**2 / (alpha**2 * EIGENVALUES + sigma**2))
    explicit = sm.explicit(LINEAR, noised_logp=NOISED_LOGP, level=level)
    others = [make(LINEAR, level=level) for make in FAMILY.values()]

    def differences(key, params, batch):
        whole = explicit(key, params, (), batch, 0)[0]
        return jnp.stack([whole - other(key, params, (), batch, 0)[0] for other in others])

    assert_mean(values(differences), np.full(len(FAMILY), constant))


@pytest.mark.parametrize("grid", ["all", "one"])
def test_denoising_is_explicit_matching_and_the_variance_that_noise_leaves(grid):
    """The mean of l s / (1 + l s), in the units of eps: over log s its integral is [log(1 + l s)]."""
    if grid == "all":
        s = np.exp([float(end) for end in sdes.log_snr_ends(SDE)])
        integral = np.log1p(np.outer(EIGENVALUES, s))
        constant = np.mean(integral[:, 0] - integral[:, 1]) / np.log(s[0] / s[1])
        explicit = sm.explicit(LINEAR, noised_logp=NOISED_LOGP)
        denoising = losses.denoising(LINEAR, weight=losses.simple)
    else:
        s = 0.7**-2
        constant = np.mean(EIGENVALUES * s / (1 + EIGENVALUES * s))
        at_level = lambda sde: lambda u: SDE.time_of_log_snr(np.log(s) + 0.0 * u)
        explicit = sm.explicit(LINEAR, noised_logp=NOISED_LOGP, level=0.7)
        denoising = losses.denoising(LINEAR, weight=losses.simple, grid=at_level)

    def difference(key, params, batch):
        pair = (loss(key, params, (), batch, 0)[0] for loss in (denoising, explicit))
        return jnp.subtract(*pair)[None]

    assert_mean(values(difference), constant)


@pytest.mark.parametrize("level", [0.0, 0.7])
@pytest.mark.parametrize("where", ["at the true score", "at a wrong one"])
def test_every_gradient_is_that_of_the_squared_distance_to_the_true_score(level, where):
    """The loss is quadratic in (P, c), so that a zero of this gradient is its minimum."""
    alpha, sigma, scale = level_coefficients(level)
    mean, variance = GAUSSIAN.moments((alpha, sigma))
    precision = np.linalg.inv(variance)
    params = (precision, precision @ mean) if where == "at the true score" else WRONG
    bias = params[1] - params[0] @ mean  # E[s - s*]
    of_c = 2 * scale**2 / 2 * bias
    of_p = -2 * scale**2 / 2 * (np.outer(bias, mean) + (precision - params[0]) @ variance)
    family = [make(LINEAR, level=level) for make in FAMILY.values()]
    family.append(sm.explicit(LINEAR, noised_logp=NOISED_LOGP, level=level))

    def gradients(key, params, batch):
        total = lambda params, loss: loss(key, params, (), batch, 0)[0]
        found = [jax.grad(total)(params, loss) for loss in family]
        return jnp.stack([jnp.append(p.ravel(), c) for p, c in found])

    found, truth = np.asarray(values(gradients, params)), np.append(of_p.ravel(), of_c)
    if where == "at the true score":
        np.testing.assert_allclose(truth, 0, atol=1e-12)
        # explicit's is zero in each draw
        np.testing.assert_allclose(found[:, -1], 0, atol=1e-4)
        found = found[:, :-1]
    assert_mean(found, np.broadcast_to(truth, found.shape[1:]))


WEIGHTS, MEANS, STD = np.array([0.4, 0.6]), np.array([[-0.9, 0.5], [0.7, -0.6]]), 0.5
MIXTURE = exact.mixture(WEIGHTS, MEANS, STD)
MIDDLE = WEIGHTS @ MEANS
SPREAD = (WEIGHTS * (MEANS - MIDDLE).T) @ (MEANS - MIDDLE) + STD**2 * np.eye(2)


class Bent:
    """Scores linear in (1, x, tanh(w . x + b)): w and b are the mixture's, whose score is one of them.

    That of two Gaussians of variance v at m_1 and m_2 is ((m_1 + m_2) / 2 + (m_1 - m_2) / 2 tanh - x) /
    v, where tanh is the difference of their posterior probabilities. Expectations are sums over a
    grid of points [n, 2] with the density's weights.
    """

    def __init__(self, data, level):
        alpha, sigma, self.scale = level_coefficients(level)
        variance = (alpha * STD) ** 2 + sigma**2
        first, second = means = alpha * MEANS
        self.w = (first - second) / (2 * variance)
        self.b = (second @ second - first @ first) / (4 * variance) + np.log(
            WEIGHTS[0] / WEIGHTS[1]
        ) / 2
        axis = np.linspace(-6, 6, 241)
        self.x = x = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
        if data == "mixture":
            square = np.sum((x[:, None] - means) ** 2, axis=2) / variance
            p = np.exp(-square / 2) @ WEIGHTS
            rows = [(first + second) / 2, *-np.eye(2), (first - second) / 2]
            self.truth = np.stack(rows) / variance
        else:
            p = np.exp(GAUSSIAN.logp(x, (alpha, sigma)))
            self.truth = linear_rows(*GAUSSIAN.moments((alpha, sigma)))
        self.p = p / p.sum()
        self.linear = linear_rows(alpha * MIDDLE, alpha**2 * SPREAD + sigma**2 * np.eye(2))
        self.model = of_score(lambda theta, x, t: self.features(x, jnp) @ theta)

    def features(self, x, np=np):
        tanh = np.tanh(x @ self.w + self.b)[:, None]
        return np.concatenate([np.ones_like(tanh), x, tanh], axis=1)

    def derivatives(self):
        """Of the features by x: [n, 2, 4]."""
        slope = 1 - self.features(self.x)[:, 3:] ** 2
        rows = np.zeros((len(self.x), 2, 4))
        rows[:, :, 1:3], rows[:, :, 3] = np.eye(2), slope * self.w
        return rows

    def gradients(self, theta):
        """Of J by each column of theta, E[phi s_i + d phi / dx_i] its mean: [n, 2, 4]."""
        phi = self.features(self.x)
        return phi[:, None] * (phi @ theta)[:, :, None] + self.derivatives()

    def product(self, a, b=None):
        """E sum_i a_i b_i^T of a and b [n, 2, 4]."""
        return np.einsum("n,nij,nik->jk", self.p, a, a if b is None else b)


def linear_rows(mean, covariance):
    """The score of N(mean, covariance) in the features' coordinates."""
    precision = np.linalg.inv(covariance)
    return np.stack([precision @ mean, *-precision, np.zeros(2)])


def drawn(data, key, n):
    components, noise, examples = jax.random.split(key, 3)
    noise = jax.random.normal(noise, (n, 2))
    if data == "gaussian":
        root = jnp.asarray(np.linalg.cholesky(GAUSSIAN.covariance))
        x = jnp.asarray(GAUSSIAN.mean) + noise @ root.T
    else:
        chosen = jax.random.choice(components, len(WEIGHTS), (n,), p=jnp.asarray(WEIGHTS))
        x = jnp.asarray(MEANS)[chosen] + STD * noise
    return Batch(x, None, jax.random.split(examples, n), jnp.arange(n) / n)


def family(model, data, level):
    logp = NOISED_LOGP if data == "gaussian" else MIXTURE
    found = {
        "explicit": sm.explicit(model, noised_logp=logp, level=level),
        "implicit": sm.implicit(model, level=level),
        "sliced": sm.sliced(model, level=level),
        "sliced_vr": sm.sliced_vr(model, level=level),
        "finite_difference": sm.finite_difference(model, level=level, step=0.02),
    }
    if level:
        found["denoising"] = losses.denoising(model, weight=losses.simple, level=level)
    return found


@pytest.mark.parametrize("level", [0.0, 0.4])
def test_on_a_mixture_every_gradient_is_zero_at_the_true_score_and_known_at_a_gaussians(level):
    """The Gaussian of the mixture's moments: nothing is left along linear functions, and more than 10
    standard errors along tanh.
    """
    bent = Bent("mixture", level)

    def gradients(key, theta):
        given = drawn("mixture", key, 32)
        total = lambda theta, loss: loss(key, theta, (), given, 0)[0]
        of = family(bent.model, "mixture", level).values()
        return jnp.stack([jax.grad(total)(theta, loss) for loss in of])

    run = jax.jit(jax.vmap(gradients, (0, None)))
    keys = jax.random.split(jax.random.key(0), 400)
    # explicit's is zero in each draw at the true score
    found = np.asarray(run(keys, jnp.asarray(bent.truth, jnp.float32)))
    np.testing.assert_allclose(found[:, 0], 0, atol=1e-4)
    assert_mean(found[:, 1:], 0.0)
    found = np.asarray(run(keys, jnp.asarray(bent.linear, jnp.float32)))
    known = bent.scale**2 * np.einsum("n,nij->ji", bent.p, bent.gradients(bent.linear))
    np.testing.assert_allclose(known[:3], 0, atol=1e-9)
    assert_mean(found, np.broadcast_to(known, found.shape[1:]))
    stderr = found.std(axis=0) / np.sqrt(len(found))
    assert np.all(np.max(np.abs(known[3]) / stderr[:, 3], axis=1) > 10)


@pytest.mark.parametrize("data", ["gaussian", "mixture"])
@pytest.mark.parametrize("level", [0.0, 0.7])
def test_the_score_fitted_to_points_is_the_true_one_up_to_the_known_sampling_error(
    x64, data, level
):
    """E ||s - s*||^2 / E ||s*||^2 of fits to n = 2000 points each, of which there are 100.

    The losses are quadratic in theta: one Newton step fits. With G = E phi phi^T and u_i the gradient
    of J by column i at the true score, of covariance C_i, the error is sum_i tr(G^-1 C_i) / n for large
    n. Of implicit matching sum_i C_i = E sum_i u_i u_i^T; slicing by random signs in D = 2 dimensions
    makes it D times that. Where only the Jacobian is sliced, d phi / dx_j adds its square D - 1 times,
    by signs or on the sphere. Denoising's u_i is phi (s_i + eps_i / sigma), E[Var(eps_i | x_t)] phi
    phi^T / sigma^2, where sum_i Var(eps_i | x_t) = D + sigma^2 div s*. Explicit's has none.
    """
    bent, n, replicates = Bent(data, level), 2000, 100
    phi, slopes = bent.features(bent.x), bent.derivatives()
    of = family(bent.model, data, level)

    def fits(key):
        given = drawn(data, key, n)
        theta = []
        for loss in of.values():
            gradient = jax.grad(lambda flat: loss(key, flat.reshape(4, 2), (), given, 0)[0])  # noqa: B023
            hessian = jax.jacfwd(gradient)(jnp.zeros(8))
            theta.append(-jnp.linalg.solve(hessian, gradient(jnp.zeros(8))).reshape(4, 2))
        return jnp.stack(theta)

    found = jax.jit(lambda keys: jax.lax.map(fits, keys))
    found = np.asarray(found(jax.random.split(jax.random.key(0), replicates)))
    np.testing.assert_allclose(
        found[:, 0], np.broadcast_to(bent.truth, found[:, 0].shape), atol=1e-6
    )
    assert_mean(found[:, 1:], np.broadcast_to(bent.truth, found[0, 1:].shape))

    whole = bent.product(bent.gradients(bent.truth))
    jacobian = bent.product(slopes)
    covariances = [whole, 2 * whole, whole + jacobian, whole + jacobian]
    if level:
        variance = 2 + bent.scale**2 * np.einsum("nij,ji->n", slopes, bent.truth)
        covariances.append(np.einsum("n,nj,nk->jk", bent.p * variance, phi, phi) / bent.scale**2)
    gram = np.einsum("n,nj,nk->jk", bent.p, phi, phi)
    square = bent.p @ np.sum((phi @ bent.truth) ** 2, axis=1)
    expected = [np.trace(np.linalg.solve(gram, c)) / n / square for c in covariances]
    off = found[:, 1:] - bent.truth
    errors = np.einsum("rmji,jk,rmki->rm", off, gram, off) / square
    assert_mean(errors, np.array(expected))


POINT = np.array([0.6, -1.1, 0.4])
MATRIX = np.array([[1.0, 0.7, -0.2], [0.1, 0.5, 0.4], [0.3, -0.6, 1.4]])
SHIFT = np.array([0.3, 0.2, -0.5])


def form_variance(a, projection):
    """Of v . A v for one direction v."""
    a, d = (a + a.T) / 2, len(a)
    return {
        "rademacher": 2 * (np.sum(a**2) - np.sum(np.diag(a) ** 2)),
        "gaussian": 2 * np.sum(a**2),
        "sphere": 2 * d / (d + 2) * (np.sum(a**2) - np.trace(a) ** 2 / d),
    }[projection]


@pytest.mark.parametrize("n_projections", [1, 4])
def test_over_the_directions_the_objective_has_the_variance_of_its_quadratic_form(n_projections):
    """At one point, 20000 draws. `sliced_vr`'s matrix is without s s^T / 2."""
    s = SHIFT - MATRIX @ POINT
    matrix = {"sliced": -MATRIX + 0.5 * np.outer(s, s), "sliced_vr": -MATRIX}
    value = (-np.trace(MATRIX) + 0.5 * s @ s) * 2 / 3
    cases = [(name, p) for name in matrix for p in sm.PROJECTIONS]
    family = [
        getattr(sm, name)(LINEAR, level=0.0, projection=projection, n_projections=n_projections)
        for name, projection in cases
    ]

    def one(key):
        batch = Batch(jnp.asarray(POINT, jnp.float32)[None], None, key[None], jnp.zeros(1))
        params = (jnp.asarray(MATRIX), jnp.asarray(SHIFT))
        return jnp.stack([loss(key, params, (), batch, 0)[0] for loss in family])

    found = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), 20000)))
    variances = [form_variance(matrix[name], projection) for name, projection in cases]
    assert_mean(found, np.full(len(cases), value))
    assert_mean((found - value) ** 2, np.array(variances) * (2 / 3) ** 2 / n_projections)


@pytest.mark.parametrize("n_projections", [1, 4])
def test_slicing_adds_two_over_m_to_the_estimators_variance(n_projections):
    """The (2/M) law of Song et al. 2019, on the estimator of theta in s = -theta L x, x of N(0, L^-1).

    Per example the gradient of implicit matching at theta = 1 is y . y - tr L, y of N(0, L), of
    variance 2 sum L_ij^2. A direction's is v . (y y^T - L) v, which adds 2 sum_{i != j} W_ij, W_ij =
    E (y_i y_j - L_ij)^2 = L_ii L_jj + L_ij^2, and W_ii too if it is Gaussian. The second derivative
    is tr L.
    """
    root = np.array([[1.0, 0.0, 0.0], [0.5, 0.8, 0.0], [-0.3, 0.6, 1.2]])
    precision = root @ root.T
    w = np.outer(np.diag(precision), np.diag(precision)) + precision**2
    added = {"rademacher": w.sum() - np.trace(w), "gaussian": w.sum()}
    model = of_score(lambda theta, x, t: -theta * x @ precision)
    n, replicates = 500, 1000

    def estimates(key):
        data, examples = jax.random.split(key)
        x = jnp.linalg.solve(root.T, jax.random.normal(data, (3, n))).T
        batch = Batch(x, None, jax.random.split(examples, n), jnp.zeros(n))

        def estimate(loss):
            gradient = jax.grad(lambda theta: loss(key, theta, (), batch, 0)[0])
            at_0, at_1 = gradient(0.0), gradient(1.0)
            return at_0 / (at_0 - at_1)

        options = dict(level=0.0, n_projections=n_projections)
        return jnp.stack(
            [estimate(sm.implicit(model, level=0.0))]
            + [estimate(sm.sliced(model, projection=p, **options)) for p in added]
        )

    found = jax.jit(jax.vmap(estimates))(jax.random.split(jax.random.key(2), replicates))
    extra = np.array([0.0, *added.values()])
    variance = 2 * np.sum(precision**2) + 2 / n_projections * extra
    assert_mean(n * (np.asarray(found) - 1) ** 2, variance / np.trace(precision) ** 2)


def test_the_directions_have_unit_covariance_and_the_spheres_a_fixed_length():
    for name, draw in sm.PROJECTIONS.items():
        v = np.asarray(draw(jax.random.key(0), (4000, 2, 3, 1), jnp.float32)).reshape(4000, 6)
        products = v[:, :, None] * v[:, None, :]
        above = np.triu_indices(6, 1)
        assert_mean(products[:, above[0], above[1]], 0.0)
        squares = np.square(v)
        if name == "rademacher":
            np.testing.assert_array_equal(squares, 1)
            continue
        assert_mean(squares, 1.0)
        if name == "sphere":
            np.testing.assert_allclose(squares.sum(axis=1), 6, rtol=1e-5)


CUBE = of_score(lambda params, x, t: x**3)


@pytest.mark.parametrize("level", [0.0, 0.7])
def test_the_difference_of_a_cubic_score_is_its_closed_form_draw_by_draw(x64, level):
    """In one dimension v = -1 or 1: 3 x^2 + h^2 + (x^3 + 3 h^2 x)^2 / 2, with h in units of the noise."""
    batch, step = batch_of(jnp.array([[0.3], [-1.2], [0.9]])), 0.2
    alpha, sigma, scale = level_coefficients(level)
    x = alpha * batch.x + sigma * shapes.normal(shapes.fold_in(batch.keys, 0), batch.x)
    h = step * scale
    expected = 2 * scale**2 * np.mean(3 * x**2 + h**2 + 0.5 * (x**3 + 3 * h**2 * x) ** 2)
    loss = sm.finite_difference(CUBE, level=level, step=step)
    np.testing.assert_allclose(value(loss, (), batch), expected, rtol=1e-9)


def test_the_error_of_differences_is_of_second_order_in_the_step_and_none_if_linear(x64):
    """Against `sliced_vr` along the same directions, two of them, in two dimensions."""
    batch = batch_of(jax.random.normal(jax.random.key(3), (16, 2)))
    options = dict(level=0.7, n_projections=2)

    def error(model, params, step):
        difference = sm.finite_difference(model, step=step, **options)
        exact_form = sm.sliced_vr(model, projection="sphere", **options)
        return value(difference, params, batch) - value(exact_form, params, batch)

    bent = of_score(lambda params, x, t: jnp.sin(x @ WRONG[0]))
    np.testing.assert_allclose(error(bent, (), 0.1) / error(bent, (), 0.05), 4, rtol=0.02)
    assert abs(error(LINEAR, WRONG, 0.1)) < 1e-12


@pytest.mark.parametrize("sde", [sdes.vp(), sdes.ve(), sdes.linear()], ids=["vp", "ve", "linear"])
def test_level_0_is_exactly_the_data_at_t_min(x64, sde):
    """Of events with axes. The true score's own trace and square, with nothing drawn."""
    batch = batch_of(jax.random.normal(jax.random.key(4), (3, 2, 2, 1)))
    model = of_score(lambda params, x, t: -2 * x * shapes.like(jnp.exp(t - sde.t_min), x), sde)
    x = np.asarray(batch.x)
    expected = 2 / 4 * (-8 + 0.5 * np.mean(np.sum(4 * x**2, axis=(1, 2, 3))))
    found = value(sm.implicit(model, level=0.0), (), batch)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_the_weight_multiplies_the_loss_by_time(x64):
    """Likelihood weighting of a grid uniform in log-SNR is a constant, half the range passed by all times."""
    batch = batch_of(jax.random.normal(jax.random.key(5), (8, 2)))
    found = [
        value(sm.sliced(LINEAR, weight=weight), WRONG, batch)
        for weight in (losses.likelihood, losses.simple)
    ]
    largest, smallest = sdes.log_snr_ends(SDE)
    np.testing.assert_allclose(found[0] / found[1], (largest - smallest) / 2, rtol=1e-6)


def test_the_loss_of_a_batch_is_the_mean_of_its_parts():
    whole = gaussian_batch(jax.random.key(3), 8)
    halves = [jax.tree.map(lambda a, part=part: a[part], whole) for part in (slice(4), slice(4, 8))]
    for name in ("sliced", "finite_difference"):
        loss = FAMILY[name](LINEAR)
        parts = [value(loss, WRONG, half) for half in halves]
        np.testing.assert_allclose(value(loss, WRONG, whole), np.mean(parts), rtol=1e-5)


def test_the_network_gets_the_label_the_augmentation_and_a_key_for_each_example():
    told = []

    def predict_fn(params, x, t, label=None, *, keys=None, augment=None):
        told.append((jax.random.key_data(keys), label, augment))
        return predict.read("score", SDE, -x, x, t)

    model = Model(init=None, sde=lambda params: SDE, predict=predict_fn)
    batch = gaussian_batch(jax.random.key(0), 4)
    batch = batch._replace(label=jnp.arange(4), augment=jnp.ones((4, 2)))
    family = [sm.explicit(model, noised_logp=NOISED_LOGP)]
    family += [make(model) for make in FAMILY.values()]

    @jax.jit
    def all_told():
        for loss in family:
            loss(jax.random.key(1), (), (), batch, 0)
        return told

    keys = jax.random.key_data(shapes.fold_in(batch.keys, 1))
    found = all_told()
    assert len(found) == len(family)
    for each in found:  # of a batch, or of several one after the other
        for given, expected in zip(each, (keys, batch.label, batch.augment), strict=True):
            for part in np.split(np.asarray(given), len(given) // 4):
                np.testing.assert_array_equal(part, expected)
