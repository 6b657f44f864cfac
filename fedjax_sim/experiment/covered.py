"""What the guarantee of a private run covers, what it leaves out, and what it adds to."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_sim._text import parse_json
from fedjax_sim._validate import InputError
from fedjax_sim.data import FederatedData
from fedjax_sim.experiment.choosing import choice
from fedjax_sim.experiment.config import Config, load_config
from fedjax_sim.experiment.federation import tested_on_clients
from fedjax_sim.experiment.record import read_origin, unequal
from fedjax_sim.privacy import Private

CONFIG, SUMMARY = "config.toml", "summary.json"
SHARED = ("runs of equal training.seed share their noise: together they guarantee nothing, so publish at most one of "
          "them")  # fmt: skip


class Spent(NamedTuple):
    """What runs have spent of the privacy of some clients, or of their examples: epsilons add up, and so do deltas,
    of runs whose noise is independent."""

    epsilon: float
    delta: float
    kind: str  # whose privacy, and under which neighbouring relation
    seeds: tuple[int, ...] = ()  # `training.seed` of these runs, which their noise comes from; () if not known

    def sentence(self) -> str:
        """In words, for the middle of a sentence."""
        return f"epsilon {self.epsilon:.3g} at delta {self.delta:.3g} ({self.kind})"


def kind(private: Private) -> str:
    """Whose privacy a guarantee is for, and under which relation."""
    return "" if private.spending is None else f"each {private.spending.unit}, {private.spending.relation}"


def spent_in(private: Private | None, epsilon: float | None, seeds: Sequence[int]) -> Spent | None:
    """What a run of these seeds has spent, of its epsilon; None without a guarantee."""
    if private is None or private.spending is None or epsilon is None:
        return None
    return Spent(epsilon, private.spending.delta, kind(private), tuple(seeds))


def share_noise(spent: Sequence[Spent]) -> bool:
    """Whether two of these runs have the same seed, and so the same noise: their difference shows what it hides."""
    return max(Counter(seed for each in spent for seed in {*each.seeds}).values(), default=0) > 1


def together(spent: Sequence[Spent]) -> Spent | None:
    """Of several runs on the same clients, by basic composition (Dwork et al. 2006), which is of independent noise;
    None where they guarantee things of different kinds, or nothing, or their seeds are not known to differ."""
    if not spent or len({each.kind for each in spent}) > 1 or share_noise(spent):
        return None
    if len(spent) > 1 and not all(each.seeds for each in spent):
        return None
    seeds = tuple(seed for each in spent for seed in each.seeds)
    return Spent(sum(each.epsilon for each in spent), sum(each.delta for each in spent), spent[0].kind, seeds)


def keeps_the_best(private: Private | None, data: FederatedData) -> bool:
    """Whether the best model may be kept: under a guarantee not if clients' own examples choose it."""
    chosen = choice(data)
    return private is None or private.spending is None or chosen is None or not chosen.of_clients


def earlier(config: Config, private: Private, start: str, data: dict[str, str]) -> Spent | None:
    """What the run has spent whose model training starts from, with those before it; None where it was none on the same
    data that is known of.

    Args:
      config: of the run that starts there.
      private: what it guarantees.
      start: the model that it starts from.
      data: the fingerprint of its data as they are dealt out.

    Raises:
      InputError: that run guarantees nothing to these clients, or something else, or has the same noise.
    """
    folder = Path(start).parent
    if not start or not all((folder / name).is_file() for name in (CONFIG, SUMMARY)):
        return None
    then = load_config(folder / CONFIG)
    if not _same_data(config, then, folder, data):
        return None
    try:
        told = parse_json((folder / SUMMARY).read_bytes())
        found = together([_told(told[name], then) for name in ("spent", "spent_before") if told.get(name)])
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
    refuse_same_noise(found, config.training.seed)
    return found


def refuse_same_noise(before: Spent, seed: int) -> None:
    """A run of this seed has other noise than those before it.

    Raises:
      InputError: it has not.
    """
    if seed in before.seeds:
        raise InputError(
            f"training.seed: {seed} is that of a run on the same data which model.start comes from, and equal seeds "
            "give equal noise, so that both together guarantee nothing; give another"
        )


def _told(tree: dict[str, Any], then: Config) -> Spent:
    """As a summary has it, of a run with these settings."""
    found = Spent(**tree)
    return found._replace(seeds=tuple(found.seeds) or (then.training.seed,))


def _same_data(now: Config, then: Config, folder: Path, data: dict[str, str]) -> bool:
    """Whether another run, with its record in `folder`, was on the same data, or on some of them: by where they come
    from, or by their contents, wherever those lie."""
    paths = [Path(each.data.path).resolve() if each.data.path else None for each in (now, then)]
    if paths[0] == paths[1] and (paths[0] is not None or now.data.name == then.data.name):
        return True
    try:
        stages = read_origin(folder).stages()
    except InputError:  # nothing more is known of it
        return False
    mine = {name for name in data if name.startswith("train ")}
    return any(mine - {*unequal(data, stage.data)} for _, stage in stages)


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
    return (
        f"{'; '.join(parts)}; other runs on the same clients add to it, too, and of those with the same seed, which "
        "share its noise, nothing is guaranteed"
    )
