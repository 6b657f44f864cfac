"""What rounds under several mechanisms spend together, where a run was gone on with under other settings.

Mechanisms that follow one another, each chosen in sight of what those before gave, compose: their privacy loss
distributions are convolved (Sommer, Meiser and Mohammadi 2019; Koskela, Jaelkoe and Honkela 2020), and epsilons of pure
differential privacy are added.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim._validate import InputError
from fedjax_sim.privacy.accounting import Spending


class Past(NamedTuple):
    """What some rounds were done under."""

    spending: Spending
    rounds: int  # that were done
    turns: np.ndarray  # int[N], of each client in them
    statement: str  # of what they guaranteed

    def times(self) -> np.ndarray:
        """How often each client was exposed, int[N]."""
        return np.full(len(self.turns), self.rounds) if self.spending.sampled else self.turns


def refuse_unknown(spendings: Sequence[Spending]) -> None:
    """There is one guarantee that these can add up to.

    Raises:
      InputError: other units, relations or deltas, or mechanisms of which it is not known what they spend together.
    """
    first, last = spendings[0], spendings[-1]
    for name in ("unit", "relation", "delta"):
        if getattr(first, name) != getattr(last, name):
            raise InputError(
                f"privacy: what was spent until now holds for {name} {getattr(first, name)}, and what is to be spent "
                f"for {getattr(last, name)}; no guarantee covers both, so start another run"
            )
    if first.delta and any(spending.loss is None for spending in spendings):
        raise InputError(
            f"privacy: what noise of two kinds spends together is not known where {last.accountant.upper()} counts one "
            "of them; start another run"
        )


def together(spendings: Sequence[Spending]) -> Callable[[np.ndarray], float]:
    """Epsilon of exposures under each of these mechanisms, int[N, mechanisms]: that of the client with the most."""

    @cache
    def power(place: int, times: int) -> Any:
        loss = spendings[place].loss
        assert loss is not None
        return loss().self_compose(times)

    @cache
    def before(times: tuple[int, ...]) -> Any:
        """Of all mechanisms but the last; None where nothing was done under them."""
        whole: Any = None
        for place, number in enumerate(times):
            if number:
                whole = power(place, number) if whole is None else whole.compose(power(place, number))
        return whole

    @cache
    def epsilon(times: tuple[int, ...]) -> float:
        if sum(number > 0 for number in times) <= 1 or not spendings[0].delta:
            return float(sum(s.epsilon(number) for s, number in zip(spendings, times, strict=True)))
        whole = before(times[:-1])
        if times[-1]:
            whole = whole.compose(power(len(times) - 1, times[-1]))
        return float(whole.get_epsilon_for_delta(spendings[0].delta))

    def most(exposures: np.ndarray) -> float:
        rows = np.unique(exposures, axis=0)
        over = [not ((rows >= row).all(1) & (rows > row).any(1)).any() for row in rows]  # nobody has more of all
        return max(epsilon(tuple(row)) for row in rows[over].tolist())

    return most
