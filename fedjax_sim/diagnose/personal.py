"""What personal models are worth to the clients, each on its own test examples, where clients keep such."""

import jax
import numpy as np

from fedjax_sim.core.cohort import select
from fedjax_sim.core.evaluate import make_client_evaluation
from fedjax_sim.data.convert import narrowed
from fedjax_sim.diagnose.cause import Facts, Remedy
from fedjax_sim.diagnose.found import Personal
from fedjax_sim.diagnose.game import estimate
from fedjax_sim.diagnose.laboratory import Laboratory
from fedjax_sim.diagnose.remedies import by_algorithm, possible
from fedjax_sim.diagnose.worlds import World

CLIENTS = 1000  # that are tested at most
FOR = ("label_skew", "feature_shift", "label_disagreement")  # causes that a model of one's own may help against


def remedies(facts: Facts) -> list[Remedy]:
    """Ways to a model of one's own; those that the model does not allow drop out where they are built."""
    return [Remedy("fine-tuning on each client", {}), *by_algorithm(facts, "ditto", "Ditto"),
            *by_algorithm(facts, "fedbn", "FedBN"), *by_algorithm(facts, "apfl", "APFL")]  # fmt: skip


def personal_models(lab: Laboratory, facts: Facts, seeds: list[int]) -> list[Personal]:
    """Mean accuracy over clients of their own models, over that of the run's global model on the same examples.

    Nothing where clients keep no test examples (`data.local_test_fraction`).
    """
    data = facts.experiment.data
    if data.local_test is None or len(facts.experiment.phases) > 1:
        return []
    found: list[Personal] = []
    with lab.work("models of the clients' own"):
        before, _ = own_accuracies(lab, facts.world, seeds)
        for remedy in remedies(facts):
            world = possible(lab.experiment, facts.world, remedy)
            if world is None or lab.experiment(world).algorithm.personal is None:
                continue
            _, after = own_accuracies(lab, world, seeds)
            gain = estimate((after - before).tolist())
            found.append(Personal(remedy.name, dict(remedy.settings), float(before.mean()), float(after.mean()), gain))
    return sorted(found, key=lambda personal: -personal.gain.mean)


def own_accuracies(lab: Laboratory, world: World, seeds: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Of the global model and of the clients' own ones, means over clients, f64[seeds] each."""
    experiment, training = lab.experiment(world), lab.experiment(world).config.training
    data, tests = experiment.data, experiment.data.local_test
    assert tests is not None
    tests = tests._replace(examples={field: narrowed(field, array) for field, array in tests.examples.items()})
    held = np.flatnonzero((np.diff(np.asarray(tests.offsets, np.int64)) > 0) & (data.sizes > 0))
    ids = np.random.default_rng(experiment.config.data.seed).permutation(held)[:CLIENTS].astype(np.int32)
    evaluate = jax.jit(make_client_evaluation(
        experiment.algorithm, experiment.model.metric_fn, batch_size=training.batch_size,
        local_epochs=training.local_epochs, local_steps=training.local_steps, devices=lab.devices[:1],
    ))  # fmt: skip
    place = lab.devices[0]
    cohort, own = jax.device_put((select(data.population(), ids), select(tests, ids)), place)
    scores = [evaluate(jax.device_put(state, place), cohort, own, jax.random.key(seed))
              for seed, state in zip(seeds, lab.states(world, seeds), strict=True)]  # fmt: skip
    means = [[float(np.mean(part["accuracy"])) for part in (score.before, score.after)] for score in scores]
    return np.array([mean[0] for mean in means]), np.array([mean[1] for mean in means])
