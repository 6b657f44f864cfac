"""What causes answer for, from the accuracies of worlds without some of them, and the verdict on the whole."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from fedjax_sim.diagnose.cause import Cause, Removal
from fedjax_sim.diagnose.found import (
    AVERAGED,
    GUESSING,
    HEALTHY,
    LITTLE,
    MATTERS,
    NOISY,
    STALLED,
    STALLS,
    UNFINISHED,
    Interaction,
    Suspect,
)
from fedjax_sim.diagnose.game import Estimate, dividends, estimate, moderated, shares
from fedjax_sim.diagnose.laboratory import Course


class Candidate(NamedTuple):
    """A cause that may be at work, and the best way to take it away."""

    cause: Cause
    removals: list[Removal]
    best: Removal


Accuracies = Mapping[frozenset[str], Sequence[float]]  # under each seed, by the causes that are taken away


def helpful(without: Accuracies, rank: Callable[[str], int]) -> Accuracies:
    """The worlds without causes whose share of the loss is surely negative.

    What takes such a cause away may help by itself, and does harm where the others are gone: labels that are read anew
    because a client's inputs are scaled, say.
    """
    share = moderated(_parts(without, rank))
    worst = min(share, key=lambda name: share[name].mean, default=None)
    if worst is None or share[worst].mean > -LITTLE or share[worst].high >= 0:
        return without
    return helpful({gone: accuracies for gone, accuracies in without.items() if worst not in gone}, rank)


def attribute(
    candidates: Sequence[Candidate],
    gains: Mapping[str, Estimate],
    without: Accuracies,
    rank: Callable[[str], int],
    evidence: Callable[[Cause], list[str]],
) -> tuple[list[Suspect], list[Interaction]]:
    """What each candidate costs, the costliest first, and what some cost only together.

    Args:
      candidates: causes that were looked for.
      gains: by taking each alone away from the run.
      without: the accuracies under each seed without every subset of the causes that matter.
      rank: who answers for what several do together.
      evidence: of the run itself.
    """
    of = {candidate.cause.name: candidate for candidate in candidates}
    every = max(without, key=len)
    costs = {every - gone: np.subtract(without[every], accuracies) for gone, accuracies in without.items()}
    parts = _parts(without, rank)
    share, added = moderated(parts), moderated({name: costs[frozenset([name])].tolist() for name in parts})
    matter = sorted(parts, key=lambda name: -share[name].mean)
    tied = {one for one, other in pairwise(matter) if _tied(parts, one, other)}
    others = sorted((name for name in of if name not in every), key=lambda name: -gains[name].mean)
    suspects = [
        Suspect(name, of[name].cause.title, of[name].best.name, gains[name], added.get(name), share.get(name),
                name in tied, evidence(of[name].cause))
        for name in [*matter, *others]
    ]  # fmt: skip
    return suspects, _interactions([dividends(worth) for worth in _worths(without)])


def _worths(without: Accuracies) -> list[dict[frozenset[str], float]]:
    """Under each seed, what every subset of the causes costs in the world without the others."""
    every = max(without, key=len)
    return [{every - gone: float(without[every][i] - accuracies[i]) for gone, accuracies in without.items()}
            for i in range(len(without[every]))]  # fmt: skip


def _parts(without: Accuracies, rank: Callable[[str], int]) -> dict[str, list[float]]:
    """What each cause answers for, under each seed."""
    each = [shares(worth, rank) for worth in _worths(without)]
    return {name: [share[name] for share in each] for name in sorted(max(without, key=len))}


def _interactions(by_seed: Sequence[Mapping[frozenset[str], float]]) -> list[Interaction]:
    """Dividends of several causes that are not chance, the largest first."""
    together = [left for left in by_seed[0] if len(left) > 1]
    values = [(left, estimate([found[left] for found in by_seed])) for left in together]
    found = [Interaction(tuple(sorted(left)), value) for left, value in values
             if abs(value.mean) >= LITTLE and (value.low > 0 or value.high < 0)]  # fmt: skip
    return sorted(found, key=lambda interaction: -abs(interaction.points.mean))


def _tied(parts: Mapping[str, list[float]], one: str, other: str) -> bool:
    """Whether two causes both cost something, and which costs more cannot be told."""
    gap = [a - b for a, b in zip(parts[one], parts[other], strict=True)]
    found = moderated({**parts, "": gap})
    return min(found[one].low, found[other].low) > 0 and found[""].low <= 0


def verdict(lost: Estimate, suspects: Sequence[Suspect], guessing: bool) -> str:
    """Whether a run that loses so much is healthy, not finished, too noisy to tell, or stalled; one that is no better
    than `guessing` is never healthy."""
    found = _verdict(lost, suspects)
    return GUESSING if guessing and found == HEALTHY else found


def _verdict(lost: Estimate, suspects: Sequence[Suspect]) -> str:
    found = [suspect for suspect in suspects if suspect.share is not None]
    if any(suspect.counts for suspect in found):
        return UNFINISHED if found[0].name == "too_few_rounds" else STALLED
    if found:
        return NOISY
    if lost.mean < STALLS:
        return HEALTHY
    if lost.low <= 0 or any(suspect.alone.mean >= MATTERS for suspect in suspects):
        return NOISY
    return HEALTHY if lost.mean < AVERAGED else STALLED  # nothing is gained without any cause


def differences(
    candidates: Sequence[Candidate], better: Sequence[Sequence[Course]], worse: Sequence[Sequence[Course]]
) -> dict[str, Estimate]:
    """What one world of each candidate has over another, paired by seed."""
    gains = {c.cause.name: [a.ended - b.ended for a, b in zip(*pair, strict=True)]
             for c, *pair in zip(candidates, better, worse, strict=True)}  # fmt: skip
    return moderated(gains)


def sure(candidates: Sequence[Candidate], gains: Mapping[str, Estimate]) -> list[Candidate]:
    """Those that gain something that is not chance, the largest gain first."""
    found = [c for c in candidates if gains[c.cause.name].mean >= MATTERS and gains[c.cause.name].low > 0]
    return sorted(found, key=lambda c: -gains[c.cause.name].mean)


def difference(better: Sequence[Course], worse: Sequence[Course]) -> Estimate:
    """Paired by seed."""
    return estimate([a.ended - b.ended for a, b in zip(better, worse, strict=True)])


def ended(courses: Sequence[Course]) -> Estimate:
    """Accuracy at the end."""
    return estimate([course.ended for course in courses])


def curve(courses: Sequence[Course]) -> list[list[float]]:
    """Rounds, and the mean accuracy after them."""
    mean = np.mean([[a or 0.0 for a in course.accuracy] for course in courses], axis=0)
    return [[float(r), float(a)] for r, a in zip(courses[0].rounds, mean, strict=True)]
