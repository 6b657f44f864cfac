"""What a run reached: numbers, and a verdict in words."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim.experiment.choosing import CALLED, TEST, VALIDATION, said
from fedjax_sim.experiment.history import History, is_number, speed
from fedjax_sim.report.read import Run, clean, number

STEEP = 2.0  # standard errors from zero, from which on a slope is one


class Facts(NamedTuple):
    """Numbers of a run, None where they were not measured."""

    rounds: int
    asked_rounds: int | None
    accuracy: float | None
    balanced_accuracy: float | None  # mean of the accuracies on each class
    auc: float | None
    majority: float | None  # the accuracy of always answering the most frequent class
    best: float | None
    best_round: int | None
    chosen: str  # how the best round was chosen, in words; empty where the files do not say
    loss: float | None
    client_loss: float | None
    clients: int
    global_accuracy: float | None
    global_worst_tenth: float | None
    personal_accuracy: float | None
    personal_worst_tenth: float | None
    epsilon: float | None
    guarantee: str
    up_bytes: float | None
    down_bytes: float | None
    simulated_seconds: float | None
    seconds: float | None
    rounds_per_second: float | None


def facts(run: Run) -> Facts:
    """From the summary, and from rows where it says nothing."""
    history, told = run.history, run.summary
    rounds, accuracies = history.column("test_accuracy")
    best = best_of(history)
    asked = number(run.settings, "training.rounds")
    own = [_clients(run.clients, kind) for kind in ("global", "personal")]

    def of(name: str, otherwise: float | None) -> float | None:
        found = number(told, name)
        return otherwise if found is None else found

    def own_of(name: str, kind: int, which: int) -> float | None:
        computed = own[kind]
        found = number(told, "own_tests", name)
        return found if found is not None or computed is None else computed[which]

    bits = [float(history.column(f"{way}_bits")[1].sum()) / 8 for way in ("uplink", "downlink")]
    return Facts(
        rounds=len(history),
        asked_rounds=None if asked is None else int(asked),
        accuracy=float(accuracies[-1]) if len(accuracies) else None,
        balanced_accuracy=history.latest("test_balanced_accuracy"),
        auc=history.latest("test_auc"),
        majority=history.latest("test_majority"),
        best=None if best is None else float(accuracies[best]),
        best_round=None if best is None else int(rounds[best]),
        chosen=_chosen(told),
        loss=history.latest("test_loss"),
        client_loss=history.latest("loss_before"),
        clients=len(run.clients) or int(number(told, "own_tests", "clients") or 0),
        global_accuracy=own_of("global_accuracy", 0, 0),
        global_worst_tenth=own_of("global_worst_tenth", 0, 1),
        personal_accuracy=own_of("personal_accuracy", 1, 0),
        personal_worst_tenth=own_of("personal_worst_tenth", 1, 1),
        epsilon=history.latest("epsilon") if history else number(told, "epsilon"),
        guarantee=_guarantee(run),
        up_bytes=bits[0] if history else None,
        down_bytes=bits[1] if history else None,
        simulated_seconds=history.latest("simulated_seconds"),
        seconds=of("seconds", history.latest("elapsed_seconds")),
        rounds_per_second=of("rounds_per_second", speed(history)),
    )


def best_of(history: History) -> int | None:
    """The place of the best round among those with a test accuracy: the one that was chosen, or where the rows do not
    say which, that of the highest accuracy."""
    rounds, accuracies = history.column("test_accuracy")
    chosen = np.flatnonzero(rounds == history.latest("best_round"))
    return int(chosen[0]) if len(chosen) else int(accuracies.argmax()) if len(accuracies) else None


def _chosen(summary: dict[str, Any]) -> str:
    by, on = (summary.get(name) for name in ("chosen_by", "chosen_on"))
    return said(by, on, bool(summary.get("not_covered"))) if by in CALLED and on in (VALIDATION, TEST) else ""


def worst_tenth(values: Sequence[Any]) -> int:
    """How many of so many values make up the worst tenth, one at least."""
    return math.ceil(0.1 * len(values))


def _clients(clients: list[dict[str, Any]], kind: str) -> tuple[float, float] | None:
    values = sorted(row[f"{kind}_accuracy"] for row in clients if is_number(row.get(f"{kind}_accuracy")))
    if not values:
        return None
    return float(np.mean(values)), float(np.mean(values[: worst_tenth(values)]))


def _guarantee(run: Run) -> str:
    """What is guaranteed, to whom; nothing of a run without privacy."""
    if isinstance(run.summary.get("privacy"), str):
        return clean(run.summary["privacy"])
    if "guarantee" not in (last := run.history.last or {}):
        return ""
    return "differential privacy" if is_number(last.get("epsilon")) else "no privacy guarantee"


def came_last(run: Run) -> Counter[int]:
    """In how many rounds each client's message came last, where there is a clock."""
    slowest, clients = (run.history.every(name) for name in ("slowest", "clients"))
    return Counter(slowest[~np.isnan(slowest) & (clients != 1)].astype(int).tolist())


# --- in words --------------------------------------------------------------------------------------------------------


def verdict(run: Run, found: Facts) -> list[str]:
    """How it ended and how good the model is, in a few sentences."""
    sentences = [ending(run, found)]
    if found.accuracy is None:
        sentences.append("The model was not tested." if run.history else "")
    else:
        at = f" (best {found.best:.1%} in round {found.best_round})" if found.best != found.accuracy else ", its best"
        sentences += [f"The global model classifies {found.accuracy:.1%} of the test set rightly{at}.", *_beside(found)]
        sentences += [f"The best round was {found.chosen}."] if found.chosen else []
        sentences += [trend(run)]
    if found.global_accuracy is not None and found.personal_accuracy is not None:
        tenths = [found.global_worst_tenth, found.personal_worst_tenth]
        worst = ["" if tenth is None else f" (worst tenth {tenth:.1%})" for tenth in tenths]
        sentences.append(
            f"On the own test examples of {found.clients:,} clients the global model reaches "
            f"{found.global_accuracy:.1%}{worst[0]}, personal models {found.personal_accuracy:.1%}{worst[1]}."
        )
    if found.guarantee:
        spent = f"Epsilon {found.epsilon:.3g} is spent: " if found.epsilon is not None else ""
        sentences.append(
            f"{spent}{found.guarantee[0].upper() if not spent else found.guarantee[0]}{found.guarantee[1:]}."
        )
    rejected = run.history.column("rejected")[1].sum()
    if rejected:
        sentences.append(f"{rejected:,.0f} updates were not finite and left out.")
    return [s for s in sentences if s]


def _beside(found: Facts) -> list[str]:
    """What an accuracy is to be compared with."""
    told = [] if found.balanced_accuracy is None else [f"balanced accuracy {found.balanced_accuracy:.1%}"]
    told += [] if found.auc is None else [f"AUC {found.auc:.3f}"]
    if found.majority is not None:
        told.append(f"always answering the most frequent class reaches {found.majority:.1%}")
    return [f"{told[0][0].upper()}{'; '.join(told)[1:]}."] if told else []


def ending(run: Run, found: Facts) -> str:
    """How far it came, and why no further."""
    asked = f" of {found.asked_rounds:,}" if found.asked_rounds else ""
    many = f"{found.rounds:,}{asked} rounds"
    if run.status == "diverged":
        where = run.summary.get("divergence")
        where = where if isinstance(where, dict) else {}
        metric, number_ = clean(where.get("metric", "a loss")), where.get("round", found.rounds)
        what = f"{metric} is not finite in round {clean(number_)}{asked}"
        return f"The model diverged: {what}. A lower learning rate may help."
    return {
        "finished": f"Finished {found.rounds:,} rounds.",
        "spent": f"Stopped by its privacy budget after {many}: one more would have exceeded it.",
        "plateau": f"Stopped after {many}, for {_stalled(run)} had stopped improving.",
        "interrupted": f"Interrupted after {many}.",
        "unfinished": f"Unfinished: {many} are there, and no summary. It still runs, or was ended before its time.",
    }.get(run.status, f"Ended as {run.status!r} after {many}.")


def _stalled(run: Run) -> str:
    by = run.summary.get("chosen_by")
    return CALLED.get(by, "accuracy") if isinstance(by, str) else "accuracy"


def trend(run: Run) -> str:
    """Whether accuracy still changes over the second half of the evaluations, by the slope of a fitted line."""
    rounds, values = run.history.column("test_accuracy")
    if len(values) < 8:
        return "These are too few evaluations to say whether it still improves."
    x, y = rounds[len(rounds) // 2 :], values[len(values) // 2 :]
    span = x[-1] - x[0]
    if span <= 0:
        return ""
    x = (x - x.mean()) / span
    slope = float(x @ y / (x @ x))  # over all of these rounds
    rest = y - y.mean() - slope * x
    error = math.sqrt(float(rest @ rest) / (len(x) - 2) / float(x @ x))
    if abs(slope) < 0.005 or abs(slope) <= STEEP * error:
        return f"It has levelled off: no clear change over the last {span:,.0f} rounds."
    change = f"{100 * slope:+.1f} points over the last {span:,.0f} rounds"
    more = "" if number(run.settings, "privacy.epsilon") else "; more rounds may pay"  # a budget does not grow
    return f"It still improves: {change}{more}." if slope > 0 else f"It is getting worse: {change}."
