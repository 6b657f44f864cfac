"""Whether a guarantee of privacy holds on a clock: an accountant counts what a client sends, and nothing else of it."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim import network
from fedjax_sim.experiment.communication import Network
from fedjax_sim.network import Availability, Policy, Profiles, Trace


class Parts(NamedTuple):
    """What decides who is asked and who counts; named as the arguments of `network.coupling`."""

    policy: Policy | None  # None for an asynchronous schedule
    late: str
    availability: Availability | None
    server_bps: float | None
    traces: Sequence[Trace] | None

    def coupling(self) -> network.Coupling | None:
        """How one client decides what becomes of others."""
        return network.coupling(**self._asdict())


_SETTINGS = {"traces": "bandwidth_path"}  # of [network], where they are called otherwise
_REMEDIES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("leave network.late out", {"late": "drop"}),
    ("leave network.server_bps out", {"server_bps": None}),
    ("leave network.availability out", {"availability": None}),
    ("leave network.bandwidth_path out", {"traces": None}),
    ("set network.policy=wait", {"policy": network.wait_for_all()}),
    ("set network.policy=deadline with network.wait_out=true", {"policy": network.deadline(1.0, wait_out=True)}),
)


def all_arrive(parts: Parts, profiles: Profiles) -> bool:
    """Whether as many clients arrive as are drawn, in every round."""
    waits = parts.policy is not None and not parts.policy.by_time and not parts.policy.by_others
    return waits and parts.availability is None and not np.any(np.asarray(profiles.dropout) > 0)


def uncounted(given: Network, parts: Parts) -> str | None:
    """Why no guarantee of privacy holds, as an error that names the setting and what to do; None where one does.

    What it recommends has been tried: under every remedy that it names nobody decides what becomes of others.
    """
    found = parts.coupling()
    if found is None and parts.late == "drop":
        return None
    if found is None:
        name, reason = "late", "a message counts in a round that its client was not drawn for"
    else:
        others = [name for name in found.arguments if name != "policy"]
        name, reason = others[-1] if others else "policy", found.reason
        reason += "; so one client's presence decides which others count"
    setting = _SETTINGS.get(name, name)
    cures = ", or ".join(_remedies(parts)[:2])
    return (
        f"network.{setting}: with {getattr(given, setting)!r} {reason}, and that is not accounted for; {cures}, or "
        "set privacy.guarantee=none"
    )


def _remedies(parts: Parts) -> list[str]:
    """The smallest changes after which a guarantee holds."""
    for size in range(1, len(Parts._fields) + 1):
        tried = []
        for chosen in combinations(_REMEDIES, size):
            changes = {name: value for _, change in chosen for name, value in change.items()}
            changed = parts._replace(**changes)
            if len(changes) == size and changed.late == "drop" and changed.coupling() is None:
                tried.append(" and ".join(words for words, _ in chosen))
        if tried:
            return tried
    return []
