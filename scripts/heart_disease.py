"""Why federated training stalls at four real hospitals: `python scripts/heart_disease.py [--folder FOLDER]`.

UCI's heart disease data as FLamby's Fed-Heart-Disease has them (du Terrail et al. 2022): logistic regression, batches
of 4, 15 rounds of 100 local updates, all four hospitals, weighted by size, seeds 42 to 46. First the published
strategies with the published rates, then the diagnosis of FedAvg. Features are standardised in each hospital for
training; the test patients of all hospitals by their own hospital's statistics, or by the pooled ones as in the
published pooled test.

The published model starts at random, uniform within 1 / sqrt(13); so does the one here. It has one output and the one
here two, whose difference moves twice as fast: rates are halved, which makes the training the same. Needs
FEDJAX_SIM_DATA, or data that `fedjax-sim data fetch` has fetched.
"""

import argparse
import tempfile
from pathlib import Path

import jax
import numpy as np

from fedjax_sim import use_cpu_devices
from fedjax_sim.data import FederatedData, by_column
from fedjax_sim.data.sources import heart_disease
from fedjax_sim.diagnose import Estimate, World, diagnose
from fedjax_sim.diagnose.anchors import in_one_place
from fedjax_sim.diagnose.diagnosis import TUNING
from fedjax_sim.diagnose.game import estimate
from fedjax_sim.diagnose.laboratory import Laboratory
from fedjax_sim.experiment.clock import planned
from fedjax_sim.experiment.config import Config, load_config
from fedjax_sim.models import build_model, save_leaves
from fedjax_sim.plots import draw_waterfall
from fedjax_sim.report.diagnosis import falls, marks, points

SEEDS = [42, 43, 44, 45, 46]
COMMON = ("model.name=logistic", "training.rounds=15", "training.local_steps=100", "training.batch_size=4",
          "training.sampling=all", "training.evaluate_every=1", f"training.seed={SEEDS[0]}")  # fmt: skip
STRATEGIES = {  # rates as published; the pooled test as published, mean and deviation
    "FedAvg": (("algorithm.name=fedavg",), 0.001, None, "74.8 ± 2.4"),
    "FedProx": (("algorithm.name=fedprox", "algorithm.mu=0.01"), 0.001, None, "74.8 ± 2.4"),
    "SCAFFOLD": (("algorithm.name=scaffold",), 0.001, None, "nearly the same"),
    "FedAdam": (("algorithm.name=fedadam", "algorithm.tau=1e-8", "algorithm.beta2=0.999"), 0.01, 0.01, "77.9 ± 1.3"),
    "FedYogi": (("algorithm.name=fedyogi", "algorithm.tau=1e-8", "algorithm.beta2=0.999"), 0.00316, 0.01, "77.9 ± 1.4"),
    "FedAdagrad": (("algorithm.name=fedadagrad", "algorithm.tau=1e-8"), 0.00316, 0.316, "77.9 ± 1.4"),
}


def federations() -> dict[str, FederatedData]:
    """By whose statistics the test patients are standardised; training is by each hospital's own in both."""
    own, raw, together = (by_column(heart_disease(standardise=how)) for how in ("client", "none", "pooled"))
    assert np.array_equal(own.offsets, together.offsets)
    assert np.array_equal(raw.examples["labels"], own.examples["labels"])
    return {"own": own, "pooled": own._replace(test=together.test, local_test=None)}


def write_starts(folder: Path) -> str:
    """Initial models, a folder for each seed; returns their place with {seed} in it."""
    for seed in [*SEEDS, SEEDS[0] + TUNING]:
        rng, bound = np.random.default_rng(seed), 13**-0.5
        model = build_model("logistic", (13,), 2, hidden=())
        of_one = (rng.uniform(-bound, bound, leaf.shape[:-1]) for leaf in jax.tree.leaves(model.params))
        leaves = [np.stack([0 * leaf, leaf], -1).astype(np.float32) for leaf in of_one]
        save_leaves(folder / f"start_{seed}", jax.tree.unflatten(jax.tree.structure(model.params), leaves))
    return str(folder / "start_{seed}")


def settings(strategy: str, start: str) -> Config:
    """The configuration of a strategy, with halved rates."""
    options, client, server, _ = STRATEGIES[strategy]
    rates = [f"algorithm.learning_rate={client / 2}"]
    rates += [] if server is None else [f"algorithm.server_learning_rate={server / 2}"]
    return load_config(None, [*COMMON, *options, *rates, f"model.start={start}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the diagnosis is kept")
    args = parser.parse_args()
    use_cpu_devices()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        start = write_starts(folder.absolute())
        reached: dict[str, dict[str, Estimate]] = {}
        for whose, data in federations().items():
            (folder / whose).mkdir(parents=True, exist_ok=True)
            lab = Laboratory(folder / whose, jax.local_devices(), data=data)
            worlds = {name: World(settings(name, start)) for name in STRATEGIES}
            first = lab.experiment(worlds["FedAvg"])
            alone = in_one_place(worlds["FedAvg"], first, planned(first.config, data))
            worlds["in one place, rate 0.01"] = alone.set({"algorithm.learning_rate": 0.005})
            for name, courses in zip(worlds, lab.train(list(worlds.values()), SEEDS), strict=True):
                reached.setdefault(name, {})[whose] = estimate([c.accuracy[-1] or 0.0 for c in courses])
        print("| strategy | test, own statistics | test, pooled statistics | published, pooled |")
        print("| --- | --- | --- | --- |")
        for name, found in reached.items():
            published = STRATEGIES[name][3] if name in STRATEGIES else "79.5 ± 0.3 (Adam)"
            print(f"| {name} | {found['own'].mean:.1%} | {found['pooled'].mean:.1%} | {published} |")
        found = diagnose(settings("FedAvg", start), folder / "diagnosis", data=federations()["pooled"])
        print("\n".join(found.sentences))
        for suspect in found.suspects:
            print(f"  {suspect.title}: {suspect.removed}: {100 * suspect.alone.mean:+.1f} points alone")
        for tried in found.remedies:
            print(f"  {tried.name}: {points(tried.gain, True)}")
        if args.folder:
            draw_waterfall(falls(found), folder / "heart_disease.png", marks=marks(found), title=found.title)


if __name__ == "__main__":
    main()
