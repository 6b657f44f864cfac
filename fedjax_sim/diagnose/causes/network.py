"""Clients whose messages come late or never: deadlines, dropouts, hours in which they cannot be reached."""

import numpy as np

from fedjax_sim.diagnose.cause import EXTREME, Cause, Facts, Remedy, Removal, cleared

OF_POLICIES = ("partial", "extra", "concurrency", "buffer", "mixing", "late", "discount", "exponent", "slope", "delay")


def _removals(facts: Facts) -> list[Removal]:
    given = facts.config.network
    whole = given.policy == "wait" and not given.dropout and given.availability == "always" and given.profiles != "csv"
    if given.profiles == "none" or (whole and given.completeness in (None, 1.0)):
        return []
    off = cleared(facts.config, "network")
    return [Removal("nobody late, dropped out or out of reach", lambda world: world.set(off))]


def _evidence(facts: Facts) -> list[str]:
    asked = facts.total("asked")
    if not asked:
        return []
    found = [f"Of {asked:.0f} clients asked, {facts.total('late') / asked:.0%} were late and "
             f"{facts.total('dropped') / asked:.0%} never answered."]  # fmt: skip
    seen, sizes = facts.seen.clients, facts.experiment.data.sizes
    turns = np.bincount(seen["client"], seen["asked"], len(sizes))
    missed = np.bincount(seen["client"], seen["late"] + seen["dropped"], len(sizes))
    lost = np.flatnonzero((turns > 2) & (missed == turns)).tolist()
    if lost:
        names = ", ".join(facts.experiment.data.name(client) for client in lost[:5])
        names += f" and {len(lost) - 5} more" if len(lost) > 5 else ""
        share = sizes[lost].sum() / max(sizes.sum(), 1)
        found.append(f"Never heard in time: {names}, with {share:.0%} of the examples.")
    if stale := facts.mean("staleness"):
        found.append(f"Messages are {stale:.1f} rounds old on average.")
    return found


def _remedies(facts: Facts) -> list[Remedy]:
    given, lost = facts.config.network, {f"network.{name}": None for name in OF_POLICIES}
    wait = {**lost, "network.policy": "wait", "network.deadline_seconds": None}
    found = [Remedy("waiting for all", wait)] if given.policy != "wait" else []
    if given.deadline_seconds is not None:
        for by in (2.0, 5.0):
            longer = given.deadline_seconds * by
            found.append(Remedy(f"a deadline of {longer:.3g} s", {"network.deadline_seconds": longer}))
        found.append(Remedy("partial work of clients that would be late", {"network.partial": True}))
        found.append(Remedy("late messages taken in a later round", {"network.late": "stale"}))
    found.append(Remedy("FedBuff: asynchronous rounds",
                        {**lost, "network.deadline_seconds": None, "network.policy": "asynchronous"}))  # fmt: skip
    return found


STRAGGLERS = Cause("stragglers", "Stragglers and dropouts", _removals, lambda facts: EXTREME, _evidence, _remedies)
