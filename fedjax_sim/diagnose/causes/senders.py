"""Malicious or broken clients: what they send, or train on, is not what it should be."""

import numpy as np

from fedjax_sim.attacks import malicious
from fedjax_sim.diagnose.cause import EXTREME, Cause, Facts, Remedy, Removal, cleared
from fedjax_sim.diagnose.remedies import robust_rules


def _removals(facts: Facts) -> list[Removal]:
    if facts.config.attack.name == "none" or not _who(facts).any():
        return []
    off = cleared(facts.config, "attack")
    return [Removal("malicious or broken clients made honest", lambda world: world.set(off))]


def _who(facts: Facts):
    return malicious(facts.experiment.data.num_clients, facts.config.attack.fraction, facts.config.data.seed)


def _evidence(facts: Facts) -> list[str]:
    who, data = _who(facts), facts.experiment.data
    found = [f"{int(who.sum())} of {data.num_clients} clients: {facts.config.attack.name}."]
    if rejected := facts.total("rejected"):
        found.append(f"{rejected:.0f} messages were not finite and were left out.")
    seen = facts.seen.clients[facts.seen.clients["counted"]]
    broken = seen["rejected"] | ~np.isfinite(seen["update_norm"])
    if broken.any():  # from the next round on, everybody's may be
        first = seen["round"][broken].min()
        names = [data.name(int(client)) for client in np.unique(seen["client"][broken & (seen["round"] == first)])]
        names = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        found.append(f"The first to send what is not finite, in round {first}: {names}.")
    fine = seen[~broken & np.isfinite(seen["cosine"])]
    clients, place = np.unique(fine["client"], return_inverse=True)
    if len(clients) > 1:
        means = np.bincount(place, fine["cosine"]) / np.bincount(place)
        odd = int(means.argmin())
        found.append(f"The odd one out is {data.name(int(clients[odd]))}: its updates point {means[odd]:.2f} (cosine) "
                     f"along the aggregate, the median client's {np.median(means):.2f}.")  # fmt: skip
    return found


def _remedies(facts: Facts) -> list[Remedy]:
    return robust_rules(facts)


MALICIOUS_CLIENTS = Cause(
    "malicious_clients", "Malicious or broken clients", _removals, lambda facts: EXTREME, _evidence, _remedies
)
