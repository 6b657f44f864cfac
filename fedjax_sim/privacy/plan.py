"""`privatize`: clipping, weights, denominator, sampling, noise and accounting bound together, so that they agree."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_sim import _validate
from fedjax_sim._validate import InputError
from fedjax_sim.core.algorithm import Algorithm
from fedjax_sim.core.message import chain
from fedjax_sim.core.types import PyTree
from fedjax_sim.data import sampling
from fedjax_sim.data.sampling import Sampler
from fedjax_sim.privacy.account import Account, promised_delta
from fedjax_sim.privacy.accounting import Spending, calibrate, toeplitz
from fedjax_sim.privacy.central import Adaptive, central
from fedjax_sim.privacy.composition import Past, together
from fedjax_sim.privacy.laplace import bare_laplace
from fedjax_sim.privacy.local import local
from fedjax_sim.privacy.noise import banded, gaussian, laplace
from fedjax_sim.privacy.secure import message_like, secure

MECHANISMS = ("gaussian", "laplace", "matrix", "discrete_gaussian", "local_gaussian", "local_laplace", "laplace_bare")
SAMPLINGS = ("poisson", "uniform", "round_robin", "all")
NO_GUARANTEE = "no privacy guarantee"

# What each mechanism can be asked for beyond the settings that all have, and who counts it.
OPTIONS: dict[str, set[str]] = {
    "gaussian": {"adaptive", "weight_cap", "per_leaf"},
    "laplace": {"weight_cap", "per_leaf"},
    "matrix": {"weight_cap", "per_leaf", "bands"},
    "discrete_gaussian": {"dropout"},
    "local_gaussian": {"per_leaf"},
    "local_laplace": {"per_leaf"},
}
ACCOUNTANTS = {
    "gaussian": ("pld", "rdp"),
    "laplace": ("pld", "rdp", "sum"),
    "matrix": ("pld",),
    "discrete_gaussian": ("rdp",),
    "local_gaussian": ("pld", "rdp"),
    "local_laplace": ("pld", "rdp", "sum"),
}


class Private(NamedTuple):
    """An algorithm, the sampler that must draw its cohorts, and what they guarantee together."""

    algorithm: Algorithm
    sampler: Sampler
    spending: Spending | None  # None where nothing is guaranteed
    noise_multiplier: float  # scale of the noise over the clip norm
    budget: float | None  # epsilon that is not to be exceeded
    statement: str  # one line
    local_sampling: str = "epochs"  # for `make_round`
    uncovered: str = ""  # what of a run the guarantee is not for, a sentence


class Ledger:
    """Counts what a run has spent. It holds nothing that the rounds done and their cohorts do not tell, so that a
    resumed run counts them again and spends neither less nor more."""

    def __init__(self, private: Private, num_clients: int, past: Sequence[Past] = ()):
        """Begins to count.

        Args:
          private: what rounds are done under from now on.
          num_clients: `N`.
          past: what rounds before were done under, where that was something else.
        """
        self.spending, self.budget = private.spending, private.budget
        self.rounds, self.turns = 0, np.zeros(num_clients, np.int64)
        self.past = np.array([part.times() for part in past], np.int64).reshape(-1, num_clients)
        spendings = [part.spending for part in past]
        self.together = together([*spendings, private.spending]) if past and private.spending else None

    def spend(self, ids: Any) -> float | None:
        """Counts a round of these clients, int[C] with -1 for nobody, and returns epsilon with it: of all rounds, or of
        the client with the most turns, where turns count; None where nothing is guaranteed."""
        self.count(ids)
        if self.spending is None:
            return None
        if self.together is not None:
            times = np.full_like(self.turns, self.rounds) if self.spending.sampled else self.turns
            return self.together(np.stack([*self.past, times], axis=1))
        return self.spending.epsilon(self.rounds if self.spending.sampled else int(self.turns.max()))

    def count(self, ids: Any) -> None:
        """Counts a round of these clients."""
        ids = np.asarray(ids)
        self.rounds += 1
        self.turns[ids[ids >= 0]] += 1

    def affordable(self, cohorts: Sequence[Any]) -> int:
        """How many of the next rounds, whose clients are int[C] each, leave the budget unexceeded."""
        if self.budget is None or self.spending is None:
            return len(cohorts)
        ahead = copy.copy(self)
        ahead.turns = self.turns.copy()
        for done, ids in enumerate(cohorts):
            if (ahead.spend(ids) or 0.0) > self.budget:
                return done
        return len(cohorts)


def make_sampler(name: str, num_clients: int, cohort_size: int) -> Sampler:
    """The sampler that accounting by that name assumes; "poisson" has the rate `cohort_size / num_clients`.

    Raises:
      InputError: a sampler for which no bound holds.
    """
    _validate.one_of("sampling", name, SAMPLINGS)
    if name == "poisson":
        return sampling.poisson(num_clients, cohort_size / num_clients)
    if name == "all":
        return sampling.everyone(num_clients)
    return (sampling.uniform if name == "uniform" else sampling.round_robin)(num_clients, cohort_size)


def privatize(
    algorithm: Algorithm,
    *,
    num_clients: int,
    cohort_size: int,
    clip_norm: float,
    mechanism: str = "gaussian",
    sampling: str = "poisson",
    delta: float | None = None,
    epsilon: float | None = None,
    rounds: int | None = None,
    noise_multiplier: float | None = None,
    per_leaf: bool = False,
    adaptive: Adaptive | None = None,
    weight_cap: float | None = None,
    sizes: Any = None,
    bands: int | None = None,
    dropout: int = 0,
    params: PyTree = None,
    seed: int | None = None,
    accountant: str = "auto",
    guarantee: str = "dp",
) -> Private:
    """Makes an algorithm differentially private for its clients, and says how much.

    | mechanism | who adds noise | clipping | what counts |
    | --- | --- | --- | --- |
    | gaussian | the server, on the sum | L2 | rounds, amplified by sampling |
    | laplace | the server, on the sum | L1 | likewise, by PLD |
    | matrix | the server, correlated over rounds (DP-FTRL) | L2 | rounds; "round_robin" or "all" |
    | discrete_gaussian | each client a share, under secure aggregation | L2 | turns of a client |
    | local_gaussian, local_laplace | each client alone | L2, L1 | turns of a client |
    | laplace_bare | each client, scale 1 / epsilon, nothing clipped | none | nothing: `guarantee="none"` |

    The neighbouring relation follows from the sampling: "poisson" adds or removes one client; "uniform", cohorts of a
    fixed size, replaces one (twice the sensitivity); under "round_robin" and "all" one client's messages become zeros
    and its turns are public. Weights are uniform or `min(examples / weight_cap, 1)`, and the denominator is their
    expectation, the same in every round; sizes are taken to be public where they enter it, and so is `N`, which gives
    the rate of "poisson". Nobody's presence may change who else counts: on a clock, see `network.coupling`.

    What is guaranteed is guaranteed of one run, and of the models it makes: epsilons and deltas of several runs on the
    same clients add up if their noise is independent, and so does what a model that training starts from has spent on
    them. Noise comes from the random keys that rounds are given: runs of equal keys have equal noise, and guarantee
    nothing together.

    Args:
      algorithm: from a factory; see `central` for what it must be.
      num_clients: `N`.
      cohort_size: expected number of clients in a round; the rate of "poisson" is `cohort_size / N`.
      clip_norm: bound on a message's norm; the first one, if adaptive.
      mechanism: of the table.
      sampling: "poisson", "uniform", "round_robin" or "all".
      delta: of the guarantee; `0.1 / N` or 1e-3 by default, whichever is less; 0 for a sum of Laplace epsilons. More
        than that is warned of, `1 / N` and more refused.
      epsilon: the budget; without `noise_multiplier`, the target after `rounds` that it is worked out from. For
        "laplace_bare" one over the scale.
      rounds: that the target is for, or that "matrix" noise is made for.
      noise_multiplier: scale of the noise over the clip norm.
      per_leaf: clip each leaf to its share.
      adaptive: lets the clip norm follow the messages; "gaussian" alone.
      weight_cap: examples from which on a client counts fully; "gaussian", "laplace" and "matrix".
      sizes: int[N], examples of the clients, where `weight_cap` is set.
      bands: of "matrix" noise; as many as there are rounds between a client's turns, 16 at most, by default.
      dropout: "discrete_gaussian": clients of a cohort that may fail to arrive.
      params: the model, for "discrete_gaussian".
      seed: of the run, where turns of a client count and the target is for those that this seed draws; without it, for
        a client that is drawn as often as can be.
      accountant: "auto", "pld", "rdp" or, for Laplace noise, "sum".
      guarantee: "dp"; or "none", which runs settings that guarantee nothing, refused otherwise, and claims nothing.

    Raises:
      InputError: settings that contradict each other, or guarantee nothing under `guarantee="dp"`, with the reason.
    """
    _validate.one_of("mechanism", mechanism, MECHANISMS)
    _validate.one_of("guarantee", guarantee, ("dp", "none"))
    if mechanism == "laplace_bare":
        return _bare(algorithm, num_clients, cohort_size, sampling, epsilon, guarantee)
    sampler, method = make_sampler(sampling, num_clients, cohort_size), accountant
    expected = num_clients if sampling == "all" else cohort_size
    if delta is None or (guarantee == "dp" and accountant != "sum"):
        delta = promised_delta(delta, num_clients, "client")
    if epsilon is None and noise_multiplier is None:
        raise InputError("epsilon: missing, and noise_multiplier too; give a target, or the noise")
    if noise_multiplier is not None:
        _validate.real("noise_multiplier", noise_multiplier, above=0)
    if rounds is None and (noise_multiplier is None or mechanism == "matrix"):
        raise InputError("rounds: missing; a target, or matrix noise, is for a number of rounds")
    kind = mechanism.removeprefix("local_")
    given = {"adaptive": adaptive, "weight_cap": weight_cap, "bands": bands, "dropout": dropout or None,
             "per_leaf": per_leaf or None}  # fmt: skip
    for name in given.keys() - OPTIONS[mechanism]:
        if given[name] is not None:
            raise InputError(f"{name}: {mechanism} noise has no such option; leave it out")
    if accountant not in ("auto", *ACCOUNTANTS[mechanism]):
        choices = ", ".join(("auto", *ACCOUNTANTS[mechanism]))
        raise InputError(f"accountant: {accountant!r} does not count {mechanism} noise; take one of {choices}")
    if mechanism == "matrix" and sampling not in ("round_robin", "all"):
        raise InputError(f'sampling: {sampling!r} lets a client come again at once, and matrix noise counts on rounds '
                         'between its turns; take "round_robin" or "all"')  # fmt: skip
    if sampling == "uniform" and mechanism == "gaussian":
        algorithm = _forgetful(algorithm)
    entries = 0
    least = expected - _validate.whole("dropout", dropout, least=0)
    if least < 1:
        raise InputError(f"dropout: {dropout} leaves nobody of {expected} clients; lower it")
    if mechanism == "discrete_gaussian":
        if params is None:
            raise InputError("params: missing; give the model, whose size enters the guarantee of discrete noise")
        if sampling == "poisson":
            raise InputError('sampling: "poisson" leaves the number of noise shares to chance; take "uniform", '
                             '"round_robin" or "all"')  # fmt: skip
        entries = sum(leaf.size for leaf in jax.tree.leaves(message_like(algorithm, params, num_clients)))

    separation, made = num_clients // expected, ()
    if mechanism == "matrix":
        made = tuple(toeplitz(rounds or 1, bands or min(separation, 16, rounds or 1)).tolist())
    clip = float(_validate.real("clip_norm", clip_norm, above=0)) if entries else None
    spending = Account(mechanism, sampling, cohort_size, num_clients, float(_validate.real("delta", delta)), method,
                        clip, entries, expected, least, made, (rounds or 1) if made else 0)  # fmt: skip
    sampled = mechanism == "matrix" or (mechanism in ("gaussian", "laplace") and sampling == "poisson") or (
        mechanism == "gaussian" and sampling == "uniform")  # fmt: skip
    if noise_multiplier is None:
        assert epsilon is not None
        assert rounds is not None
        times = rounds if sampled else most_turns(sampling, sampler, num_clients, rounds, seed)
        noise_multiplier = calibrate(spending, times, epsilon)
    spent = spending(noise_multiplier)

    if mechanism == "discrete_gaussian":
        private = secure(algorithm, params, clip_norm=clip_norm, noise_multiplier=noise_multiplier, clients=expected,
                         least_clients=least, num_clients=num_clients)  # fmt: skip
    elif mechanism.startswith("local_"):
        drawn = gaussian() if kind == "gaussian" else laplace()
        private = local(algorithm, clip_norm=clip_norm, noise_multiplier=noise_multiplier, noise=drawn,
                        per_leaf=per_leaf)  # fmt: skip
    else:
        drawn = {"gaussian": gaussian, "laplace": laplace, "matrix": lambda: banded(np.asarray(made))}[kind]()
        private = central(algorithm, clip_norm=clip_norm, noise_multiplier=noise_multiplier, clients=expected,
                          denominator=_denominator(expected, num_clients, weight_cap, sizes), noise=drawn,
                          per_leaf=per_leaf, weight_cap=weight_cap, adaptive=adaptive)  # fmt: skip
    if guarantee == "none":
        statement = f"{NO_GUARANTEE} asked for: {mechanism} noise of {noise_multiplier:.4g} clip norms"
        return Private(private, sampler, None, noise_multiplier, None, statement)
    statement = _statement(spent, mechanism, sampling, noise_multiplier)
    if weight_cap is not None or mechanism.startswith("local_"):
        statement += "; the clients' numbers of examples are taken to be public"
    return Private(private, sampler, spent, noise_multiplier, epsilon, statement)


def _bare(algorithm: Algorithm, num_clients: int, cohort_size: int, name: str, epsilon: Any, guarantee: str) -> Private:
    """Laplace noise of scale `1 / epsilon` on messages that nothing bounds, as many tutorials add it."""
    _validate.real("epsilon", epsilon, above=0)
    if guarantee != "none":
        raise InputError(
            f"guarantee: noise of scale 1/epsilon (epsilon {epsilon}) on messages that are not clipped hides nobody; "
            'take mechanism "local_laplace", or guarantee "none" to run it all the same'
        )
    noisy = algorithm._replace(transform=chain(algorithm.transform, bare_laplace(epsilon)))
    sampler = make_sampler(name, num_clients, cohort_size)
    statement = f"{NO_GUARANTEE}: noise of scale 1/epsilon = {1 / epsilon:g} on messages that are not clipped"
    return Private(noisy, sampler, None, float("nan"), None, statement)


def _forgetful(algorithm: Algorithm) -> Algorithm:
    """`algorithm`, refusing to start where its clients keep anything between rounds: under sampling of a fixed size who
    took part earlier tells of who did not, and the bound of one round does not carry over."""

    def refusing(start: Callable[[PyTree], PyTree]) -> Callable[[PyTree], PyTree]:
        def init(tree: PyTree) -> PyTree:
            memory = start(tree)
            if jax.tree.leaves(memory):
                raise InputError('sampling: "uniform" has no bound for clients that remember earlier rounds; take '
                                 '"poisson"')  # fmt: skip
            return memory

        return init

    client, transform = algorithm.client, algorithm.transform
    return algorithm._replace(client=client._replace(init=refusing(client.init)),
                              transform=transform._replace(init=refusing(transform.init)))  # fmt: skip


def _denominator(expected: int, num_clients: int, weight_cap: float | None, sizes: Any) -> float:
    if weight_cap is None:
        return float(expected)
    if sizes is None or len(sizes) != num_clients:
        raise InputError(f"sizes: {'missing' if sizes is None else len(sizes)} for {num_clients} clients; give the "
                         "number of examples of each, which weight_cap needs for the denominator")  # fmt: skip
    weights = np.minimum(np.asarray(sizes) / weight_cap, 1)
    return float(expected * weights.mean())


def most_turns(name: str, sampler: Sampler, num_clients: int, rounds: int, seed: int | None) -> int:
    """How often a client takes part in so many rounds at most: with this seed, or whatever the seed."""
    if name == "round_robin":
        return -(-rounds // (num_clients // sampler.slots))
    if seed is None or name == "all":
        return rounds
    turns = np.zeros(num_clients, np.int64)
    for round in range(rounds):
        ids = sampler.draw(seed, round)
        turns[ids[ids >= 0]] += 1
    return int(turns.max())


def _statement(spent: Spending, mechanism: str, name: str, multiplier: float) -> str:
    counted = "rounds" if spent.sampled else "turns of a client"
    noisy = f"{mechanism} noise of {multiplier:.4g} clip norms, {name} sampling"
    promise = f"differential privacy of each {spent.unit}, {spent.relation}, delta {spent.delta:g}"
    hint = '; sampling "poisson" needs less noise for it' if spent.sampled and name == "uniform" else ""
    return f"{noisy}: {promise}, counted by {counted} ({spent.accountant.upper()}){hint}"
