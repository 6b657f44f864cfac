"""Which round was best: by which quantity, on which examples, and what that means for what is reported of it.

Where classes are rare, accuracy hardly tells a model from one that always answers the most frequent class. Classes are
rare where the most frequent one has `RARE` times as many training examples as the rarest that there is. There it is the
area under the ROC curve that counts, of two classes, and balanced accuracy, of several: the mean of the accuracies on
each. Of rounds with equal values the one of lowest loss is best, and of those the first.

Nothing should be chosen on the test set: what it says of the best round is then too good. With
`training.validation_fraction` the choice is made on training examples that clients hold out.
"""

from typing import Any, NamedTuple

import numpy as np

from fedjax_sim.data import FederatedData
from fedjax_sim.experiment.federation import held_out_examples, tested_on_clients
from fedjax_sim.experiment.history import History, Row

RARE = 5
VALIDATION, TEST = "validation", "test"
CALLED = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "auc": "AUC"}
Score = tuple[float, float]  # what is chosen by, and the negative loss: the higher the better
WORST: Score = (-np.inf, -np.inf)


class Choice(NamedTuple):
    """How the best round is chosen."""

    by: str  # "accuracy", "balanced_accuracy" or "auc"
    on: str  # "validation": training examples held out by the clients; "test": what the model is tested on
    of_clients: bool  # whether those examples are clients' own, and not a test set that nobody holds

    def score(self, row: Row) -> Score:
        """How good the model was after this round, the worst where it was not measured."""
        value, loss = (row.get(f"{self.on}_{name}") for name in (self.by, "loss"))
        return WORST if value is None or loss is None else (value, -loss)

    def scores(self, history: History) -> list[tuple[int, Score]]:
        """The rounds that were evaluated, with their scores."""
        values, losses = (history.every(f"{self.on}_{name}") for name in (self.by, "loss"))
        unknown = np.isnan(values) | np.isnan(losses)
        there = np.flatnonzero(~np.isnan(history.every(f"{self.on}_accuracy"))).tolist()
        return [(i + 1, WORST if unknown[i] else (float(values[i]), -float(losses[i]))) for i in there]


def choice(data: FederatedData) -> Choice | None:
    """How the best round of a run on these data is chosen; None where there is nothing to choose on."""
    on = VALIDATION if data.validation is not None else TEST if held_out_examples(data) is not None else None
    if on is None:
        return None
    there = data.validation or held_out_examples(data) or {}
    return Choice(measure(data, there["labels"]), on, of_clients=of_clients(data, on))


def of_clients(data: FederatedData, on: str) -> bool:
    """Whether "validation" or "test" examples are clients' own, and not a test set that nobody holds."""
    return on == VALIDATION or tested_on_clients(data)


def measure(data: FederatedData, labels: Any) -> str:
    """What models that are trained on these data and tested on examples of these labels are chosen by."""
    if len(np.unique(labels)) < 2 or not rare(class_counts(data.examples["labels"], data.classes or 1)):
        return "accuracy"
    return "auc" if data.classes == 2 else "balanced_accuracy"


def class_counts(labels: Any, classes: int) -> np.ndarray:
    """Examples of each class, int64[classes]."""
    return np.bincount(np.asarray(labels, np.int64), minlength=classes)


def rare(counts: np.ndarray) -> bool:
    """Whether a class is rare, by the examples of each."""
    there = counts[counts > 0]
    return len(there) > 1 and bool(there.max() >= RARE * there.min())


def stalled(scores: list[Score], patience: int | None, least: float) -> bool:
    """The last `patience` evaluations brought nothing better than the best one before them: no value over its own plus
    `least`, nor that very value at a lower loss."""
    if patience is None or len(scores) <= patience:
        return False
    value, loss = max(scores[:-patience])
    return max(scores[-patience:]) <= (value + least, loss)


def said(by: str, on: str, private: bool = False) -> str:
    """How the best round was chosen, in a sentence, and whether its test is to be believed. Under a guarantee,
    `private`, no examples of clients may choose."""
    if on == VALIDATION:
        return f"chosen by {CALLED.get(by, by)} on training examples held out by the clients"
    hint = "" if private else "; training.validation_fraction=0.1 holds training examples out to choose by"
    return f"chosen by {CALLED.get(by, by)} on the test set itself, so that its value there is optimistic{hint}"
