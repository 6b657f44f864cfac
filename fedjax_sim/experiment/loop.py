"""The rounds of a run, call by call: train, record, test, adapt, save."""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_sim import distributed
from fedjax_sim._validate import InputError
from fedjax_sim.core.host import HostMemory
from fedjax_sim.core.round import default_lanes
from fedjax_sim.core.tune import candidates, recall, remember, signature, tune_lanes
from fedjax_sim.core.types import RoundState
from fedjax_sim.experiment import checkpoint
from fedjax_sim.experiment.build import Experiment
from fedjax_sim.experiment.checkpoint import Arrays, Saved
from fedjax_sim.experiment.choosing import TEST, VALIDATION, choice, of_clients, stalled
from fedjax_sim.experiment.drive import Driver
from fedjax_sim.experiment.folder import HISTORY, synced
from fedjax_sim.experiment.history import History, Row, Rows, first_not_finite, rows_from, with_clock, with_test
from fedjax_sim.experiment.per_client import FILE as TABLE
from fedjax_sim.experiment.per_client import SMALL, entries
from fedjax_sim.experiment.plan import federation
from fedjax_sim.experiment.record import Origin, identity
from fedjax_sim.experiment.summary import Divergence
from fedjax_sim.experiment.watch import Seen, make_watch, no_best
from fedjax_sim.privacy import Ledger
from fedjax_sim.privacy.composition import Past

TRIAL_PAYS_SECONDS = 60.0  # of training left, from which on trying lane widths is worth their compilations
CALL_SECONDS = 1.0  # about how long one call may run, so that progress is seen and Ctrl-C answered
LONGEST, CALL_ENTRIES = 1000, 2**20  # rounds of a call at most, and rounds times clients of them
SAVE_SECONDS = 60.0  # between checkpoints, unless a number of rounds is given


class Step(NamedTuple):
    """What one call of rounds gave."""

    rows: list[Row]
    entries: np.ndarray | None = None  # of single clients, if they are kept
    status: str | None = None  # where training ends with them: "finished", "plateau", "spent" or "diverged"
    divergence: Divergence | None = None


def keeps_clients(experiment: Experiment) -> bool:
    """Whether what single clients do is kept: as the configuration says, or where the rounds are of few clients."""
    asked, simulation = experiment.config.output.per_client, experiment.simulation
    slots = experiment.sampler.slots if simulation is None else simulation.slots
    return slots <= SMALL if asked == "auto" else asked


class Loop:
    """A run between two calls; `steps` goes on from there."""

    def __init__(
        self,
        experiment: Experiment,
        devices: list[Any],
        memory: HostMemory | None,
        folder: Path,
        history: History,
        origin: Origin | None = None,
        past: Sequence[Past] = (),
        found: Arrays | None = None,
        lanes: int | None = None,
    ):
        """Starts a run, or takes it up after the rounds of `history`, for which there is a checkpoint.

        Args:
          experiment: what is trained.
          devices: where.
          memory: of the clients, where it is kept on disk.
          folder: of the run.
          history: the rounds done.
          origin: what they were made from.
          past: what those of them spent that were done under other privacy.
          found: what the checkpoint after them holds.
          lanes: with which the run was begun, where it has to begin anew.

        Raises:
          InputError: a checkpoint or a history that is not of the run that `origin` tells of.
        """
        self.experiment, self.devices, self.memory, self.folder = experiment, devices, memory, folder
        self.done, self.first, self.last = len(history), history.first, history.last
        self.origin, self.written = origin, hashlib.sha256()
        for row in Rows(folder / HISTORY, self.done):
            self.written.update(identity(row))
        config, training = experiment.config, experiment.config.training
        private = experiment.private
        self.guaranteed = private is not None and private.spending is not None
        self.choice = choice(experiment.data)
        self.scores = [score for _, score in self.choice.scores(history)] if self.choice else []
        latest = history.latest("best_round")
        self.best_round = None if latest is None else int(latest)
        self.began, self.base = time.perf_counter(), self.last["elapsed_seconds"] if self.last else 0.0
        heeded = [on for on in (TEST, VALIDATION) if not (self.guaranteed and of_clients(experiment.data, on))]
        watch = make_watch(experiment, self.choice, devices, strict=not self.guaranteed, heeded=heeded)
        self.driver = Driver(
            experiment, devices, watch=watch, proceed=lambda best: best.sound, memory=memory, history=history
        )
        longest = max(training.evaluate_every, min(LONGEST, CALL_ENTRIES // self.driver.slots))
        self.driver.block = min(training.rounds, longest)
        self.each_client = keeps_clients(experiment)
        self.spent = self.last.get("epsilon") if self.last else None
        self.past = past
        self.ledger = None if private is None else Ledger(private, experiment.data.num_clients, past)
        self.state = self.driver.start_state()
        self.best = self.driver.place(no_best(jax.tree.map(np.asarray, self.federation.params)))
        self.known_as = signature(
            experiment.model.params, devices, algorithm=config.algorithm.name, batch_size=training.batch_size,
            cohort_size=self.driver.slots,
        )  # fmt: skip
        asked = config.execution.lanes
        known = distributed.decided(recall(self.known_as)) if asked == "auto" else min(asked, self.driver.slots)
        lanes = lanes if asked == "auto" and lanes is not None else known
        self.undecided = known is None and not self.driver.plan.stale and memory is None
        if found is not None:
            like = self.saved(lanes)
            saved = checkpoint.restore(found, like)
            self.state, self.best = saved.state, saved.best
            if asked == "auto":  # whatever other runs have found out since
                lanes = int(saved.lanes) if saved.lanes >= 0 else None
            self.driver.plan.most = int(saved.most_steps) if saved.most_steps >= 0 else None
            self._count_what_was_spent()
            self._check_origin(like, saved)
        self.lanes = lanes
        self.driver.use_lanes(lanes)
        self.last_saved, self.saved_at = self.done, time.perf_counter()
        self.stopped = False  # by somebody who asked for it, before training was over

    @property
    def federation(self) -> RoundState:
        """The state, without the messages that are on their way."""
        return federation(self.state)

    def saved(self, lanes: int | None) -> Saved:
        """What a checkpoint holds."""
        kept = self.memory
        seen, sums = (np.zeros(0, bool), np.zeros(0, np.uint32)) if kept is None else (kept.seen, kept.sums)
        most_steps = self.driver.plan.most
        widths, most = (np.asarray(-1 if value is None else value, np.int32) for value in (lanes, most_steps))
        mark = "" if self.origin is None else self.origin.mark_of(self.done)
        marks = (np.frombuffer(each, np.uint8) for each in (bytes.fromhex(mark), self.written.digest()))
        return Saved(self.state, self.best, widths, most, seen, sums, *marks)

    def _check_origin(self, like: Saved, saved: Saved) -> None:
        """The checkpoint and the history are of this run."""
        if not np.array_equal(like.mark, saved.mark):
            place = self.folder / checkpoint.FOLDER
            raise InputError(f"{place}: it is of another run, or of other settings; put this run's own back")
        if not np.array_equal(like.history, saved.history):
            raise InputError(
                f"{self.folder / HISTORY}: rows up to round {self.done} are not those that were written; put them "
                "back, or start another run"
            )
        clock, last = self.driver.plan.clock, self.last
        if clock is not None and last is not None:
            clock.ahead(self.done, 0)
            if not math.isclose(clock.seconds, last["simulated_seconds"], rel_tol=1e-5):
                raise InputError(
                    f"network: {last['simulated_seconds']} simulated seconds went by in the rounds done, and would be "
                    f"{clock.seconds:.7g} now; leave out what changes the clock, or start another run"
                )

    def save(self) -> None:
        """Writes a checkpoint, unless there is one of this round, where this process is the one that writes."""
        if self.last_saved == self.done:
            return
        if not distributed.is_primary():
            self.last_saved = self.done
            return
        for name in (HISTORY, TABLE) if self.each_client else (HISTORY,):
            synced(self.folder / name)  # a checkpoint is of no use without the rows before it
        checkpoint.save(self.folder, self.done, self.saved(self.lanes))
        if self.memory is not None:
            self.memory.journal(self.done, oldest=min(checkpoint.rounds_saved(self.folder)))
        self.last_saved, self.saved_at = self.done, time.perf_counter()

    def steps(self, stop: Callable[[], bool]) -> Iterator[Step]:
        """Rows as they come. What was yielded is taken to be written when the next one is asked for.

        Args:
          stop: asked between calls; True ends training there, with a checkpoint.
        """
        config, training = self.experiment.config, self.experiment.config.training
        call, seconds = 1, 0.0  # one round first, for the user to see that it goes
        while self.done < training.rounds:
            rounds = self._rounds_at_once(call)
            over, cohorts = False, []  # whether the budget allows no round after these
            if self.ledger is not None:
                ahead = min(rounds + 1, training.rounds - self.done)
                cohorts = self.driver.plan.asked(self.done, ahead)
                left = self.ledger.affordable(cohorts)
                over, rounds = left < ahead, min(rounds, left)
                if rounds == 0:
                    yield Step([], status="spent")
                    return
            began, warm = time.perf_counter(), call > 1 or seconds
            due = (np.arange(self.done + 1, self.done + rounds + 1) % training.evaluate_every) == 0
            due[-1] |= self.done + rounds == training.rounds or over
            with distributed.linked():
                self.state, self.best, metrics, seen = self.driver.advance(self.state, self.best, self.done, due)
            taken = (time.perf_counter() - began) / rounds
            if warm:
                call = max(1, int(CALL_SECONDS / taken))
            seconds = taken
            with distributed.announced():
                step = self._recorded(metrics, seen, due, cohorts, over)
            self.done += len(step.rows)
            for row in step.rows:
                self.written.update(identity(row))
            yield step
            every = config.output.checkpoint_every
            old = time.perf_counter() - self.saved_at >= SAVE_SECONDS if every == "auto" else self.done % every == 0
            pays = bool(warm) and seconds * (training.rounds - self.done) > TRIAL_PAYS_SECONDS
            heard = distributed.all_gather([call, old, pays, stop(), [self.done, step.status, self.driver.plan.most]])
            (call, old, pays, *_), stopping = heard[0], any(each[3] for each in heard)
            if any(each[4] != heard[0][4] for each in heard):
                raise InputError("distributed: processes have other results; give each the same machine and packages")
            if step.status is not None:
                return
            self.driver.plan.adapt(self.done, (self.first or {}).get("loss_before"), step.rows[-1]["loss_before"])
            if old or stopping:
                with distributed.announced():
                    self.save()
            if stopping:
                self.stopped = True
                raise KeyboardInterrupt
            if pays and self.undecided:
                self._try_widths()

    def _rounds_at_once(self, call: int) -> int:
        """Up to the next round after which something else is due."""
        config, training, done = self.experiment.config, self.experiment.config.training, self.done
        every = [] if training.patience is None else [training.evaluate_every]
        every += [] if config.output.checkpoint_every == "auto" else [config.output.checkpoint_every]
        return min(call, self.driver.block, self.driver.plan.unchanged(done), *(n - done % n for n in every))

    def _recorded(self, metrics: Any, seen: Seen, due: np.ndarray, cohorts: list[Any], over: bool) -> Step:
        """The rows of these rounds, with the tests that were due."""
        training, plan, rounds = self.experiment.config.training, self.driver.plan, len(due)
        elapsed = self.base + time.perf_counter() - self.began
        steps = plan.steps(self.done, rounds)
        wrong = np.flatnonzero(~seen.sound)  # the first of them was the last round that was done
        last = int(wrong[0]) if len(wrong) else rounds - 1
        metrics = jax.tree.map(lambda m: m[: last + 1], metrics)
        broken = None if self.guaranteed else first_not_finite(metrics)
        rows = rows_from(metrics, self.done + 1, elapsed_seconds=elapsed)
        lanes, status, divergence = self.lanes or default_lanes(self.driver.slots, self.devices), None, None
        for i, row in enumerate(rows):
            if plan.simulation is not None and plan.clock is not None:
                before = steps[i - 1].seconds if i else plan.clock.seconds
                row |= with_clock(row, steps[i], before, plan.simulation.beside_bits(steps[i]))
            if plan.most is not None:
                row["most_steps"] = plan.most
            row["lanes"] = lanes
            if self.ledger is not None:
                epsilon = self.ledger.spend(cohorts[i])
                self.spent = epsilon = None if epsilon is None else max(epsilon, self.spent or 0.0)
                row |= {"epsilon": epsilon, "guarantee": "none" if epsilon is None else "dp"}
            self.first = self.first or row
            what = broken[1] if broken is not None else None
            if due[i] and (what is None or i < last):
                what = self._tested(row, jax.tree.map(lambda x, i=i: x[i], seen)) or what
            if i == last and len(wrong):
                status, divergence = "diverged", Divergence(row["round"], what or "the model")
        found = entries(metrics, self.done + 1, steps[: len(rows)]) if self.each_client else None
        if status is None:
            status = "finished" if self.done + rounds == training.rounds else "spent" if over else None
        if status is None and due[-1] and stalled(self.scores, training.patience, training.min_improvement):
            status = "plateau"
        return Step(rows, found, status, divergence)

    def _tested(self, row: Row, seen: Seen) -> str | None:
        """Adds to a row how good its model is, and returns what is not finite of it, if anything."""
        if self.guaranteed and not seen.finite:  # what no client's own measures may tell
            return "a parameter"
        for on, scores in seen.scores.items():
            row |= with_test({}, {**scores, "majority": self.driver.majority[on]}, on)
            if row[f"{on}_loss"] is None and not (self.guaranteed and of_clients(self.experiment.data, on)):
                return f"{on}_loss"
        if seen.scores and self.choice is not None:
            self.best_round = row["round"] if seen.better else self.best_round
            row["best_round"] = self.best_round
            self.scores.append(self.choice.score(row))
        return None

    def _try_widths(self) -> None:
        """Times lane widths, and goes on with the best."""
        self.undecided = False
        cohort, key = self.driver.sample_cohort(self.done - 1)
        widths = candidates(self.driver.slots, self.devices)
        agree: Callable[[float], float] = distributed.decided
        with distributed.linked():
            tried = tune_lanes(self.driver.round_fn, self.state, cohort, key, widths, agree=agree)
        self.lanes = min(tried, key=lambda n: tried[n])
        if distributed.is_primary():
            remember(self.known_as, self.lanes)
        self.driver.use_lanes(self.lanes)

    def _count_what_was_spent(self) -> None:
        if self.ledger is not None:
            counted = sum(part.rounds for part in self.past)
            for ids in self.driver.plan.asked(0, self.done)[counted:]:
                self.ledger.count(ids)
