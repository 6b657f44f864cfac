"""Whether one client can change what becomes of the others: derived from what each part of a schedule depends on.

Under differential privacy one client more or less may change a sum by its own message and nothing else. A schedule
breaks that where who else is asked, whose message counts or how much work others do can be reached from a client's
presence. What depends on what is a small graph, whose edges are there or not as the parts of the schedule say.
"""

from collections.abc import Sequence
from typing import NamedTuple

from fedjax_sim.network.availability import Availability
from fedjax_sim.network.policy import Policy, wait_for_all
from fedjax_sim.network.trace import Trace

PRESENCE = "presence of a client, and how slow it is"
TIMES = "when the messages of others arrive"
CLOCK = "when rounds begin"
COUNTS = "who else is asked, whose message counts, and for how many local steps"


class Coupling(NamedTuple):
    """How one client's presence reaches the others."""

    arguments: tuple[str, ...]  # of `coupling` that make it so, from cause to effect
    reason: str  # in words


def coupling(
    policy: Policy | None,
    *,
    late: str = "drop",
    availability: Availability | None = None,
    server_bps: float | None = None,
    traces: Sequence[Trace] | None = None,
) -> Coupling | None:
    """How one client's presence can change who else is asked, whose message counts or how much work others do.

    Each client's dropout, completeness, link and device are its own, and so is when it can be reached: they couple
    nobody.

    Args:
      policy: of synchronous rounds; None for an asynchronous schedule. The other arguments are those of `synchronous`.

    Returns:
      The shortest way from cause to effect, or None where there is none, whatever the profiles and the draws.
    """
    if not isinstance(policy, Policy):
        policy = Policy(wait_for_all() if policy is None else policy)  # which says nothing of itself
    edges = (
        (policy.by_others, PRESENCE, COUNTS, "policy", "the server goes on with whoever comes first"),
        (server_bps is not None, PRESENCE, TIMES, "server_bps", "transfers share the server's link"),
        (policy.seconds is None, PRESENCE, CLOCK, "policy", "a round lasts as long as its slowest client"),
        (traces is not None, CLOCK, TIMES, "traces", "bandwidths depend on when a round begins"),
        (availability is not None, CLOCK, COUNTS, "availability", "who can be asked depends on when a round begins"),
        (late == "stale", CLOCK, COUNTS, "late", "a late message counts in the round that it comes in"),
        (policy.by_time, TIMES, COUNTS, "policy", "who is late does not count, or does less work"),
    )
    ways: dict[str, tuple[tuple[str, str], ...]] = {PRESENCE: ()}
    for _ in edges:  # breadth first, so that the first way found is a shortest
        for _, cause, effect, argument, words in [edge for edge in edges if edge[0] and edge[1] in ways]:
            ways.setdefault(effect, (*ways[cause], (argument, words)))
    if COUNTS not in ways:
        return None
    arguments, words = zip(*ways[COUNTS], strict=True)
    return Coupling(tuple(dict.fromkeys(arguments)), ", and ".join(words))
