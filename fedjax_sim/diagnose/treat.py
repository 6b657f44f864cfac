"""What helps: remedies against the causes found, tried on the run as it is, and the best two of them together."""

from typing import Any

from fedjax_sim.diagnose.cause import Cause, Facts, Remedy
from fedjax_sim.diagnose.found import Diagnosis, Tried
from fedjax_sim.diagnose.game import estimate
from fedjax_sim.diagnose.laboratory import Course, Laboratory
from fedjax_sim.diagnose.personal import FOR, personal_models
from fedjax_sim.diagnose.remedies import possible
from fedjax_sim.diagnose.worlds import World
from fedjax_sim.experiment.config import to_toml

MEASURED = 4  # of the remedies that look best, how many are measured under all seeds


def treat(
    lab: Laboratory, facts: Facts, found: Diagnosis, causes: list[Cause], seeds: list[int], tuning: list[int]
) -> Diagnosis:
    """`found` with the remedies against these causes, the best pair, and the configuration with what helps most.

    Remedies are looked through under the tuning seed; those that look best are measured under the others.
    """
    listed: dict[str, tuple[str, Remedy, World]] = {}
    for cause in causes:
        for remedy in cause.remedies(facts):
            world = possible(lab.experiment, facts.world, remedy)
            if world is not None:
                listed.setdefault(world.key(), (cause.name, remedy, world))
    listed.pop(facts.world.key(), None)
    if any(cause.name in FOR for cause in causes):
        found = found._replace(personal=personal_models(lab, facts, seeds))
    if not listed:
        return found
    with lab.work("remedies"):
        looked = lab.train([world for *_, world in listed.values()], tuning)
        order = sorted(zip(listed.values(), looked, strict=True), key=lambda pair: -pair[1][0].ended)
        best = [chosen for chosen, _ in order[:MEASURED]]
        for cause in causes:  # the best against each cause is among them
            if all(name != cause.name for name, *_ in best):
                best += [chosen for chosen, _ in order if chosen[0] == cause.name][:1]
        trained = lab.train([world for *_, world in best], seeds)
        tried = [_tried(remedy, courses, facts.courses) for (_, remedy, _), courses in zip(best, trained, strict=True)]
        tried.sort(key=lambda t: -t.gain.mean)
        pair = _pair(lab, facts, tried, seeds, tuning)
    top = max([t for t in (*tried, pair) if t is not None and t.gain.low > 0], key=lambda t: t.gain.mean, default=None)
    config = "" if top is None else _ready(lab, facts.world.set(top.settings))
    return found._replace(remedies=tried, pair=pair, config=config)


def _ready(lab: Laboratory, world: World) -> str:
    """The configuration as TOML. One for data of the user's own says so, or it would train on what it names."""
    own = {} if lab.data is None else {"data": lab.experiment(world).config.data}
    return to_toml(world.config.model_copy(update=own))


def _pair(lab: Laboratory, facts: Facts, tried: list[Tried], seeds: list[int], tuning: list[int]) -> Tried | None:
    """The best two together, of those that go together and each help."""
    helps = [t for t in tried if t.gain.mean > 0]
    able: list[tuple[Remedy, World]] = []
    for i, one in enumerate(helps):
        for other in helps[i + 1 :]:
            if not _contradict(one.settings, other.settings):
                both = Remedy(f"{one.name} and {other.name}", {**one.settings, **other.settings})
                world = possible(lab.experiment, facts.world, both)
                if world is not None:
                    able.append((both, world))
    if not able:
        return None
    looked = lab.train([world for _, world in able], tuning)
    both, world = (
        max(zip(able, looked, strict=True), key=lambda pair: pair[1][0].ended)[0] if len(able) > 1 else able[0]
    )
    return _tried(both, lab.train([world], seeds)[0], facts.courses)


def _contradict(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return any(path in other and other[path] != value for path, value in one.items())


def _tried(remedy: Remedy, courses: list[Course], base: list[Course]) -> Tried:
    ended = [course.ended for course in courses]
    gain = estimate([value - course.ended for value, course in zip(ended, base, strict=True)])
    return Tried(remedy.name, dict(remedy.settings), gain, sum(ended) / len(ended))
