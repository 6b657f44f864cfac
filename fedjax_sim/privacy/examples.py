"""Privacy of single examples inside clients: DP-SGD, for silos where the patient is the unit and not the hospital."""

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_sim import _validate
from fedjax_sim._validate import InputError
from fedjax_sim.core.algorithm import Algorithm
from fedjax_sim.core.client import LossFn, StepsOnly, batch_loss, planned_steps, poisson_slots
from fedjax_sim.core.types import Array, PyTree, Scalar, Variables
from fedjax_sim.messages import clipped, noise_like
from fedjax_sim.privacy.account import promised_delta
from fedjax_sim.privacy.accounting import ZERO, Spending, calibrate, example_bound, example_spending
from fedjax_sim.privacy.plan import NO_GUARANTEE, Private, make_sampler, most_turns


class PrivateLoss(NamedTuple):
    """A loss whose gradient is that of DP-SGD (Abadi et al. 2016, algorithm 1): each example's gradient clipped to an
    L2 norm of `clip_norm`, the sum over the batch with Gaussian noise of `noise_multiplier * clip_norm`, divided by
    `batch_size`, the expected number of examples, however many were drawn."""

    loss_fn: LossFn
    clip_norm: Scalar
    noise_multiplier: Scalar
    batch_size: int

    def __call__(self, model: PyTree, batch: PyTree, key: Array) -> Any:
        return self.loss_fn(model, batch, key)

    def gradient(self, model: PyTree, batch: PyTree, mask: Array, key: Array) -> tuple[Array, PyTree, PyTree]:
        """Mean loss over the rows that count, which is not private, the model, and the private gradient.

        Raises:
          InputError: batches that are not drawn by Poisson sampling, or a model with statistics.
        """
        if isinstance(model, Variables):
            raise InputError("params: statistics of a model are sent without noise; take one without, such as mlp_norm")
        if mask.shape[0] != poisson_slots(self.batch_size):
            raise InputError(
                f"local_sampling: batches of {mask.shape[0]} rows are not Poisson batches of {self.batch_size} on "
                'average; give make_round that batch_size and local_sampling="poisson"'
            )

        own = jax.random.fold_in(key, 0)

        def one(row: PyTree, counts: Array) -> tuple[Array, PyTree]:
            def objective(params: PyTree) -> Array:
                return batch_loss(self.loss_fn, params, jax.tree.map(lambda r: r[None], row), jnp.ones(1, bool), own)[0]

            loss, gradient = jax.value_and_grad(objective)(model)
            bounded, _ = clipped(gradient, self.clip_norm)
            return loss, jax.tree.map(lambda g: jnp.where(counts, g, 0), bounded)

        losses, gradients = jax.vmap(one)(batch, mask)
        noise = noise_like(model, jax.random.fold_in(key, 1), jax.random.normal)
        scale = jnp.asarray(self.noise_multiplier * self.clip_norm, jnp.float32)
        private = jax.tree.map(lambda g, n: (g.sum(0) + n * scale.astype(n.dtype)) / self.batch_size, gradients, noise)
        loss = jnp.sum(jnp.where(mask, losses, 0)) / jnp.maximum(mask.sum(), 1)
        return loss.astype(jnp.float32), model, private


def privatize_examples(
    factory: Callable[..., Algorithm],
    loss_fn: LossFn,
    *,
    client_tx: optax.GradientTransformation,
    sizes: Any,
    cohort_size: int,
    batch_size: int,
    clip_norm: float,
    sampling: str = "all",
    delta: float | None = None,
    local_epochs: int = 1,
    local_steps: int | None = None,
    noise_multiplier: float | None = None,
    epsilon: float | None = None,
    rounds: int | None = None,
    seed: int | None = None,
    guarantee: str = "dp",
    **options: Any,
) -> Private:
    """Builds an algorithm whose clients train by DP-SGD, so that what a client sends hides each of its examples, from
    the server too. What a client adapts for itself alone stays without noise.

    A batch holds each example with chance `batch_size / size`, for which `make_round` has to be given this batch size,
    this local work and `local_sampling="poisson"`. Epsilon counts the turns of a client, however clients are drawn,
    and is that of the client whose size makes it largest.

    The neighbouring relation is "zero out one": the gradients of one example are zeros, and nothing else changes. One
    example more or less would change more than that: the chance with which all the others of its client are drawn,
    the number of local steps, and the client's weight in the mean all follow from the client's size. So sizes are
    public, and an example is hidden among the values that it might have, not whether it is there. To exchange it for
    any other is to zero out twice: `(2 epsilon, (1 + e^epsilon) delta)`.

    Args:
      factory: of an algorithm whose clients see their examples in the local steps alone, which the `StepsOnly` around
        their `run` says, and send once a round; such as `fedavg`, or one of your own.
      loss_fn: as ever, of a model without statistics.
      client_tx: as ever.
      sizes: int[N], examples of the clients.
      cohort_size: `C`.
      batch_size: expected number of examples in a local step.
      clip_norm: L2 bound on an example's gradient.
      sampling: of clients: "all", "poisson", "uniform" or "round_robin".
      delta: of the guarantee; a tenth over the number of all examples by default, 1e-3 at most. More than that is
        warned of, one over their number refused.
      local_epochs: steps are those that many epochs take.
      local_steps: of every client, instead.
      noise_multiplier: standard deviation of the noise on a batch's sum over the clip norm.
      epsilon: the budget; without `noise_multiplier`, the target after `rounds` that it is worked out from.
      rounds: that the target is for.
      seed: of the run, see `privatize`.
      guarantee: "dp"; "none" claims nothing, which settings elsewhere may undo.
      **options: of the factory.

    Raises:
      InputError: an algorithm that looks at examples in ways that are not counted, or a setting out of range.
    """

    def made(multiplier: float) -> Algorithm:
        private_loss = PrivateLoss(loss_fn, clip_norm, multiplier, batch_size)
        algorithm = factory(private_loss, client_tx=client_tx, **options)
        _needs_steps_only(algorithm, private_loss)
        return algorithm

    _validate.local_work(batch_size, local_epochs, local_steps)
    made(1.0)  # what it refuses, before anything is counted
    num_clients, examples = len(sizes), int(np.sum(sizes))
    sampler = make_sampler(sampling, num_clients, cohort_size)
    sizes = np.unique(np.asarray(sizes)[np.asarray(sizes) > 0])
    if not sizes.size:
        raise InputError("sizes: nobody has an example; give the number of examples of each client")
    _validate.one_of("guarantee", guarantee, ("dp", "none"))
    delta = promised_delta(delta, examples, "example") if delta is None or guarantee == "dp" else delta
    steps = np.asarray(planned_steps(jnp.asarray(sizes), batch_size, local_epochs, local_steps))

    spending = _Account(_hardest(sizes, steps), batch_size, float(delta))
    if noise_multiplier is None:
        if epsilon is None or rounds is None:
            raise InputError(f"epsilon: {epsilon} for {rounds} rounds; give both, or noise_multiplier")
        turns = most_turns(sampling, sampler, num_clients, _validate.whole("rounds", rounds), seed)
        noise_multiplier = calibrate(spending, turns, epsilon)
    _validate.number("noise_multiplier", noise_multiplier, above=0)
    _validate.number("clip_norm", clip_norm, above=0)
    algorithm = made(noise_multiplier)
    personal = factory(loss_fn, client_tx=client_tx, **options).personal  # adapts without noise, and never leaves
    statement = (
        f"DP-SGD with noise of {noise_multiplier:.4g} clip norms, Poisson batches of {batch_size} on average: "
        f"differential privacy of each example, {ZERO} (sizes are public), delta {delta:g}, counted by turns of a "
        "client (PLD)"
    )
    algorithm = algorithm._replace(personal=personal)
    if guarantee == "none":
        statement = f"{NO_GUARANTEE} asked for: DP-SGD with noise of {noise_multiplier:.4g} clip norms"
        return Private(algorithm, sampler, None, noise_multiplier, None, statement, "poisson")
    return Private(algorithm, sampler, spending(noise_multiplier), noise_multiplier, epsilon, statement, "poisson")


def _needs_steps_only(algorithm: Algorithm, private_loss: PrivateLoss) -> None:
    """Raises the reason why noise in the gradients of local steps does not hide the examples, if there is one."""
    run = algorithm.client.run
    if not isinstance(run, StepsOnly) or algorithm.survey is not None:
        reason = "its clients look at their examples beyond the local steps that count"
    elif run.loss_fn is not private_loss:
        reason = "its clients train on another loss than they are given, whose gradients have no noise"
    else:
        return
    raise InputError(f"algorithm: {reason}; take fedavg, fedprox or scaffold with option 2, say")


def _hardest(sizes: np.ndarray, steps: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Sizes and steps that bound all the others': all of them if few, else the smallest size with the most steps."""
    if len(sizes) <= 16:
        return tuple((int(size), int(count)) for size, count in zip(sizes, steps, strict=True))
    return ((int(sizes.min()), int(steps.max())),)


class _Account(NamedTuple):
    """What an example of any client spends, of a noise multiplier."""

    cases: tuple[tuple[int, int], ...]  # sizes and steps
    batch_size: int
    delta: float

    def __call__(self, noise_multiplier: float) -> Spending:
        return _spending(self, float(noise_multiplier))


@lru_cache(maxsize=4)
def _spending(account: _Account, noise_multiplier: float) -> Spending:
    delta, rows = account.delta, poisson_slots(account.batch_size)
    exact, quick = (
        [make(noise_multiplier, size, account.batch_size, rows, steps, delta=delta) for size, steps in account.cases]
        for make in (example_spending, example_bound)
    )

    @cache
    def most(times: int) -> float:
        worst = 0.0
        for i in sorted(range(len(quick)), key=lambda i: -quick[i](times)):
            if quick[i](times) <= worst:  # nor do those after it spend more
                break
            worst = max(worst, exact[i](times))
        return worst

    return Spending("example", ZERO, "pld", delta, False, most)
