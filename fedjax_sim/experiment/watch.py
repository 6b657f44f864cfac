"""What a run watches as it trains, within the program of its rounds: how good the model is, and which was best."""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_sim.core.calibrate import make_calibration
from fedjax_sim.core.evaluate import make_evaluation
from fedjax_sim.core.types import Array, PyTree, RoundMetrics
from fedjax_sim.experiment.build import Experiment
from fedjax_sim.experiment.choosing import Choice
from fedjax_sim.experiment.history import WATCHED
from fedjax_sim.experiment.plan import federation

Scores = dict[str, Array]


class Best(NamedTuple):
    """The best model so far."""

    params: PyTree  # those of the start until one was tested
    value: Array  # f32[], what it was chosen by, -inf before
    loss: Array  # f32[], inf before
    sound: Array  # bool[], whether all is finite that has to be; where it is not, training ends


class Seen(NamedTuple):
    """What was found after a round, zeros where nothing was due."""

    scores: dict[str, Scores]  # by "test" and "validation"
    finite: Array  # bool[], all parameters of the global model
    better: Array  # bool[], than the best before
    sound: Array  # bool[], of `Best`, in every round


def no_best(params: PyTree) -> Best:
    """Before the first round."""
    return Best(params, jnp.float32(-jnp.inf), jnp.float32(jnp.inf), jnp.asarray(True))


def make_scores(
    experiment: Experiment, devices: Sequence[Any] = (), *, calibrated: bool = True
) -> Callable[..., Scores]:
    """`scores(params, examples) -> {"accuracy", "balanced_accuracy", "loss", "class_accuracy", ...}`, not jitted.

    Args:
      experiment: what is trained.
      devices: that share each batch, of the program that this becomes part of.
      calibrated: with the calibration error, and for two classes the area under the ROC curve.
    """
    model, classes = experiment.model, experiment.data.classes
    evaluate = make_evaluation(model.metric_fn, classes=classes, devices=devices)
    calibrate = make_calibration(model.logits_fn, devices=devices)

    def scores(params: PyTree, examples: PyTree) -> Scores:
        found = evaluate(params, examples) | (calibrate(params, examples) if calibrated else {})
        found.pop("class_loss", None)
        return found | {"balanced_accuracy": jnp.nanmean(found["class_accuracy"])}

    return scores


def make_watch(
    experiment: Experiment, choice: Choice | None, devices: Sequence[Any], *, strict: bool, heeded: Collection[str]
) -> Callable[[Any, RoundMetrics, Best, dict[str, PyTree], Array], tuple[Best, Seen]]:
    """What is looked at after each round of a run.

    Args:
      experiment: what is trained.
      choice: how the best model is chosen, if it is.
      devices: of the program.
      strict: what clients measured has to be finite; else the parameters of the model, where they are looked at.
      heeded: on which examples the loss has to be finite, of "test" and "validation".

    Returns:
      `watch(state, metrics, best, examined, due) -> (best, seen)`.
    """
    scores = make_scores(experiment, devices)

    def watch(
        state: Any, metrics: RoundMetrics, best: Best, examined: dict[str, PyTree], due: Array
    ) -> tuple[Best, Seen]:
        if strict:
            best = best._replace(sound=best.sound & _sound(metrics))
        params = federation(state).params

        def look() -> tuple[Best, Seen]:
            found = {on: scores(params, examples) for on, examples in examined.items()}
            finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]).all()
            whole = [jnp.isfinite(found[on]["loss"]) for on in found if on in heeded]
            sound = best.sound & jnp.stack([*whole, jnp.asarray(True) if strict else finite]).all()
            kept, better = best._replace(sound=sound), jnp.asarray(False)
            if choice is not None and choice.on in found:
                value, loss = found[choice.on][choice.by], found[choice.on]["loss"]
                known = sound & jnp.isfinite(value) & jnp.isfinite(loss)
                better = known & ((value > best.value) | ((value == best.value) & (loss < best.loss)))
                kept = jax.tree.map(partial(jnp.where, better), Best(params, value, loss, sound), kept)
            return kept, Seen(found, finite, better, sound)

        nothing = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), jax.eval_shape(look)[1])
        kept, seen = lax.cond(due, look, lambda: (best, nothing))
        return kept, seen._replace(sound=kept.sound)

    return watch


def _sound(metrics: RoundMetrics) -> Array:
    """Whether what `first_not_finite` looks at is finite."""
    fine = [jnp.isfinite(getattr(metrics, name)) for name in WATCHED]
    return jnp.stack([(each | metrics.rejected).all() if each.ndim else each for each in fine]).all()
