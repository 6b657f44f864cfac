"""Why accuracy is what it is: the run again in worlds that lack one suspected cause, or several."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fedjax_sim._validate import InputError, shown, whole
from fedjax_sim.data import FederatedData, describe
from fedjax_sim.diagnose.anchors import chance, guesses, in_one_place, tuned
from fedjax_sim.diagnose.attribution import (
    Candidate,
    attribute,
    curve,
    difference,
    differences,
    ended,
    helpful,
    sure,
    verdict,
)
from fedjax_sim.diagnose.cause import CONDITION, Cause, Facts, Removal
from fedjax_sim.diagnose.causes import CAUSES
from fedjax_sim.diagnose.found import AVERAGED, LITTLE, MATTERS, STALLS, Diagnosis
from fedjax_sim.diagnose.game import Estimate, coalitions
from fedjax_sim.diagnose.laboratory import NOT_SEEN, Course, Laboratory, Seen, Told
from fedjax_sim.diagnose.treat import treat
from fedjax_sim.diagnose.words import sentences, title
from fedjax_sim.diagnose.worlds import World
from fedjax_sim.experiment.build import Experiment
from fedjax_sim.experiment.clock import planned
from fedjax_sim.experiment.config import Config
from fedjax_sim.experiment.federation import GIVEN, held_out_examples, validation_share
from fedjax_sim.experiment.folder import studied
from fedjax_sim.experiment.origin import Marks
from fedjax_sim.experiment.space import refuse_many

PLAYERS = 4  # causes at most whose interactions are worked out
TREATED = 3  # causes that remedies are tried against, the costliest first
SEEDS = 2**32  # how many there are
TUNING = 7919  # added to the seed under which alternatives are chosen, which no reported figure is from


def diagnose(
    experiment: Config | Experiment,
    folder: str | Path,
    *,
    seeds: int = 5,
    data: FederatedData | None = None,
    causes: Sequence[Cause] = CAUSES,
    remedies: bool = True,
    seen: Seen | None = None,
    devices: list[Any] | None = None,
    told: Callable[[Told], None] = lambda told: None,
) -> Diagnosis:
    """Says why a federation's accuracy is what it is, and what helps.

    Trains the run as it is, the same in one place (the ceiling), and then the run in counterfactual worlds: without
    each suspected cause, and without any and all of those that matter. Worlds of one structure are one program.

    Args:
      experiment: the run, or its configuration.
      folder: where runs are kept as they end; a diagnosis that was stopped goes on there.
      seeds: training seeds of each world, from the configuration's on; at least 2.
      data: the clients' data, instead of what the configuration names.
      causes: what is looked for.
      remedies: whether to try what helps against the causes found.
      seen: what the run recorded, where it has been trained already: `finished(folder, rounds)`.
      devices: worlds are dealt to them; all by default.
      told: who watches.

    Returns:
      Everything that was found, as plain data.

    Raises:
      InputError: an argument of another kind, fewer than 2 seeds, a configuration that cannot be built, no data where
      those of the experiment were given, no test set, or a folder with runs of another diagnosis.
    """
    refuse_many("seeds", whole("seeds", seeds, least=2))
    if not isinstance(experiment, Config | Experiment):
        raise InputError(f"experiment: {shown(experiment)} is no configuration; give one, load_config(file) say")
    if data is not None and not isinstance(data, FederatedData):
        raise InputError(f"data: {shown(data)} are no federation; give one, from_clients(clients, test=...) say")
    if strange := [cause for cause in causes if not isinstance(cause, Cause)]:
        raise InputError(f"causes: {shown(strange[0])} is no Cause; give some of CAUSES, or causes_named([name])")
    config = experiment.config if isinstance(experiment, Experiment) else experiment
    if config.data.partition == GIVEN and data is None:
        raise InputError("data: missing, and the experiment was built on data of its own; give them")
    folder, began = Path(folder), time.perf_counter()
    mark = Marks(data)(config, [*_seeds(config, seeds), *_tuning(config)])
    world = World(config).set({"training.validation_fraction": validation_share(config)})  # the same in every world
    with studied(folder, config) as keep:
        lab = Laboratory(folder, devices or jax.local_devices(), data=data, mark=mark, keep=keep, told=told)
        found = _Examination(lab, world, seeds, causes, seen).examine(remedies)
    seconds = time.perf_counter() - began
    return found._replace(runs=lab.trained, programs=lab.compiled, seconds=round(seconds, 1))


def _seeds(config: Config, count: int) -> list[int]:
    return [(config.training.seed + i) % SEEDS for i in range(count)]


def _tuning(config: Config) -> list[int]:
    return [(config.training.seed + TUNING) % SEEDS]


class _Examination:
    def __init__(self, lab: Laboratory, world: World, seeds: int, causes: Sequence[Cause], seen: Seen | None):
        self.lab, self.world, self.causes, self.seen = lab, world, causes, seen
        self.seeds, self.tuning = _seeds(world.config, seeds), _tuning(world.config)

    def examine(self, remedies: bool) -> Diagnosis:
        """The whole diagnosis."""
        lab, world = self.lab, self.world
        experiment = lab.experiment(world)
        data = experiment.phases[-1].data
        steps = planned(experiment.config, data)
        with lab.work("the run as it is, and in one place"):
            one_place = in_one_place(world, experiment, steps)
            courses, same = lab.train([world, one_place], self.seeds)
            top = self._ceiling(world)
        lost = difference(top, courses)
        stalls = lost.mean >= STALLS
        facts = Facts(world, experiment, describe(data), self.seen or NOT_SEEN, courses, same, top, steps, {})
        candidates = self._candidates(facts, stalls)
        gains = self._screened(facts, candidates)
        players = self._players(candidates, gains, lost.mean)
        players, values = self._attributed(facts, candidates, players, gains)
        if self.seen is None and (stalls or players):
            with lab.work("the run, watched"):
                facts = facts._replace(seen=lab.observed(world))
        return self._concluded(facts, lost, candidates, gains, players, values, remedies)

    def _ceiling(self, world: World) -> list[Course]:
        """The same training in one place, with one of the best two of some learning rates where that is better: what is
        best under one seed may be too much under another."""
        experiment = self.lab.experiment(world)
        steps = planned(experiment.config, experiment.phases[-1].data)
        one_place = in_one_place(world, experiment, steps)
        places = [one_place, *tuned(one_place, experiment.config.algorithm.learning_rate)]
        trials = zip(places, self.lab.train(places, self.tuning), strict=True)
        best = sorted(trials, key=lambda trial: -trial[1][0].ended)[:2]
        trained = self.lab.train([one_place, *(place for place, _ in best)], self.seeds)
        return max(trained, key=lambda courses: np.mean([course.ended for course in courses]))

    # --- which causes matter -----------------------------------------------------------------------------------------

    def _candidates(self, facts: Facts, stalls: bool) -> list[Candidate]:
        """What may be at work: of a run at its ceiling, only what lowers the ceiling, too."""
        able = [cause for cause in self.causes if stalls or cause.lowers_ceiling or cause.name == "too_few_rounds"]
        removals = [(cause, self._possible(facts.world, cause.removals(facts))) for cause in able]
        with self.lab.work("ways to take causes away"):
            return self._with_best(facts.world, [Candidate(cause, ways, ways[0]) for cause, ways in removals if ways])

    def _with_best(self, world: World, candidates: list[Candidate]) -> list[Candidate]:
        """With the way that is best from this world."""
        chosen = self._chosen([[way.apply(world) for way in c.removals] for c in candidates])
        return [
            c._replace(best=next(way for way in c.removals if way.apply(world).key() == best.key()))
            for c, best in zip(candidates, chosen, strict=True)
        ]

    def _possible(self, world: World, removals: list[Removal]) -> list[Removal]:
        """Those that change anything, and that can be built."""
        found = []
        for removal in removals:
            try:
                changed = removal.apply(world)
                if changed.key() != world.key():
                    self.lab.experiment(changed)
                    found.append(removal)
            except InputError:
                continue  # some settings do not go together, and then this way is not open
        return found

    def _chosen(self, alternatives: list[list[World]]) -> list[World]:
        """The best of each list, under a seed of its own."""
        several = [world for worlds in alternatives if len(worlds) > 1 for world in worlds]
        ended = {world.key(): courses[0].ended
                 for world, courses in zip(several, self.lab.train(several, self.tuning), strict=True)}  # fmt: skip
        return [worlds[0] if len(worlds) == 1 else max(worlds, key=lambda w: ended[w.key()]) for worlds in alternatives]

    def _screened(self, facts: Facts, candidates: list[Candidate]) -> dict[str, Estimate]:
        """What taking each cause alone away from the run gains."""
        with self.lab.work("without each cause"):
            worlds = [candidate.best.apply(facts.world) for candidate in candidates]
            trained = self.lab.train(worlds, self.seeds)
        return differences(candidates, trained, [facts.courses] * len(candidates))

    def _players(self, candidates: list[Candidate], gains: Mapping[str, Estimate], lost: float) -> list[Candidate]:
        """Causes whose removal gains something that is not chance. Of a run that stalls, small gains count, too, where
        none is larger; where much is lost, those that seeds are too few to be sure of, where none is sure."""
        stalls = lost >= STALLS
        ways = [
            (MATTERS, True),
            *([(LITTLE, True)] if stalls else []),
            *([(MATTERS, False)] if lost >= AVERAGED else []),
        ]
        for least, certain in ways:
            # at the ceiling of its budget, a run is only said to be unfinished where that is as much as a stall
            needed = {"too_few_rounds": least if stalls else STALLS}
            found = [c for c in candidates if gains[c.cause.name].mean >= needed.get(c.cause.name, least)
                     and (gains[c.cause.name].low > 0 or not certain)]  # fmt: skip
            if found:
                return found
        return []

    def _fewer(self, facts: Facts, players: list[Candidate], gains: Mapping[str, Estimate]) -> list[Candidate]:
        """As many as can be played: habits give way to conditions, small gains to large ones."""
        first = sorted(players, key=lambda c: (c.cause.rank(facts) < CONDITION, -gains[c.cause.name].mean))
        return first[:PLAYERS]

    # --- what they cost ----------------------------------------------------------------------------------------------

    def _attributed(
        self, facts: Facts, candidates: list[Candidate], players: list[Candidate], gains: Mapping[str, Estimate]
    ) -> tuple[list[Candidate], dict[frozenset[str], list[Course]]]:
        """The causes that matter, and the runs of the worlds without any of them, by what is taken away."""
        players = self._fewer(facts, players, gains)
        while _stalls(facts) and len(players) < PLAYERS and (more := self._masked(facts, candidates, players)):
            players = [*players, *more][:PLAYERS]
        with self.lab.work("without several causes"):
            subsets = coalitions([player.cause.name for player in players])
            trained = self.lab.train(self._worlds(facts.world, players, subsets), self.seeds)
        values = dict(zip(subsets, trained, strict=True))
        kept = helpful(_ended(values), _ranks(facts, players))
        return [p for p in players if frozenset([p.cause.name]) in kept], {gone: values[gone] for gone in kept}

    def _masked(self, facts: Facts, candidates: list[Candidate], players: list[Candidate]) -> list[Candidate]:
        """Causes that others hide: nothing is gained by taking them alone away from the run, but something is where
        the others are gone."""
        names = {player.cause.name for player in players}
        rest = [c for c in candidates if c.cause.name not in names]
        with self.lab.work("causes that others hide"):
            if not players:
                return self._together(facts, [c for c in rest if c.cause.rank(facts) >= CONDITION])
            mended = self._worlds(facts.world, players, [frozenset(names)])[0]
            courses = self.lab.train([mended], self.seeds)[0]
            higher = any(player.cause.lowers_ceiling for player in players)
            if not rest or difference(self._ceiling(mended) if higher else facts.pooled, courses).mean < STALLS:
                return []
            ways = [self._possible(mended, c.removals) for c in rest]
            able = [c._replace(removals=way) for c, way in zip(rest, ways, strict=True) if way]
            able = self._with_best(mended, able)
            trained = self.lab.train([c.best.apply(mended) for c in able], self.seeds)
        return sure(able, differences(able, trained, [courses] * len(able)))

    def _together(self, facts: Facts, candidates: list[Candidate]) -> list[Candidate]:
        """Causes of which each is enough: only without all of them anything is gained."""
        every = frozenset(c.cause.name for c in candidates)
        if len(every) < 2:
            return []
        back = [every, *(every - {c.cause.name} for c in candidates)]
        without, *trained = self.lab.train(self._worlds(facts.world, candidates, back), self.seeds)
        return sure(candidates, differences(candidates, [without] * len(candidates), trained))

    def _worlds(self, world: World, players: list[Candidate], subsets: list[frozenset[str]]) -> list[World]:
        """The worlds without these causes. Where a cause may be taken away in several ways, which one is best depends
        on what else is gone: the one that was best in the run, and those that are best in the end, are tried."""
        several = [p for p in players if len(p.removals) > 1]
        ways: dict[str, list[Removal]] = {p.cause.name: [p.best] for p in players}
        if several:
            base = self._without(world, [p for p in players if p not in several])
            ends = self._chosen([[base, *self._applied(base, p)] for p in several])
            for player, best in zip(several, ends, strict=True):
                found = [way for way in player.removals if way.apply(base).key() == best.key()]
                ways[player.cause.name] = [player.best, *(way for way in found if way is not player.best), NOTHING]
        options = []
        for subset in subsets:
            found = [world]
            for player in players:
                if player.cause.name in subset:
                    found = [way.apply(w) for w in found for way in ways[player.cause.name]]
            options.append(list({w.key(): w for w in found}.values()))
        return self._chosen(options)

    def _applied(self, world: World, player: Candidate) -> list[World]:
        return [way.apply(world) for way in self._possible(world, player.removals)]

    def _without(self, world: World, players: list[Candidate]) -> World:
        for player in players:
            world = player.best.apply(world)
        return world

    def _above_chance(
        self, facts: Facts, players: list[Candidate], values: dict[frozenset[str], list[Course]]
    ) -> tuple[list[Candidate], dict[frozenset[str], list[Course]], bool]:
        """The causes, unless nothing is learnt with or without them, or in one place: then worlds differ in which
        constant answer they give. And whether the run is no better than such an answer."""
        constant, tested = chance(facts.experiment), held_out_examples(facts.experiment.data)
        count = 0 if tested is None else len(tested["labels"])
        mended = values[frozenset(player.cause.name for player in players)]
        low = [guesses(ended(courses), constant, count) for courses in (facts.courses, facts.pooled, mended)]
        return ([], {frozenset(): facts.courses}, True) if all(low) else (players, values, low[0])

    # --- what is said ------------------------------------------------------------------------------------------------

    def _concluded(
        self, facts: Facts, lost: Estimate, candidates: list[Candidate],
        gains: dict[str, Estimate], players: list[Candidate], values: dict[frozenset[str], list[Course]],
        remedies: bool,
    ) -> Diagnosis:  # fmt: skip
        players, values, guessing = self._above_chance(facts, players, values)
        every = frozenset(player.cause.name for player in players)
        suspects, interactions = attribute(
            candidates, gains, _ended(values), _ranks(facts, players),
            lambda cause: cause.evidence(facts) if facts.history else [],
        )  # fmt: skip
        mended = values[every]
        draft = Diagnosis(
            verdict=verdict(lost, suspects, guessing), sentences=[],
            title=title(facts.config), seeds=self.seeds, run=ended(facts.courses), pooled=ended(facts.same),
            ceiling=ended(facts.pooled), chance=chance(facts.experiment), guessing=guessing,
            label_divergence=_beyond_chance(facts), lost=lost,
            mended=ended(mended) if every else None,
            unexplained=difference(facts.pooled, mended) if every else None, suspects=suspects,
            interactions=interactions, remedies=[], pair=None, personal=[], config="",
            curves={"the run": curve(facts.courses), "in one place": curve(facts.pooled),
                    **({"without the causes": curve(mended)} if every else {})},
            runs=0, programs=0, seconds=0.0,
        )  # fmt: skip
        if remedies and every:
            by_name = {candidate.cause.name: candidate.cause for candidate in candidates}
            causes = [by_name[suspect.name] for suspect in suspects if suspect.share is not None][:TREATED]
            draft = treat(self.lab, facts, draft, causes, self.seeds, self.tuning)
        return draft._replace(sentences=sentences(draft))


NOTHING = Removal("as it is", lambda world: world)


def _ended(values: Mapping[frozenset[str], list[Course]]) -> dict[frozenset[str], list[float]]:
    return {gone: [course.ended for course in courses] for gone, courses in values.items()}


def _ranks(facts: Facts, players: list[Candidate]) -> Callable[[str], int]:
    return {player.cause.name: player.cause.rank(facts) for player in players}.__getitem__


def _beyond_chance(facts: Facts) -> float | None:
    about = facts.about
    if about.js_divergence is None or about.js_iid is None:
        return None
    return max(0.0, about.js_divergence - about.js_iid)


def _stalls(facts: Facts) -> bool:
    return difference(facts.pooled, facts.courses).mean >= STALLS
