"""Compression: what is sent is not what was learnt."""

from fedjax_sim.diagnose.cause import EXTREME, Cause, Facts, Remedy, Removal, World, cleared
from fedjax_sim.diagnose.remedies import by_algorithm

SPARSE = ("fedavg_topk", "signsgd")  # algorithms that compress by themselves


def _removals(facts: Facts) -> list[Removal]:
    given, algorithm = facts.config.compression, facts.config.algorithm.name
    if given.uplink == given.downlink == "none" and given.lazy is None and algorithm not in SPARSE:
        return []
    off = dict(cleared(facts.config, "compression"))
    for remedy in by_algorithm(facts, "fedavg", "") if algorithm in SPARSE else []:
        off |= remedy.settings
    return [Removal("messages sent as they are", lambda world: world.set(off))]


def _evidence(facts: Facts) -> list[str]:
    given, model = facts.config.compression, facts.experiment.model.params
    import jax

    entries = sum(leaf.size for leaf in jax.tree.leaves(model))
    messages = facts.total("clients") + (facts.total("late") if facts.config.network.late == "drop" else 0)
    found = []
    if messages:
        bits = facts.total("uplink_bits") / messages
        found.append(f"A message has {bits / entries:.2g} bits for each of {entries:,} parameters, uncompressed 32.")
    if given.uplink != "none":
        found.append(f"Uplink {given.uplink}, error feedback {given.feedback}.")
    return found


def _remedies(facts: Facts) -> list[Remedy]:
    given = facts.config.compression
    found = []
    if given.uplink != "none":
        found += [Remedy(f"error feedback ({feedback})", {"compression.feedback": feedback})
                  for feedback in ("classic", "ef21") if given.feedback != feedback]  # fmt: skip
        if given.uplink in ("top_k", "random_k", "drive"):
            fraction = min(1.0, 4 * (given.fraction or 0.05))
            if given.uplink != "drive":
                found.append(Remedy(f"{fraction:.3g} of the entries sent", {"compression.fraction": fraction}))
        if given.uplink == "qsgd" and given.levels:
            found.append(Remedy(f"{given.levels * 4} levels", {"compression.levels": given.levels * 4}))
        found.append(Remedy("uplink in half precision", {**_bare(facts.world), "compression.uplink": "half"}))
    if given.lazy is not None:
        found.append(Remedy("no message left out", {"compression.lazy": None}))
    return found


def _bare(world: World) -> dict[str, None]:
    return dict(cleared(world.config, "compression", keep=("downlink",)))


COMPRESSION = Cause("compression", "Compression", _removals, lambda facts: EXTREME, _evidence, _remedies)
