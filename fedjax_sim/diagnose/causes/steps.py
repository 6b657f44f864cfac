"""Client drift: so many local steps in a round that local models go their own ways."""

import math

import numpy as np

from fedjax_sim.diagnose.cause import EXTREME, HABIT, Cause, Facts, Remedy, Removal, World
from fedjax_sim.diagnose.remedies import drift_corrections, fewer_steps, server_optimizers, tuned_rates

PASSES = 5  # over a client's examples in a round, beyond which there are too many by custom
STEPS = 150  # likewise, where they are asked for by number
ROUNDS = 2000  # at most, of the world without drift
NORMALISED = ("fedadam", "fedyogi", "fedadagrad", "signsgd", "fedexp", "fedsgd")  # whose steps a round bounds


def _removals(facts: Facts) -> list[Removal]:
    config, training = facts.config, facts.config.training
    steps = float(facts.steps[facts.steps > 0].mean())
    # momentum starts afresh each round: a few steps are needed for it to be felt at all
    momentum = config.algorithm.momentum
    fewest = max(
        1 if momentum == 0 else math.ceil(3 / (1 - momentum) - 1e-9), math.ceil(steps * training.rounds / ROUNDS)
    )
    if fewest > steps / 2 or config.algorithm.name in NORMALISED or training.adapt_steps != "none":
        return []
    times = round(steps / fewest)

    def apart(world: World) -> World:
        """More messages would be noised, clipped, compressed or late more often, which is not what is asked about."""
        now = world.config
        sent = now.compression.uplink == now.compression.downlink == "none" and now.compression.lazy is None
        alone = now.network.profiles == "none" or (now.network.policy == "wait" and not now.network.dropout)
        if now.privacy.mechanism != "none" or not sent or not alone:
            return world
        drifts = now.heterogeneity.drift_round
        later = {} if drifts is None else {"heterogeneity.drift_round": (drifts - 1) * times + 1}
        return world.set({
            "training.local_steps": fewest, "training.rounds": now.training.rounds * times,
            "training.evaluate_every": min(100_000, now.training.evaluate_every * times), **later,
        })  # fmt: skip

    some = "one local step" if fewest == 1 else f"{fewest} local steps"
    return [Removal(f"{some} a round, {times} times as many rounds, the same work", apart)]


def _passes(facts: Facts) -> float:
    """Over its examples, of a client in the middle."""
    sizes, batch = facts.experiment.data.sizes, facts.config.training.batch_size
    held = sizes > 0
    return float((facts.steps[held] * batch).sum() / sizes[held].sum())


def _rank(facts: Facts) -> int:
    return EXTREME if _passes(facts) > PASSES or (facts.config.training.local_steps or 0) >= STEPS else HABIT


def _evidence(facts: Facts) -> list[str]:
    mean = facts.steps[facts.steps > 0].mean()
    found = [f"A client makes {mean:.0f} local steps in a round, {_passes(facts):.1f} passes over its examples."]
    before, after = facts.mean("loss_before"), facts.mean("loss_after")
    if before is not None and after is not None:
        found.append(f"On its own examples a client's loss falls from {before:.3g} to {after:.3g} in a round.")
    last = slice(-max(1, len(facts.history) // 5), None)
    moved, kept = (facts.history.every(name)[last] for name in ("drift", "aggregate_norm"))
    moved, kept = (values[~np.isnan(values)] for values in (moved, kept))
    if len(moved) and kept.any():
        found.append(f"At the end clients move {moved.mean():.3g} away and the global model {kept.mean():.3g}: the "
                     "rest cancels out.")  # fmt: skip
    return found


def _remedies(facts: Facts) -> list[Remedy]:
    return [*fewer_steps(facts), *drift_corrections(facts), *server_optimizers(facts), *tuned_rates(facts)[:2]]


CLIENT_DRIFT = Cause("client_drift", "Client drift by local steps", _removals, _rank, _evidence, _remedies)
