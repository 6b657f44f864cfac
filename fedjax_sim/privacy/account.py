"""What private rounds spend by the settings of a run, and at which delta a guarantee is one."""

import warnings
from functools import lru_cache
from typing import NamedTuple

from fedjax_sim import _validate
from fedjax_sim._validate import InputError
from fedjax_sim.privacy.accounting import (
    Spending,
    discrete_gaussian_spending,
    gaussian_spending,
    laplace_spending,
    matrix_spending,
)
from fedjax_sim.privacy.laplace import GuaranteeWarning
from fedjax_sim.privacy.secure import fixed_point

LARGE_DELTA = 1e-3


def promised_delta(delta: float | None, units: int, unit: str) -> float:
    """`delta`, or a tenth over the number of units, 1e-3 at most.

    All that is known of a unit may come out with a chance of delta. Publishing one of them outright, drawn at random,
    is private at a delta of one over their number; and of delta times their number so many are exposed on average. So
    one over the number is refused. A tenth of that, or one chance in a thousand, is warned of.

    Raises:
      InputError: a delta at which nothing is guaranteed.
    """
    usual = min(0.1 / units, LARGE_DELTA)
    if delta is None:
        return usual
    if _validate.number("delta", delta, least=0) >= 1 / units:
        raise InputError(
            f"delta: {delta} guarantees nothing, for publishing one of {units} {unit}s at random keeps to it; give "
            f"much less than {1 / units:.2g}, {min(usual, 1e-5):g} say"
        )
    if delta > usual:
        warnings.warn(
            f"delta: {delta} for {units} {unit}s is a weak guarantee: with that chance, all that is known of one of "
            f"them may come out; take {usual:.2g} at most, 1e-5 say",
            GuaranteeWarning,
            stacklevel=3,
        )
    return float(delta)


class Account(NamedTuple):
    """What is spent, of a noise multiplier; equal for equal settings, so that it is worked out for them once."""

    mechanism: str
    sampling: str
    cohort_size: int
    num_clients: int
    delta: float
    method: str
    clip_norm: float | None  # where it enters, as does what follows
    entries: int
    expected: int
    least: int
    made: tuple[float, ...]
    rounds: int

    def __call__(self, noise_multiplier: float) -> Spending:
        return _spending(self, float(noise_multiplier))


@lru_cache(maxsize=8)  # with the distributions that their epsilons come from
def _spending(given: Account, multiplier: float) -> Spending:
    mechanism, kind, delta = given.mechanism, given.mechanism.removeprefix("local_"), given.delta
    rate = given.cohort_size / given.num_clients if given.sampling == "poisson" else None
    if mechanism == "discrete_gaussian":
        assert given.clip_norm is not None
        noise = multiplier * given.clip_norm / given.least**0.5
        form = fixed_point(given.clip_norm, given.entries, given.expected, noise)
        return discrete_gaussian_spending(multiplier, delta=delta, clip_norm=given.clip_norm, step=form.step,
                                          entries=given.entries, clients=given.least)  # fmt: skip
    if mechanism == "matrix":
        separation = given.num_clients // given.expected
        return matrix_spending(multiplier, given.made, delta=delta, separation=separation, rounds=given.rounds)
    if mechanism.startswith("local_"):
        make = gaussian_spending if kind == "gaussian" else laplace_spending
        return make(multiplier, delta=delta, distance=2, method=given.method)
    if kind == "laplace":
        if given.sampling == "uniform":  # no amplification is known to the accountant: turns count, each replaced
            return laplace_spending(multiplier, delta=delta, distance=2, method=given.method)
        return laplace_spending(multiplier, delta=delta, rate=rate, method=given.method)
    cohort = (given.cohort_size, given.num_clients) if given.sampling == "uniform" else None
    return gaussian_spending(multiplier, delta=delta, rate=rate, cohort=cohort, method=given.method)
