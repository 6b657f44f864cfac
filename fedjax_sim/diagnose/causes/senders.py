"""Malicious or broken clients: what they send, or train on, is not what it should be."""

from collections import Counter

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
    cosines: dict[int, list[float]] = {}
    broken: Counter[int] = Counter()
    for row in facts.rows:
        listed = row.get("per_client") or {}
        for client, cosine in zip(listed.get("ids", []), listed.get("cosine", []), strict=False):
            if cosine is None:
                broken[client] += 1
            else:
                cosines.setdefault(client, []).append(cosine)
    if broken:
        found.append(f"The first to send what is not finite: {data.name(broken.most_common(1)[0][0])}.")
    means = {client: sum(values) / len(values) for client, values in cosines.items()}
    if means:
        odd = min(means, key=lambda client: means[client])
        typical = sorted(means.values())[len(means) // 2]
        found.append(f"The odd one out is {data.name(odd)}: its updates point {means[odd]:.2f} (cosine) along the "
                     f"aggregate, the median client's {typical:.2f}.")  # fmt: skip
    return found


def _remedies(facts: Facts) -> list[Remedy]:
    return robust_rules(facts)


MALICIOUS_CLIENTS = Cause(
    "malicious_clients", "Malicious or broken clients", _removals, lambda facts: EXTREME, _evidence, _remedies
)
