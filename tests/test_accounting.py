"""Epsilons against dp-accounting composed by hand, closed forms, quadrature, and all that a client could do by brute
force.
"""

import itertools
import math

import dp_accounting as dp
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import one_line
from dp_accounting import NeighboringRelation, pld, rdp
from jax_privacy.matrix_factorization import toeplitz as library
from scipy.stats import norm

from fedjax_sim import InputError
from fedjax_sim.privacy import accounting
from fedjax_sim.privacy.accounting import (
    calibrate,
    discrete_gaussian_spending,
    example_bound,
    example_spending,
    gaussian_spending,
    laplace_spending,
    matrix_sensitivity,
    matrix_spending,
)
from fedjax_sim.privacy.losses import least_epsilon

DELTA = 1e-5
ADD, REPLACE = NeighboringRelation.ADD_OR_REMOVE_ONE, NeighboringRelation.REPLACE_ONE


def by_pld(event: dp.DpEvent, times: int) -> float:
    return pld.PLDAccountant().compose(event, times).get_epsilon(DELTA)


def by_rdp(event: dp.DpEvent, times: int, relation: NeighboringRelation = ADD) -> float:
    return rdp.RdpAccountant(neighboring_relation=relation).compose(event, times).get_epsilon(DELTA)


def gaussian_delta(epsilon: float, deviation: float) -> float:
    """Of one Gaussian mechanism of sensitivity 1, exactly (Balle and Wang 2018, theorem 8)."""
    half = 1 / (2 * deviation)
    return float(norm.cdf(half - epsilon * deviation) - math.exp(epsilon) * norm.cdf(-half - epsilon * deviation))


def assert_a_little_over(coarse: float, fine: float) -> None:
    """Epsilon on the module's grid and on the library's, which is ten times finer: errors go upwards."""
    assert fine * (1 - 1e-6) - 1e-4 <= coarse <= fine * (1 + 2e-3)


# --- against dp-accounting -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("multiplier", "rate", "rounds"), [(2.0, 0.1, 3), (3.0, 0.3, 40), (2.0, 0.05, 100)])
def test_sampled_gaussian_noise(multiplier: float, rate: float, rounds: int) -> None:
    event = dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(multiplier))
    spending = gaussian_spending(multiplier, delta=DELTA, rate=rate)
    assert (spending.relation, spending.accountant, spending.sampled) == ("add or remove one", "pld", True)
    fine = by_pld(event, rounds)
    assert_a_little_over(spending.epsilon(rounds), fine)
    looser = gaussian_spending(multiplier, delta=DELTA, rate=rate, method="rdp")
    assert looser.epsilon(rounds) == pytest.approx(by_rdp(event, rounds), rel=1e-9)
    assert looser.epsilon(rounds) > 1.05 * fine


@pytest.mark.parametrize("distance", [1.0, 2.0])  # public participation; local noise
@pytest.mark.parametrize(("multiplier", "times"), [(0.7, 1), (4.0, 5), (30.0, 1000)])
def test_gaussian_noise_without_sampling_is_exact(multiplier: float, times: int, distance: float) -> None:
    spending = gaussian_spending(multiplier, delta=DELTA, distance=distance)
    assert not spending.sampled
    assert spending.relation == ("replace one" if distance == 2 else "zero out one")
    deviation = multiplier / distance / math.sqrt(times)
    assert gaussian_delta(spending.epsilon(times), deviation) == pytest.approx(DELTA, rel=1e-3)
    looser = gaussian_spending(multiplier, delta=DELTA, distance=distance, method="rdp").epsilon(times)
    assert looser == pytest.approx(by_rdp(dp.GaussianDpEvent(multiplier / distance), times), rel=1e-9)
    assert looser > spending.epsilon(times)


@pytest.mark.parametrize(("multiplier", "rate", "rounds"), [(1.0, 0.1, 10), (5.0, 0.3, 40), (5.0, 1.0, 40)])
def test_laplace_noise(multiplier: float, rate: float, rounds: int) -> None:
    event = dp.LaplaceDpEvent(multiplier)
    fine = by_pld(event if rate == 1 else dp.PoissonSampledDpEvent(rate, event), rounds)
    sampled = laplace_spending(multiplier, delta=DELTA, rate=rate)
    assert (sampled.relation, sampled.accountant, sampled.sampled) == ("add or remove one", "pld", True)
    assert_a_little_over(sampled.epsilon(rounds), fine)
    if rate == 1:
        public = laplace_spending(multiplier, delta=DELTA)
        assert (public.relation, public.sampled) == ("zero out one", False)
        assert public.epsilon(rounds) == pytest.approx(sampled.epsilon(rounds), rel=1e-9)


def test_local_laplace_noise() -> None:
    spending = laplace_spending(10.0, delta=DELTA, distance=2)
    assert (spending.relation, spending.sampled) == ("replace one", False)
    assert_a_little_over(spending.epsilon(40), by_pld(dp.LaplaceDpEvent(5.0), 40))
    looser = laplace_spending(10.0, delta=DELTA, distance=2, method="rdp")
    assert looser.epsilon(40) == pytest.approx(by_rdp(dp.LaplaceDpEvent(5.0), 40), rel=1e-9)


@pytest.mark.parametrize(("multiplier", "cohort"), [(2.0, (10, 100)), (4.0, (8, 8)), (4.0, (7, 8))])
def test_cohorts_of_a_fixed_size(multiplier: float, cohort: tuple[int, int]) -> None:
    # A client whose message was c becomes one whose message is -c: the sum moves by 2c, so that noise of z clip norms
    # is noise of z / 2 sensitivities, which is what the library means by a multiplier.
    event = dp.SampledWithoutReplacementDpEvent(cohort[1], cohort[0], dp.GaussianDpEvent(multiplier / 2))
    renyi = by_rdp(event, 40, REPLACE)
    alone = gaussian_spending(multiplier, delta=DELTA, distance=2).epsilon(40)  # as if it took part in every round
    spending = gaussian_spending(multiplier, delta=DELTA, cohort=cohort)
    assert (spending.relation, spending.accountant, spending.sampled) == ("replace one", "pld", True)
    assert spending.epsilon(40) <= min(renyi, alone)
    if cohort[0] < cohort[1]:
        looser = gaussian_spending(multiplier, delta=DELTA, cohort=cohort, method="rdp")
        assert (looser.accountant, looser.epsilon(40)) == ("rdp", pytest.approx(min(renyi, alone), rel=1e-9))
        assert spending.epsilon(40) < 0.99 * looser.epsilon(40)
    else:
        assert spending.epsilon(40) == alone


def test_a_cohort_of_a_fixed_size_is_never_worse_than_no_sampling() -> None:
    """10 of 20 clients, epsilon 8 at delta 0.005 over 100 rounds: what RDP alone asks for is over 9.8 clip norms."""
    alone = calibrate(lambda z: gaussian_spending(z, delta=0.005, distance=2), 100, 8.0)
    assert alone == pytest.approx(8.62, abs=0.01)
    poisson = calibrate(lambda z: gaussian_spending(z, delta=0.005, rate=0.5), 100, 8.0)
    assert poisson == pytest.approx(2.24, abs=0.01)
    fixed = calibrate(lambda z: gaussian_spending(z, delta=0.005, cohort=(10, 20)), 100, 8.0)
    assert 2 * poisson < fixed < 1.1 * 2 * poisson  # twice the sensitivity, and the worse of both directions
    assert gaussian_spending(alone, delta=0.005, cohort=(10, 20), method="rdp").epsilon(100) <= 8.0
    for rate in (0.2, 0.99):  # noise of next to nothing, where RDP is loose
        little = gaussian_spending(0.2, delta=DELTA, rate=rate)
        assert little.epsilon(3) <= gaussian_spending(0.2, delta=DELTA).epsilon(3)


def test_cohorts_of_a_fixed_size_cover_the_worst_that_one_client_can_do() -> None:
    # One client sends +1 or -1 clip norms and takes part with chance q; where it does not, `other` takes its place.
    multiplier, q, rounds, delta = 1.5, 0.6, 10, 0.01
    edges = np.linspace(-12, 12, 1201)  # the noisy sum, cut into bins: no more can be told from it than from itself
    distributions = pld.privacy_loss_distribution

    def bins(mean: float, other: float) -> dict[int, float]:
        inside = np.diff((1 - q) * norm.cdf(edges, other, multiplier) + q * norm.cdf(edges, mean, multiplier))
        return dict(enumerate(np.log(np.maximum(inside / inside.sum(), 1e-300))))

    exact = [
        distributions.from_two_probability_mass_functions(
            bins(-sign, other), bins(sign, other), pessimistic_estimate=False,
            value_discretization_interval=accounting.GRID,
        ).self_compose(rounds).get_epsilon_for_delta(delta)
        for other in (-1.0, 0.0, 1.0) for sign in (1.0, -1.0)
    ]  # fmt: skip
    bound = gaussian_spending(multiplier, delta=delta, cohort=(6, 10)).epsilon(rounds)
    assert 0.9 * bound < max(exact) <= bound
    poisson = distributions.from_gaussian_mechanism(
        multiplier, sampling_prob=q, value_discretization_interval=accounting.GRID, neighboring_relation=REPLACE
    )  # where nobody takes the place of who is not drawn
    assert poisson.self_compose(rounds).get_epsilon_for_delta(delta) < 0.8 * max(exact)


def test_abadi_et_al_2016() -> None:
    # "Deep learning with differential privacy", section 3: q 0.01, sigma 4, 10,000 steps, delta 1e-5 give 1.26.
    exact, renyi = 0.947, 1.035
    event = dp.PoissonSampledDpEvent(0.01, dp.GaussianDpEvent(4.0))
    assert by_pld(event, 10_000) == pytest.approx(exact, rel=1e-2)
    coarse = gaussian_spending(4.0, delta=DELTA, rate=0.01).epsilon(10_000)
    assert exact * (1 - 1e-3) < coarse < exact * 1.02  # rounding upwards adds up over so many steps
    looser = gaussian_spending(4.0, delta=DELTA, rate=0.01, method="rdp").epsilon(10_000)
    assert looser == pytest.approx(renyi, rel=1e-2)
    assert coarse < looser < 1.26


# --- sums of epsilons ------------------------------------------------------------------------------------------------


def test_laplace_accountants_in_order() -> None:
    epsilons = {}
    for method in ("pld", "rdp", "sum"):
        spending = laplace_spending(5.0, delta=DELTA, method=method)
        assert spending.accountant == method
        epsilons[method] = spending.epsilon(40)
    assert epsilons["sum"] == 8.0
    assert epsilons["pld"] < epsilons["rdp"] < epsilons["sum"]
    assert epsilons["rdp"] == pytest.approx(by_rdp(dp.LaplaceDpEvent(5.0), 40), rel=1e-9)
    pure = laplace_spending(5.0, delta=0)
    assert (pure.accountant, pure.delta, pure.epsilon(40)) == ("sum", 0.0, 8.0)
    assert laplace_spending(5.0, delta=DELTA, method="sum").delta == 0  # which it does not need
    assert laplace_spending(5.0, delta=0, distance=2).epsilon(40) == 16.0


def test_amplification_of_pure_privacy() -> None:
    half = laplace_spending(1.0, delta=0, rate=0.5)  # log((1 + e) / 2) in a round
    assert half.epsilon(1) == pytest.approx(0.6201145069582775, rel=1e-12)
    assert half.epsilon(7) == pytest.approx(7 * 0.6201145069582775, rel=1e-12)
    assert laplace_spending(1.0, delta=0, rate=1.0).epsilon(1) == pytest.approx(1.0, rel=1e-12)
    # noise of next to nothing: e^1000 is no number, but log(1 + q (e^1000 - 1)) is 1000 + log q
    assert laplace_spending(1e-3, delta=0, rate=0.1).epsilon(2) == pytest.approx(2 * (1000 - math.log(10)), rel=1e-12)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_amplified_laplace_noise_reaches_its_bound_and_no_more(rate: float) -> None:
    """The largest privacy loss of one round, by density ratios: what pure privacy is."""
    x = np.linspace(-20, 20, 4001)
    without, shifted = np.exp(-np.abs(x) / 2), np.exp(-np.abs(x - 1) / 2)  # scale 2, moved by a clip norm
    loss = np.abs(np.log(((1 - rate) * without + rate * shifted) / without)).max()
    assert laplace_spending(2.0, delta=0, rate=rate).epsilon(1) == pytest.approx(loss, rel=1e-9)


# --- how it adds up --------------------------------------------------------------------------------------------------


def all_spendings(multiplier: float) -> dict[str, accounting.Spending]:
    return {  # one for every way of adding up
        "laplace, sampled": laplace_spending(multiplier, delta=DELTA, rate=0.3),
        "laplace": laplace_spending(multiplier, delta=DELTA),
        "laplace, sum": laplace_spending(multiplier, delta=0),
        "gaussian": gaussian_spending(multiplier, delta=DELTA),
        "gaussian, fixed size": gaussian_spending(multiplier, delta=DELTA, cohort=(10, 100)),
        "discrete": discrete_gaussian_spending(multiplier, delta=DELTA, clip_norm=1.0, step=2**-10, entries=64,
                                               clients=10),
        "matrix": matrix_spending(multiplier, [0.8, 0.6], delta=DELTA, separation=3, rounds=64),
    }  # fmt: skip


def test_epsilon_grows_with_rounds_and_falls_with_noise() -> None:
    little, much = all_spendings(4.0), all_spendings(6.0)
    for name in little:
        epsilons = [little[name].epsilon(times) for times in (0, 1, 4, 31, 32, 33, 64)]
        assert epsilons[0] == 0, name
        assert (np.diff(epsilons) >= 0).all(), name
        assert min(np.diff(epsilons)[[0, 1, 2, 5]]) > 0, name
        assert much[name].epsilon(0) == 0, name
        assert much[name].epsilon(33) < epsilons[5], name


def test_rounds_in_which_nobody_can_come_again_are_free() -> None:
    spending = matrix_spending(4.0, [0.8, 0.6], delta=DELTA, separation=3, rounds=64)
    epsilons = [spending.epsilon(times) for times in range(1, 8)]
    # a client that came in round 1 fills its column of two bands by round 2, and comes again in round 4 at the earliest
    assert epsilons[0] < epsilons[1] == epsilons[2] < epsilons[3] < epsilons[4] == epsilons[5] < epsilons[6]


def test_epsilon_does_not_depend_on_what_was_asked_before() -> None:
    def fresh() -> accounting.Spending:
        return gaussian_spending(3.0, delta=DELTA, rate=0.3)

    asked = (1, 2, 30, 31, 32, 33, 34, 63, 64)
    forwards, backwards = fresh(), fresh()
    first = [forwards.epsilon(times) for times in asked]
    assert [backwards.epsilon(times) for times in reversed(asked)] == first[::-1]
    assert fresh().epsilon(33) == first[5]
    assert (np.diff(first) > 0).all()
    one = pld.privacy_loss_distribution.from_gaussian_mechanism(
        3.0, sampling_prob=0.3, value_discretization_interval=accounting.GRID
    )
    for times, epsilon in zip(asked, first, strict=True):
        assert epsilon == pytest.approx(one.self_compose(times).get_epsilon_for_delta(DELTA), rel=1e-6)


@pytest.mark.parametrize(("times", "delta"), [(1, 0.4), (1, 1e-3), (50, 1e-3), (50, 1e-9)])
def test_epsilon_of_a_distribution_is_the_librarys(times: int, delta: float) -> None:
    distributions = pld.privacy_loss_distribution
    for one in (
        distributions.from_gaussian_mechanism(1.0, sampling_prob=0.2, value_discretization_interval=accounting.GRID),
        distributions.from_laplace_mechanism(5.0, value_discretization_interval=accounting.GRID),
    ):
        found = one.self_compose(times) if times > 1 else one
        assert least_epsilon(found, delta) == pytest.approx(found.get_epsilon_for_delta(delta), rel=1e-9)
    assert (
        least_epsilon(distributions.from_gaussian_mechanism(0.1, value_discretization_interval=0.1), 1e-30) == math.inf
    )


# --- the noise for a budget ------------------------------------------------------------------------------------------

DISCRETE = {"clip_norm": 1.0, "step": 2**-10, "entries": 64, "clients": 10}
TARGETS = {
    "gaussian": (lambda z: gaussian_spending(z, delta=DELTA), 50, 2.0),
    "much noise": (lambda z: gaussian_spending(z, delta=DELTA), 1000, 0.05),
    "little noise": (lambda z: gaussian_spending(z, delta=DELTA), 1, 500.0),
    "sampled": (lambda z: laplace_spending(z, delta=DELTA, rate=0.3), 10, 3.0),
    "discrete": (lambda z: discrete_gaussian_spending(z, delta=DELTA, **DISCRETE), 50, 2.0),
    "matrix": (lambda z: matrix_spending(z, [0.8, 0.6], delta=DELTA, separation=3, rounds=20), 20, 1.0),
}  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
def test_the_least_noise_for_a_budget(target: str) -> None:
    spending, rounds, epsilon = TARGETS[target]
    multiplier = calibrate(spending, rounds, epsilon)
    assert spending(multiplier).epsilon(rounds) <= epsilon
    assert spending(0.998 * multiplier).epsilon(rounds) > epsilon


def test_few_trials_find_the_noise_and_none_where_it_is_known() -> None:
    tried = []

    def spending(multiplier: float) -> accounting.Spending:
        tried.append(multiplier)
        return gaussian_spending(multiplier, delta=DELTA, rate=0.3)

    first = calibrate(spending, 64, 3.0)
    assert len(tried) <= 10  # halving what is between 1 and 4 takes 12 and more
    assert calibrate(spending, 64, 3.0) == first
    assert len(tried) <= 10


def test_the_noise_of_a_pure_budget_by_hand() -> None:
    assert calibrate(lambda z: laplace_spending(z, delta=0), 30, 1.5) == pytest.approx(20, rel=1.001e-3)
    assert calibrate(lambda z: laplace_spending(z, delta=0, distance=2), 30, 1.5) == pytest.approx(40, rel=1.001e-3)


# --- matrices --------------------------------------------------------------------------------------------------------


def dense(coefficients: list[float], rounds: int) -> np.ndarray:
    return np.sum([c * np.eye(rounds, k=-k) for k, c in enumerate(coefficients[:rounds])], axis=0)


def farthest(matrix: np.ndarray, separation: int) -> float:
    """How far messages of norm 1 move what a matrix hides, over every pattern of turns and every sign."""
    rounds, found = len(matrix), 0.0
    for turns in itertools.chain.from_iterable(itertools.combinations(range(rounds), n) for n in range(1, rounds + 1)):
        if (np.diff(turns) < separation).any():
            continue
        signs = np.array(list(itertools.product((1, -1), repeat=len(turns))))
        found = max(found, float(np.linalg.norm(signs @ matrix[:, turns].T, axis=1).max()))
    return found


TURNS = [([1.0], 1), ([0.8, 0.6], 2), ([0.8, 0.6], 3), ([0.9, -0.3, 0.2], 3), ([0.7, 0.5, 0.4, 0.3], 5)]


@pytest.mark.parametrize("rounds", [1, 2, 5, 8])
@pytest.mark.parametrize(("coefficients", "separation"), TURNS)
def test_sensitivity_is_that_of_the_worst_turns(coefficients: list[float], separation: int, rounds: int) -> None:
    sensitivity = matrix_sensitivity(coefficients, rounds, separation)
    assert sensitivity == pytest.approx(farthest(dense(coefficients, rounds), separation), rel=1e-12)


@pytest.mark.parametrize(("bands", "separation", "rounds"), [(2, 3, 20), (4, 4, 30)])
def test_sensitivity_is_the_librarys(bands: int, separation: int, rounds: int) -> None:
    coefficients = np.linspace(1, 0.2, bands)
    theirs = library.minsep_sensitivity_squared(jnp.asarray(coefficients), separation, n=rounds, skip_checks=True)
    assert matrix_sensitivity(coefficients, rounds, separation) ** 2 == pytest.approx(float(theirs), rel=1e-5)


def test_epsilon_of_a_matrix_is_that_of_its_first_rows() -> None:
    coefficients = [0.8, 0.5, 0.3]
    spending = matrix_spending(3.0, coefficients, delta=DELTA, separation=4, rounds=9)
    assert (spending.relation, spending.sampled) == ("zero out one", True)
    for rounds in range(1, 10):
        deviation = 3.0 / farthest(dense(coefficients, rounds), 4)
        assert gaussian_delta(spending.epsilon(rounds), deviation) == pytest.approx(DELTA, rel=1e-3)


def test_fewer_errors_of_running_sums_at_equal_sensitivity() -> None:
    rounds, bands = 32, 4

    def error(coefficients: np.ndarray) -> float:
        sums = np.tri(rounds) @ np.linalg.inv(dense(list(coefficients), rounds))
        return float(np.linalg.norm(sums)) * matrix_sensitivity(coefficients, rounds, separation=bands)

    coefficients = accounting.toeplitz(rounds, bands)
    assert coefficients.shape == (bands,)
    assert np.linalg.norm(coefficients) == pytest.approx(1, rel=1e-6)
    assert error(coefficients) < 0.8 * error(np.ones(1))
    np.testing.assert_array_equal(accounting.toeplitz(rounds, 1), [1.0])
    worse = coefficients + 0.05 * np.array([0, 1, -1, 1])
    assert error(coefficients) < error(worse / np.linalg.norm(worse))


# --- discrete noise --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [2.0**-10, 2.0**-3, 0.5, 1.0])
def test_discrete_noise_is_that_of_its_paper(step: float) -> None:
    multiplier, clip_norm, entries, clients, times = 4.0, 0.5, 20, 10, 3
    sigma_squared = (multiplier * clip_norm) ** 2 / clients / step**2
    norm_in_steps = clip_norm / step + math.sqrt(entries)  # each entry is rounded up or down by less than a step
    tau = 0.0
    for k in range(1, clients):
        tau += 10 * math.exp(-2 * math.pi**2 * sigma_squared * k / (k + 1))
    signal = norm_in_steps / math.sqrt(clients * sigma_squared)
    first, second = math.sqrt(signal**2 + tau * entries / 2), signal + tau * math.sqrt(entries)
    # (epsilon^2 / 2)-zCDP is the Renyi divergence of a Gaussian mechanism of multiplier 1 / epsilon
    expected = by_rdp(dp.GaussianDpEvent(1 / min(first, second)), times)
    spending = discrete_gaussian_spending(multiplier, delta=DELTA, clip_norm=clip_norm, step=step, entries=entries,
                                          clients=clients)  # fmt: skip
    assert (spending.relation, spending.accountant, spending.sampled) == ("zero out one", "rdp", False)
    assert spending.epsilon(times) == pytest.approx(expected, rel=1e-9)


def test_discrete_noise_in_small_steps_is_gaussian_and_in_large_ones_worse() -> None:
    def epsilon(step: float) -> float:
        options = {"delta": DELTA, "clip_norm": 1.0, "entries": 100, "clients": 10}
        return discrete_gaussian_spending(4.0, step=step, **options).epsilon(5)

    continuous = by_rdp(dp.GaussianDpEvent(4.0), 5)
    assert continuous < epsilon(2**-16) < 1.001 * continuous
    coarse = [epsilon(2.0**-power) for power in (16, 8, 4, 2, 0)]
    assert (np.diff(coarse) > 0).all()
    assert coarse[-1] > 2 * continuous


# --- examples --------------------------------------------------------------------------------------------------------


def test_examples_in_poisson_batches() -> None:
    # 64 rows are next to never exceeded by 8 of 100 on average, so that truncation costs nothing
    roomy = example_spending(2.0, 100, 8, 64, 5, delta=DELTA)
    assert roomy(0) == 0
    assert roomy(4) == pytest.approx(gaussian_spending(2.0, delta=DELTA, rate=0.08).epsilon(20), rel=2e-3)
    tight = example_spending(2.0, 100, 8, 12, 5, delta=DELTA)
    assert tight(4) > 1.01 * roomy(4)


@pytest.mark.parametrize(("multiplier", "size", "rows"), [(2.0, 100, 12), (0.7, 100, 64), (0.2, 100, 64), (2.0, 5, 8)])
def test_a_quick_bound_on_examples_is_one(multiplier: float, size: int, rows: int) -> None:
    for turns in (0, 1, 5):
        exact = example_spending(multiplier, size, 8, rows, 5, delta=DELTA)(turns)
        assert exact <= example_bound(multiplier, size, 8, rows, 5, delta=DELTA)(turns)


def test_examples_in_full_batches() -> None:
    full = example_spending(8.0, 5, 8, 8, 3, delta=DELTA)
    assert gaussian_delta(full(4), 8.0 / math.sqrt(12)) == pytest.approx(DELTA, rel=1e-3)


# --- refusals --------------------------------------------------------------------------------------------------------

REFUSED = {
    "noise_multiplier: 0": lambda: gaussian_spending(0.0, delta=DELTA),
    "noise_multiplier: -1.0": lambda: laplace_spending(-1.0, delta=DELTA),
    "noise_multiplier: nan": lambda: gaussian_spending(math.nan, delta=DELTA),
    "delta: 0 ": lambda: gaussian_spending(1.0, delta=0),
    "delta: 1.5 ": lambda: laplace_spending(1.0, delta=1.5),
    "delta: -0.1 ": lambda: matrix_spending(1.0, [1.0], delta=-0.1, separation=1, rounds=2),
    "delta: 1 ": lambda: discrete_gaussian_spending(1.0, delta=1, clip_norm=1.0, step=0.1, entries=2, clients=2),
    'delta: 0 with accountant "pld"; give a delta': lambda: laplace_spending(1.0, delta=0, method="pld"),
    "accountant: 'gdp' is unknown; choose one of auto, pld, rdp":
        lambda: gaussian_spending(1.0, delta=DELTA, method="gdp"),
    "accountant: 'prv' is unknown": lambda: laplace_spending(1.0, delta=DELTA, method="prv"),
    'accountant: "rdp" has no bound for sampled Laplace noise; take "pld"':
        lambda: laplace_spending(1.0, delta=DELTA, rate=0.5, method="rdp"),
    "bands: 3 are more than the 2 rounds": lambda: matrix_spending(1.0, [1, 1, 1], delta=DELTA, separation=2, rounds=9),
    "rounds: 3 are more than the 2":
        lambda: matrix_spending(1.0, [1.0], delta=DELTA, separation=1, rounds=2).epsilon(3),
    "bands: 5 for 4 rounds; give at most as many": lambda: accounting.toeplitz(4, 5),
    "bands: 0": lambda: accounting.toeplitz(4, 0),
    "epsilon: 1e-07 cannot be kept over 1 rounds": lambda: calibrate(lambda z: laplace_spending(z, delta=0), 1, 1e-7),
    "epsilon: -2.0": lambda: calibrate(lambda z: laplace_spending(z, delta=0), 1, -2.0),
    "rounds: 0": lambda: calibrate(lambda z: laplace_spending(z, delta=0), 0, 1.0),
    "noise_multiplier: 0.0": lambda: example_spending(0.0, 100, 8, 16, 5, delta=DELTA),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_what_has_no_bound_is_refused_in_one_line(message: str) -> None:
    with pytest.raises(InputError) as error:
        REFUSED[message]()
    one_line(error, message, "; ")
    assert str(error.value).startswith(message)
