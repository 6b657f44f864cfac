"""Class imbalance: some classes are rarer in training than where the model is tested."""

import numpy as np

from fedjax_sim.data.heterogeneity import entropy_bits
from fedjax_sim.diagnose.cause import Cause, Change, Facts, Remedy, Removal, changing
from fedjax_sim.diagnose.exchange import label_counts, like_shares, test_shares, thinned
from fedjax_sim.diagnose.remedies import by_algorithm, server_optimizers, tuned_rates

LEAST = 0.01  # Jensen-Shannon divergence of the classes' shares from those of the test set


def _shares(facts: Facts) -> tuple[np.ndarray, np.ndarray] | None:
    data = facts.experiment.data
    tested, counts = test_shares(data), label_counts(data).sum(0)
    return None if tested is None else (counts / max(counts.sum(), 1), tested)


def _removals(facts: Facts) -> list[Removal]:
    if facts.config.heterogeneity.imbalance < 1:
        total = int(facts.experiment.data.offsets[-1])
        change = Change(f"thinned to {total}", lambda data: thinned(data, total, facts.config.data.seed))
        return [Removal(
            "classes as frequent as in the data set, with as many examples in all",
            lambda world: world.set({"heterogeneity.imbalance": 1.0}).change(change),
        )]  # fmt: skip
    if facts.config.attack.name != "none" or (shares := _shares(facts)) is None:
        return []
    trained, tested = shares
    middle = (trained + tested) / 2
    divergence = entropy_bits(middle) - (entropy_bits(trained) + entropy_bits(tested)) / 2
    if divergence < LEAST:
        return []
    change = Change("shares of the test set", lambda data: like_shares(data, tested, facts.config.data.seed), 2, True)
    return [changing("examples drawn so that classes are as frequent as in the test set", change)]


def _evidence(facts: Facts) -> list[str]:
    found = []
    if (shares := _shares(facts)) is not None:
        trained, tested = shares
        rare = int(np.argmin(trained / np.maximum(tested, 1e-9)))
        found.append(
            f"Class {rare} is {trained[rare]:.1%} of the training examples and {tested[rare]:.1%} of the test."
        )
    by_class = [value for value in facts.last_of_classes() if value is not None]
    if shares is not None and len(by_class) == len(shares[0]):
        order = np.argsort(shares[0])
        half = max(1, len(order) // 2)
        low, high = (float(np.mean([by_class[k] for k in part])) for part in (order[:half], order[half:]))
        found.append(f"The rarer half of the classes has {low:.1%} accuracy at the end, the other {high:.1%}.")
    return found


def _remedies(facts: Facts) -> list[Remedy]:
    return [*by_algorithm(facts, "qffl", "q-FedAvg, which minds clients with large losses"),
            *server_optimizers(facts), *tuned_rates(facts)]  # fmt: skip


CLASS_IMBALANCE = Cause("class_imbalance", "Class imbalance", _removals, evidence=_evidence, remedies=_remedies,
              lowers_ceiling=True)  # fmt: skip
