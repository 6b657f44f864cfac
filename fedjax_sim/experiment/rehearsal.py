"""What can be checked of a run before anything is written: a round and its test are traced with the real data."""

from typing import Any

import jax

from fedjax_sim._validate import InputError
from fedjax_sim.core.calibrate import make_calibration
from fedjax_sim.core.cohort import select
from fedjax_sim.core.evaluate import make_evaluation
from fedjax_sim.core.round import init
from fedjax_sim.core.types import PyTree
from fedjax_sim.data.convert import narrowed
from fedjax_sim.data.federated import FederatedData, check_values, same_fields
from fedjax_sim.experiment.build import Experiment
from fedjax_sim.experiment.drive import Driver
from fedjax_sim.experiment.federation import held_out_examples
from fedjax_sim.experiment.plan import round_of


def rehearse(experiment: Experiment, devices: list[Any]) -> None:
    """Traces a round, and the test of its model, without computing anything.

    Raises:
      InputError: data that the model, the algorithm or [execution] does not take.
    """
    driver = Driver(experiment, devices)
    for phase in experiment.phases:
        _check(phase.data)
    data, model, algorithm = experiment.data, experiment.model, experiment.algorithm
    try:
        if driver.streams:
            cohort, key = driver.sample_cohort(0)
        else:
            ids, key = experiment.sampler.draw(driver.seed, 0), driver.key
            cohort = jax.eval_shape(lambda population: select(population, ids), data.population(_shapes))
        state = jax.eval_shape(lambda params: init(algorithm, params, data.num_clients), model.params)
        jax.eval_shape(round_of(experiment._replace(simulation=None), algorithm, devices[:1], 1), state, cohort, key)
        if (held := held_out_examples(data)) is not None:
            test = _shapes({field: narrowed(field, array[:1]) for field, array in held.items()})
            for measure in (make_evaluation(model.metric_fn, classes=data.classes), make_calibration(model.logits_fn)):
                jax.eval_shape(measure, state.params, test)
    except InputError:
        raise
    except (TypeError, ValueError, IndexError, ZeroDivisionError) as error:  # what JAX says of shapes and dtypes
        config, reason = experiment.config, " ".join(str(error).split())[:200]
        raise InputError(
            f"model.name: {config.model.name!r} under {config.algorithm.name!r} does not take these data ({reason}); "
            "give another model, or mend the data"
        ) from error


def _check(data: FederatedData) -> None:
    """Test examples are like those that are trained on, and labels are classes."""
    parts = {"examples": data.examples, "test": data.test}
    parts["local test"] = None if data.local_test is None else data.local_test.examples
    for where, part in parts.items():
        if part is not None:
            check_values(where, part, data.classes, data.vocabulary)
            same_fields(where, part, "the training set", data.examples)


def _shapes(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
