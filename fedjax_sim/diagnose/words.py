"""A diagnosis in plain sentences."""

import math
from itertools import pairwise

from fedjax_sim.diagnose.found import GUESSING, HEALTHY, LITTLE, MATTERS, NOISY, STALLED, STALLS, UNFINISHED, Diagnosis
from fedjax_sim.diagnose.game import Estimate
from fedjax_sim.experiment.config import Config

SETTLED = 0.005  # accuracy below its last from which on a curve has nothing left to gain
DIVERSE = 0.1  # divergence of labels that is worth a word where it is harmless


def title(config: Config) -> str:
    """What was trained."""
    return f"{config.algorithm.name} on {config.data.name}, {config.model.name}"


def span(value: Estimate, sign: bool = False) -> str:
    """Points with their interval."""
    form = "+.1f" if sign else ".1f"
    mean = f"{100 * value.mean:{form}}"
    if math.isinf(value.low):
        return mean
    return f"{mean} ({100 * value.low:.1f} to {100 * value.high:.1f})"


def sentences(found: Diagnosis) -> list[str]:
    """The verdict, what each cause costs, what is left, and what helps."""
    said = [_verdict(found)]
    matter = [suspect for suspect in found.suspects if suspect.counts]
    if matter and found.mended is not None:
        whole = 100 * (found.mended.mean - found.run.mean)
        each = [f"{s.title.lower()} {span(s.share)}" for s in matter if s.share is not None]
        said.append(f"Of {whole:.1f} points that can be explained: {', '.join(each)}.")
        tied = [(a, b) for a, b in pairwise(matter) if a.tied]
        said += [f"A tie: whether {a.title.lower()} or {b.title.lower()} costs more cannot be told." for a, b in tied]
        if found.unexplained is not None:
            left = found.unexplained
            if left.mean >= LITTLE:
                said.append(f"Unexplained: {span(left)} points below training in one place.")
            elif left.mean <= -LITTLE:
                said.append(f"Without these causes it would be {span(Estimate(-left.mean, -left.high, -left.low))} "
                            "points better than training in one place is today.")  # fmt: skip
        for part in found.interactions[:2]:
            names = " and ".join(_titles(found, part.names))
            how = "beyond what each costs by itself" if part.points.mean > 0 else "less than each by itself"
            said.append(f"{names}: {span(_size(part.points))} points {how}.")
    elif found.verdict == STALLED:
        said.append("None of the causes that were looked for accounts for it.")
    said += _helps(found)
    return said


def _verdict(found: Diagnosis) -> str:
    run, ceiling = f"{found.run.mean:.1%}", f"{found.ceiling.mean:.1%}"
    compared = (
        f"The run reaches {run}, training in one place with tuned rates {ceiling}: {span(found.lost)} points lost"
    )
    if found.guessing:
        constant = f"always answering the most frequent class {found.chance:.1%}"
        compared = f"The run reaches {run}, {constant}, training in one place with tuned rates {ceiling}"
        if found.verdict == GUESSING:
            return (
                f"No better than guessing. {compared}. If anything is learnt, it shows in the accuracy of each class "
                "and in AUC, not here; if not, see whether labels belong to their inputs, whether inputs are scaled, "
                "and whether the learning rate is right."
            )
        compared += f": {span(found.lost)} points lost"
    if found.verdict == HEALTHY:
        said = [f"Healthy. {compared.split(':')[0]}; none of the causes that were looked for holds it back."]
        if found.lost.mean >= STALLS:
            said.append("The rest is what averaging costs: in one place, as many steps are made one after another.")
        if found.label_divergence is not None and found.label_divergence >= DIVERSE:
            said.append(
                f"Clients' labels diverge by {found.label_divergence:.2f} beyond chance; here that does no harm."
            )
        return " ".join(said)
    if found.verdict == UNFINISHED:
        curve = found.curves["without the causes"]
        enough = next(r for r, accuracy in curve if accuracy >= curve[-1][1] - SETTLED)
        return f"Not finished: accuracy is still rising, and would until about round {enough:.0f}. {compared}."
    if found.verdict == NOISY:
        may = [s for s in found.suspects if s.alone.mean >= MATTERS]
        needed = max(_seeds_needed(found, value) for value in (found.lost, *(s.alone for s in may[:1])))
        named = f" It may be {may[0].title.lower()}: {span(may[0].alone, True)}." if may else ""
        return f"Too noisy to tell. {compared}.{named} With {needed} seeds instead of {len(found.seeds)} it would show."
    if found.lost.mean < STALLS and not found.guessing:
        return f"The run is as good as training in one place ({run} against {ceiling}), and both are held back."
    return f"It stalls. {compared}."


def _seeds_needed(found: Diagnosis, value: Estimate) -> int:
    """For an interval that leaves 0 out, if the mean and the spread stay as they are."""
    half, seeds = (value.high - value.low) / 2, len(found.seeds)
    spread = half * math.sqrt(seeds) / _students(seeds)
    needed = 2
    while needed < 1000 and _students(needed) * spread / math.sqrt(needed) >= value.mean:
        needed += 1
    return needed


def _students(seeds: int) -> float:
    from scipy.stats import t

    return float(t.ppf(0.975, seeds - 1))


def _helps(found: Diagnosis) -> list[str]:
    able = [tried for tried in (*found.remedies, found.pair) if tried is not None and tried.gain.low > 0]
    said = []
    own = next((personal for personal in found.personal if personal.gain.low > 0), None)
    if own is not None:
        said = [f"On the clients' own test examples, {own.name} reaches {own.after:.1%} where the global model has "
                f"{own.before:.1%}: {span(own.gain, True)} points."]  # fmt: skip
    if not able:
        return ["None of the remedies that were tried helps for sure.", *said] if found.remedies else said
    best = max(able, key=lambda tried: tried.gain.mean)
    said = [*said, f"What helps most here: {best.name}, {span(best.gain, True)} points."]
    single = next((tried for tried in found.remedies if tried.gain.low > 0), None)
    if best is found.pair and single is not None:
        said.append(f"Alone: {single.name}, {span(single.gain, True)}.")
    return said


def _titles(found: Diagnosis, names: tuple[str, ...]) -> list[str]:
    titles = {suspect.name: suspect.title for suspect in found.suspects}
    return [titles[name] if i == 0 else titles[name].lower() for i, name in enumerate(names)]


def _size(value: Estimate) -> Estimate:
    return value if value.mean >= 0 else Estimate(-value.mean, -value.high, -value.low)
