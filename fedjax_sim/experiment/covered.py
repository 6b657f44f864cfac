"""What the guarantee of a private run covers, what it leaves out, and what it adds to."""

from pathlib import Path
from typing import NamedTuple

from fedjax_sim._text import parse_json
from fedjax_sim._validate import InputError
from fedjax_sim.data import FederatedData
from fedjax_sim.experiment.choosing import choice
from fedjax_sim.experiment.config import Config, load_config
from fedjax_sim.experiment.federation import tested_on_clients
from fedjax_sim.privacy import Private

CONFIG, SUMMARY = "config.toml", "summary.json"


class Spent(NamedTuple):
    """What runs have spent of the privacy of some clients, or of their examples: epsilons add up, and so do deltas."""

    epsilon: float
    delta: float
    kind: str  # whose privacy, and under which neighbouring relation

    def sentence(self) -> str:
        """In words, for the middle of a sentence."""
        return f"epsilon {self.epsilon:.3g} at delta {self.delta:.3g} ({self.kind})"


def kind(private: Private) -> str:
    """Whose privacy a guarantee is for, and under which relation."""
    return "" if private.spending is None else f"each {private.spending.unit}, {private.spending.relation}"


def spent_in(private: Private | None, epsilon: float | None) -> Spent | None:
    """What a run has spent, of its epsilon; None without a guarantee."""
    if private is None or private.spending is None or epsilon is None:
        return None
    return Spent(epsilon, private.spending.delta, kind(private))


def together(spent: list[Spent]) -> Spent | None:
    """Of several runs on the same clients, by basic composition (Dwork et al. 2006); None where they guarantee things
    of different kinds, or nothing."""
    if not spent or len({each.kind for each in spent}) > 1:
        return None
    return Spent(sum(each.epsilon for each in spent), sum(each.delta for each in spent), spent[0].kind)


def keeps_the_best(private: Private | None, data: FederatedData) -> bool:
    """Whether the best model may be kept: under a guarantee not if clients' own examples choose it."""
    chosen = choice(data)
    return private is None or private.spending is None or chosen is None or not chosen.of_clients


def earlier(config: Config, private: Private, start: str) -> Spent | None:
    """What the run has spent whose model training starts from, with those before it; None where it was none on the same
    data that is known of.

    Raises:
      InputError: that run guarantees nothing to these clients, or something else.
    """
    folder = Path(start).parent
    if not start or not all((folder / name).is_file() for name in (CONFIG, SUMMARY)):
        return None
    then = load_config(folder / CONFIG).data
    if any(getattr(then, name) != getattr(config.data, name) for name in ("name", "path")):
        return None
    try:
        told = parse_json((folder / SUMMARY).read_bytes())
        found = together([Spent(**told[name]) for name in ("spent", "spent_before") if told.get(name)])
    except (OSError, ValueError, TypeError, AttributeError):
        raise InputError(
            f"model.start: {folder / SUMMARY} is no summary of a run, and what that run has spent on the same data is "
            "not known; mend it, or start from another model"
        ) from None
    if found is None or found.kind != kind(private):
        guaranteed = f"guarantees {found.kind}, and this one {kind(private)}" if found else "guarantees nothing to them"
        raise InputError(
            f"model.start: {start} is of a run on the same data that {guaranteed}, so that nothing can be said of both "
            'together; start from another model, or take privacy.guarantee "none"'
        )
    return found


def left_out(config: Config, data: FederatedData, private: Private, before: Spent | None) -> str:
    """What epsilon does not cover, in a sentence.

    Raises:
      InputError: a setting that lets clients' own test examples decide when training ends.
    """
    training, own, kept = config.training, tested_on_clients(data), keeps_the_best(private, data)
    if not kept and training.patience is not None:
        raise InputError(
            "training.patience: accuracy on the clients' own examples, which no noise hides, would decide when "
            'training ends; leave it out, give a test set that is nobody\'s, or take privacy.guarantee "none"'
        )
    local = config.privacy.mechanism.startswith("local_") or private.spending is None or (
        private.spending.unit == "example")  # fmt: skip
    covered = "what the clients send and the models made of it" if local else "the models that the server makes"
    measured = ["losses, norms and who took part (history.jsonl, per_client.npy)"]
    if own:
        measured.append("accuracy on the clients' own test examples")
    if data.validation is not None:
        measured.append("accuracy on training examples that they hold out")
    measured[-1] += "" if kept else " (so that no best model is kept)"
    if data.local_test is not None and training.evaluate_clients:
        measured.append("the model's accuracy on single clients, before and after they adapt it (clients.jsonl)")
    public = ["the model and its settings", "the columns of the data and their types", "which labels there are"]
    public += [] if own or data.test is None else ["the test set"]
    public += ["which classes are rare"] if kept and choice(data) is not None else []
    public += ["model.start"] if config.model.start and before is None else []
    of_examples = private.spending is not None and private.spending.unit == "example"
    unit = "what is hidden is one example, not a client with all its examples" if of_examples else (
        "what is hidden is a whole client with all its examples, such as a hospital")  # fmt: skip
    parts = [f"Epsilon covers {covered} in this run, not what is measured without noise beside them: "
             f"{', '.join(measured)}", "do not publish these files, nor figures made of them", unit,
             f"{', '.join(public[:-1])} and {public[-1]} are taken to be public"]  # fmt: skip
    if training.patience is not None:
        parts.append(f"before training, only what all {training.rounds} rounds spend is guaranteed")
    if before is not None:
        parts.append(f"model.start has spent {before.sentence()} on the same clients, which adds to it")
    return f"{'; '.join(parts)}; other runs on the same clients, such as seeds, sweeps and tuning, add to it, too"
