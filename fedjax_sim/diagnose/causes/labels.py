"""Label skew: clients see the classes in different shares."""

import numpy as np

from fedjax_sim.diagnose.cause import Cause, Change, Facts, Remedy, Removal, changing, dealt_by_us, points
from fedjax_sim.diagnose.exchange import label_counts, redealt, same_labels
from fedjax_sim.diagnose.remedies import drift_corrections, fewer_steps, server_optimizers

LEAST = 0.02  # Jensen-Shannon divergence beyond what chance gives, from which on labels count as skewed


def _removals(facts: Facts) -> list[Removal]:
    about = facts.about
    if about.js_divergence is None or about.js_iid is None or about.js_divergence - about.js_iid < LEAST:
        return []
    if dealt_by_us(facts):
        change = Change("examples redealt", lambda data: redealt(data, facts.config.data.seed), order=1)
        return [changing("the same examples dealt out at random, client sizes kept", change)]
    change = Change("same label shares", lambda data: same_labels(data, facts.config.data.seed), order=1)
    return [changing("each client's examples drawn so that all have the classes in the same shares", change)]


def _evidence(facts: Facts) -> list[str]:
    about = facts.about
    found = [
        f"Clients' labels diverge by {about.js_divergence:.2f} (Jensen-Shannon, 0 to 1) where chance gives "
        f"{about.js_iid:.2f}, and a client has {about.label_entropy_bits:.1f} bits of label entropy of the "
        f"{about.pooled_label_entropy_bits:.1f} of all."
    ]
    held = (label_counts(facts.experiment.data) > 0).sum(1)
    found.append(f"The median client has {np.median(held):.0f} of {facts.experiment.data.classes} classes.")
    if (cosine := facts.mean("cosine")) is not None and (diversity := facts.mean("gradient_diversity")) is not None:
        found.append(
            f"An update points {cosine:.2f} (cosine) along the aggregate on average, and updates are "
            f"{diversity:.1f} times as long, squared, as what is left of them."
        )
    by_class = [value for value in facts.last_of_classes() if value is not None]
    if by_class:
        found.append(f"Class accuracies go from {points(min(by_class))} to {points(max(by_class))} % at the end.")
    return found


def _remedies(facts: Facts) -> list[Remedy]:
    return [*drift_corrections(facts), *server_optimizers(facts), *fewer_steps(facts)]


LABEL_SKEW = Cause("label_skew", "Label skew", _removals, evidence=_evidence, remedies=_remedies)
