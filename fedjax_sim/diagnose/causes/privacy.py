"""Differential privacy: the noise, and the clipping that it needs. Two causes, for they are mended differently."""

from fedjax_sim.diagnose.cause import EXTREME, Cause, Facts, Remedy, Removal, World, cleared
from fedjax_sim.diagnose.remedies import larger_cohort, tuned_rates

QUIET, FAR = 1e-9, 1e6  # a noise multiplier that is none, and by how much a norm is raised that is to clip nothing


def _noise_removals(facts: Facts) -> list[Removal]:
    if facts.config.privacy.mechanism == "none":
        return []

    def quiet(world: World) -> World:
        given = world.config.privacy
        if given.mechanism in ("none", "laplace_bare") or _unclipped(facts, world):
            return world.set(cleared(world.config, "privacy"))
        kept = {"privacy.mechanism": "gaussian", "privacy.dropout": None, "privacy.delta": None}
        kept = kept if given.mechanism == "discrete_gaussian" else {}
        return world.set({**kept, **_counted(world, QUIET)})

    return [Removal("clipping without noise", quiet)]


def _clipping_removals(facts: Facts) -> list[Removal]:
    if facts.config.privacy.mechanism in ("none", "laplace_bare"):
        return []
    assert facts.experiment.private is not None
    multiplier, norm = facts.experiment.private.noise_multiplier, facts.config.privacy.clip_norm

    def unclipped(world: World) -> World:
        given = world.config.privacy
        if given.mechanism == "none" or given.noise_multiplier == QUIET:
            return world.set(cleared(world.config, "privacy"))
        norms = {"privacy.clip_norm": norm * FAR, "privacy.adaptive": None}
        return world.set({**norms, **_counted(world, multiplier / FAR)})

    return [Removal("as much noise without clipping", unclipped)]


def _unclipped(facts: Facts, world: World) -> bool:
    now, norm = world.config.privacy.clip_norm, facts.config.privacy.clip_norm
    return now is not None and norm is not None and now >= norm * FAR


def _counted(world: World, multiplier: float) -> dict[str, object]:
    """So much noise, which is no longer what a guarantee is worked out from."""
    made: dict[str, object] = {"privacy.epsilon": None, "privacy.noise_multiplier": multiplier}
    return made | ({} if world.config.privacy.mechanism == "dp_sgd" else {"privacy.guarantee": "none"})


def _noise_evidence(facts: Facts) -> list[str]:
    found = []
    signal, noise = facts.mean("signal_norm"), facts.mean("noise_norm")
    if signal is not None and noise is not None:
        found.append(f"The noise on an aggregate is {noise / max(signal, 1e-12):.2g} times as long as what is in it.")
    if facts.experiment.private is not None:
        found.append(f"{facts.experiment.private.statement[0].upper()}{facts.experiment.private.statement[1:]}.")
    return found


def _clipping_evidence(facts: Facts) -> list[str]:
    clipped, found = facts.mean("clipped"), []
    if clipped is not None:
        found.append(f"{clipped:.0%} of the updates were clipped to {facts.config.privacy.clip_norm:g}.")
    if (length := facts.mean("update_norm")) is not None and (moved := facts.mean("drift")) is not None:
        found.append(f"Clients move the model by {moved:.3g} in a round, and what counts is {length:.3g} long.")
    return found


def _noise_remedies(facts: Facts) -> list[Remedy]:
    norm = facts.config.privacy.clip_norm
    lower = [Remedy(f"clip norm {norm * by:.3g}, with noise to match", {"privacy.clip_norm": norm * by})
             for by in (0.1, 0.3)] if norm is not None else []  # fmt: skip
    return [*larger_cohort(facts), *lower, *_adaptive(facts), *tuned_rates(facts)]


def _clipping_remedies(facts: Facts) -> list[Remedy]:
    norm = facts.config.privacy.clip_norm
    higher = [Remedy(f"clip norm {norm * by:.3g}", {"privacy.clip_norm": norm * by}) for by in (3.0, 10.0, 100.0)]
    return [*higher, *_adaptive(facts), *tuned_rates(facts)]


def _adaptive(facts: Facts) -> list[Remedy]:
    given = facts.config.privacy
    if given.mechanism != "gaussian" or given.adaptive:
        return []
    return [Remedy("adaptive clipping", {"privacy.adaptive": True})]


NOISE = Cause(
    "privacy_noise", "Privacy noise", _noise_removals, lambda facts: EXTREME, _noise_evidence, _noise_remedies
)
CLIPPING = Cause("clipping", "Clipping", _clipping_removals, lambda facts: EXTREME, _clipping_evidence,
                 _clipping_remedies)  # fmt: skip
