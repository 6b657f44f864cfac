"""What a run has spent: every epsilon here is dp-accounting's, for the sampling that the run really does.

Three neighbouring relations, named wherever an epsilon is written. "add or remove one": the unit takes part or not,
under Poisson sampling whose rate is a public number. "replace one": its data are exchanged for any others, under
sampling of a fixed size. "zero out one": what it contributes, a client's messages or an example's gradients, is
replaced by zeros and nothing else changes, where who takes part in which round, and how many examples a client has, is
public.

All of it holds in real arithmetic. Samples of continuous noise in floating point leak (Mironov 2012); the discrete
Gaussian of `secure` does not.
"""

import math
from collections.abc import Callable
from functools import cache, lru_cache, partial
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim import _validate
from fedjax_sim._validate import InputError
from fedjax_sim.privacy.losses import ADD, GRID, REPLACE, ZERO, by_pld, by_rdp, least, without_replacement

FINE = 30.0  # epsilon of one Laplace round up to which distributions are worth it, and fit memory
LEAST = 0.3  # Gaussian noise multiplier, likewise


class Spending(NamedTuple):
    """What is spent and how it adds up: `epsilon(times)` after so many rounds, or times that a client took part.

    `sampled` says that every round counts, for whoever might have been drawn; else a client spends where it takes part.
    """

    unit: str  # "client" or "example"
    relation: str
    accountant: str  # "pld", "rdp", "sum"
    delta: float  # 0 for pure differential privacy
    sampled: bool
    epsilon: Callable[[int], float]
    loss: Callable[[], Any] | None = None  # makes the privacy loss distribution of one round or turn, where it has one


def gaussian_spending(
    noise_multiplier: float,
    *,
    delta: float,
    rate: float | None = None,
    cohort: tuple[int, int] | None = None,
    distance: float = 1.0,
    method: str = "auto",
    unit: str = "client",
) -> Spending:
    """The Gaussian mechanism, by PLD or RDP; where clients are sampled, by what it spends without sampling if that is
    less, for every bound here is an upper one.

    Args:
      noise_multiplier: standard deviation of the noise over the clip norm.
      delta: of the guarantee.
      rate: of Poisson sampling: "add or remove one".
      cohort: `(C, N)` of sampling `C` of `N` without replacement: "replace one", which moves a sum by two clip norms,
        by PLD or RDP (Wang, Balle and Kasiviswanathan 2019). With neither, participation is public: "zero out one".
      distance: of two neighbouring messages without sampling, in clip norms: 2 for local noise.
      method: "pld", "rdp", which sampled noise of next to nothing gets anyway, or "auto".
      unit: whose data differ.

    Raises:
      InputError: a setting out of range.
    """
    import dp_accounting as dp
    from dp_accounting.pld import privacy_loss_distribution as distributions

    _validate.real("noise_multiplier", noise_multiplier, above=0)
    _check_delta(delta)
    _validate.one_of("accountant", method, ("auto", "pld", "rdp"))
    apart = 2.0 if cohort is not None else distance
    sampled = rate is not None or cohort is not None
    alone = _gaussians(noise_multiplier / apart, delta, exact=sampled or method != "rdp")
    relation = REPLACE if apart == 2 else ADD if rate is not None else ZERO
    whole = rate == 1 or (cohort is not None and cohort[0] == cohort[1])
    if not sampled or whole:
        fine = (sampled or method != "rdp") and noise_multiplier / apart >= LEAST
        loss = partial(distributions.from_gaussian_mechanism, noise_multiplier / apart,
                       value_discretization_interval=GRID) if fine else None  # fmt: skip
        return Spending(unit, relation, "pld" if sampled or method == "auto" else method, delta, sampled, alone, loss)
    method = "rdp" if method == "rdp" or noise_multiplier / apart < LEAST else "pld"
    if cohort is not None:
        # the library's multiplier is relative to the sensitivity, here of two clip norms
        event = dp.SampledWithoutReplacementDpEvent(cohort[1], cohort[0], dp.GaussianDpEvent(noise_multiplier / 2))
        make = partial(without_replacement, *cohort, noise_multiplier)
    else:
        assert rate is not None
        event = dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(noise_multiplier))
        make = partial(distributions.from_gaussian_mechanism, noise_multiplier, sampling_prob=rate,
                       value_discretization_interval=GRID)  # fmt: skip
    amplified = by_rdp(event, delta, relation) if method == "rdp" else by_pld(make, delta)
    return Spending(unit, relation, method, delta, True, least(amplified, alone), None if method == "rdp" else make)


def _gaussians(noise_multiplier: float, delta: float, *, exact: bool) -> Callable[[int], float]:
    """Epsilon of so many Gaussians, which are one, exactly or by RDP. Under sampling it is a bound, too."""
    import dp_accounting as dp

    @cache
    def epsilon(times: int) -> float:
        one = noise_multiplier / math.sqrt(max(times, 1))
        if times == 0 or not exact:
            return by_rdp(dp.GaussianDpEvent(one), delta, ADD)(min(times, 1))
        return float(dp.get_epsilon_gaussian(one, delta))

    return epsilon


def laplace_spending(
    noise_multiplier: float,
    *,
    delta: float,
    rate: float | None = None,
    distance: float = 1.0,
    method: str = "auto",
) -> Spending:
    """The Laplace mechanism: PLD, which is exact, or "sum", which adds epsilons up as if delta were 0.

    Args:
      noise_multiplier: scale of the noise over the clip norm (L1).
      delta: of the guarantee; 0 gives the sum, which is then exact too.
      rate: of Poisson sampling; without it participation is public.
      distance: of two neighbouring messages without sampling, in clip norms: 2 for local noise.
      method: "auto", "pld", "rdp" (without sampling alone) or "sum", which noise of next to nothing gets anyway.

    Raises:
      InputError: a setting out of range.
    """
    import dp_accounting as dp
    from dp_accounting.pld import privacy_loss_distribution as distributions

    _validate.real("noise_multiplier", noise_multiplier, above=0)
    _validate.one_of("accountant", method, ("auto", "pld", "rdp", "sum"))
    if delta != 0:
        _check_delta(delta)
    if method == "auto" or (method == "pld" and distance / noise_multiplier > FINE):
        method = "sum" if delta == 0 or distance / noise_multiplier > FINE else "pld"
    if delta == 0 and method != "sum":
        raise InputError(f'delta: 0 with accountant "{method}"; give a delta such as 1e-5, or take "sum"')
    sampled, relation = rate is not None, ADD if rate is not None else REPLACE if distance == 2 else ZERO
    if method == "sum":
        one = distance / noise_multiplier  # amplified by sampling (Balle, Barthe and Gaboardi 2018, theorem 9)
        one = one if rate is None else math.log1p(rate * math.expm1(one)) if one < 700 else one + math.log(rate)
        return Spending("client", relation, method, 0.0, sampled, lambda times: times * one)
    if method == "rdp":
        if rate is not None and rate < 1:
            raise InputError('accountant: "rdp" has no bound for sampled Laplace noise; take "pld"')
        event = dp.LaplaceDpEvent(noise_multiplier / distance)
        return Spending("client", relation, method, delta, sampled, by_rdp(event, delta, ADD))
    one = partial(distributions.from_laplace_mechanism, noise_multiplier / distance, value_discretization_interval=GRID,
                  sampling_prob=1.0 if rate is None else rate)  # fmt: skip
    return Spending("client", relation, method, delta, sampled, by_pld(one, delta), one)


def matrix_spending(
    noise_multiplier: float, coefficients: Any, *, delta: float, separation: int, rounds: int
) -> Spending:
    """DP-FTRL with a banded Toeplitz matrix, for clients that wait `separation` rounds at least before they come again.

    All rounds together are one Gaussian mechanism whose sensitivity is that of the matrix (Choquette-Choo et al. 2023,
    "(Amplified) banded matrix factorization", theorem 2); after `t` rounds it is that of its first `t` rows and
    columns.

    Raises:
      InputError: more bands than rounds from one turn of a client to the next.
    """
    bands = len(coefficients)
    if bands > separation:
        raise InputError(f"bands: {bands} are more than the {separation} rounds from one turn of a client to the next; "
                         "give fewer")  # fmt: skip
    _check_delta(delta)

    @cache
    def epsilon(times: int) -> float:
        if times == 0:
            return 0.0
        if times > rounds:
            raise InputError(f"rounds: {times} are more than the {rounds} that the noise was made for; give more")
        multiplier = noise_multiplier / matrix_sensitivity(coefficients, times, separation)
        return gaussian_spending(multiplier, delta=delta).epsilon(1)

    return Spending("client", ZERO, "pld", delta, True, epsilon)


def matrix_sensitivity(coefficients: Any, rounds: int, separation: int) -> float:
    """How far, in clip norms, one client can move what a banded Toeplitz matrix of `rounds` rows hides.

    Turns at least `bands` rounds apart touch columns that do not overlap, so that their squared norms add up.
    """
    squares = np.cumsum(np.square(np.asarray(coefficients, np.float64)))
    starts = np.arange(0, rounds, separation)  # the earlier a turn, the longer its column
    return math.sqrt(sum(squares[min(rounds - start, len(squares)) - 1] for start in starts))


@lru_cache(maxsize=64)
def toeplitz(rounds: int, bands: int) -> np.ndarray:
    """The coefficients f64[bands], of norm 1, that make the error of running sums least (by jax-privacy)."""
    from jax_privacy.matrix_factorization import toeplitz as strategies

    if not 1 <= _validate.whole("bands", bands) <= _validate.whole("rounds", rounds):
        raise InputError(f"bands: {bands} for {rounds} rounds; give at most as many")
    return np.asarray(strategies.optimize_banded_toeplitz(rounds, bands), np.float64) if bands > 1 else np.ones(1)


def discrete_gaussian_spending(
    noise_multiplier: float, *, delta: float, clip_norm: float, step: float, entries: int, clients: int
) -> Spending:
    """The sum of `clients` discrete Gaussians, on messages rounded to multiples of `step`, by RDP.

    Kairouz, Liu and Steinke 2021, theorem 5: with `sigma` one client's noise and `D` the norm of a rounded message,
    both in steps, `tau = 10 sum_k exp(-2 pi^2 sigma^2 k / (k + 1))`, it is `rho`-zCDP with `2 rho = min(D^2 / (n
    sigma^2) + tau d / 2, (D / (sqrt(n) sigma) + tau sqrt(d))^2)`.
    """
    import dp_accounting as dp

    _check_delta(delta)
    sigma = noise_multiplier * clip_norm / math.sqrt(clients) / step
    distance = clip_norm / step + math.sqrt(entries)
    terms = np.arange(1, clients)
    tau = 10 * float(np.exp(-2 * np.pi**2 * sigma**2 * terms / (terms + 1)).sum())
    plain = distance / (math.sqrt(clients) * sigma)
    rho = min(plain**2 + tau * entries / 2, (plain + tau * math.sqrt(entries)) ** 2) / 2
    return Spending("client", ZERO, "rdp", delta, False, by_rdp(dp.ZCDpEvent(rho), delta, ADD))


def example_spending(
    noise_multiplier: float, size: int, batch_size: int, rows: int, steps: int, *, delta: float
) -> Callable[[int], float]:
    """Epsilon of an example of a client of `size`, by the client's turns of `steps` steps each: "zero out one".

    Every step draws each example with chance `batch_size / size`, up to `rows` of them, whose truncation is counted.
    """
    from dp_accounting.pld import privacy_loss_distribution as distributions

    _validate.real("noise_multiplier", noise_multiplier, above=0)
    _check_delta(delta)
    if batch_size >= size or noise_multiplier < LEAST:
        rate = None if batch_size >= size else batch_size / size
        spending = gaussian_spending(noise_multiplier, delta=delta, rate=rate)
        return lambda turns: spending.epsilon(turns * steps)

    def turn() -> Any:
        one = distributions.from_truncated_subsampled_gaussian_mechanism(
            size, batch_size / size, min(rows, size), noise_multiplier, value_discretization_interval=GRID
        )
        return one.self_compose(steps) if steps > 1 else one

    return by_pld(turn, delta)


def example_bound(
    noise_multiplier: float, size: int, batch_size: int, rows: int, steps: int, *, delta: float
) -> Callable[[int], float]:
    """A bound on what is spent as in `example_spending`, by RDP, which takes no time: batches are truncated in any step
    with so little chance that it may be taken off delta."""
    import dp_accounting as dp
    from scipy.stats import binom

    if batch_size >= size or noise_multiplier < LEAST:
        return example_spending(noise_multiplier, size, batch_size, rows, steps, delta=delta)
    rate = batch_size / size
    truncated = float(binom.sf(min(rows, size) - 1, size - 1, rate))
    event = dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(noise_multiplier))
    return by_rdp(event, delta, ADD, missing=steps * truncated, each=steps)


def calibrate(spending: Callable[[float], Spending], times: int, epsilon: float) -> float:
    """The least noise multiplier, to a thousandth of it, with which `times` rounds or turns spend at most `epsilon`.

    Args:
      spending: of a noise multiplier; what was worked out for it is remembered, and for its equals.
      times: rounds, or turns of a client where those count.
      epsilon: the target.

    Raises:
      InputError: no noise multiplier up to 2^20 does it.
    """
    epsilon = float(_validate.real("epsilon", epsilon, above=0))
    return _calibrated(spending, _validate.whole("rounds", times), epsilon)


@lru_cache(maxsize=256)
def _calibrated(spending: Callable[[float], Spending], times: int, epsilon: float) -> float:
    """Epsilon is nearly a power of the noise, so that few trials do; each costs compositions."""

    def over(noise_multiplier: float) -> float:  # log of what is spent over the target
        spent = spending(noise_multiplier).epsilon(times)
        return math.log(spent / epsilon) if spent > 0 else -math.inf

    low, low_over, high, high_over = 0.0, math.inf, math.inf, -math.inf  # too little noise, and enough
    trial, trials = 1.0, 0
    while high > 1.001 * low:
        found = over(trial)
        if found > 0:
            low, low_over = trial, found
        else:
            high, high_over = trial, found
        if low >= 2**20:
            raise InputError(f"epsilon: {epsilon} cannot be kept over {times} rounds; raise it, or delta, or do fewer")
        if high <= 2**-20:
            break
        if not low or math.isinf(high):
            step = min(2.0, 1.01 * math.exp(min(abs(found), 1.0)))
            trial = trial * step if found > 0 else trial / step
        else:  # between the two in logs, and a little beyond on the side that the last trial was not on
            trials += 1
            share = low_over / (low_over - high_over) if trials % 5 else 0.5
            trial = low * (high / low) ** (share if math.isfinite(share) else 0.5)
            trial *= 1.0004 if found > 0 else 1 / 1.0004
            trial = min(max(trial, 1.0001 * low), high / 1.0001)
    return high


def _check_delta(delta: float) -> None:
    if not 0 < _validate.real("delta", delta, above=0) < 1:
        raise InputError(f"delta: {delta} is out of range; give a number between 0 and 1, less than one over the "
                         "number of clients")  # fmt: skip
