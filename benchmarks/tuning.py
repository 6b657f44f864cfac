"""Bayesian optimization beside random search: `python -m benchmarks.tuning [--trials 32] [--seeds 5]`.

FedAvgM with logistic regression on scikit-learn's digits, Dirichlet(0.1) label skew, 15 rounds of one local epoch; both
learning rates and the server's momentum are searched, over three decades each for the rates. Both searches have the
same number of trials in batches of eight, none pruned; the value is the accuracy on held-out clients, the last column
that of the best setting on the test set, which no search has seen.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from scipy import stats

from fedjax_sim import use_cpu_devices
from fedjax_sim.experiment.config import load_config
from fedjax_sim.experiment.space import parse_space
from fedjax_sim.experiment.sweep import sweep
from fedjax_sim.experiment.tune import tune

SPACE = ("algorithm.learning_rate=log:1e-4..1", "algorithm.server_learning_rate=log:1e-2..10",
         "algorithm.server_momentum=0.0..0.99")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    use_cpu_devices()
    import jax

    config = load_config(None, ["model.name=logistic", "algorithm.name=fedavgm", "data.alpha=0.1", "training.rounds=15",
                                "training.local_epochs=1", "training.evaluate_every=15"])  # fmt: skip
    found: dict[str, list[tuple[float, float]]] = {"tpe": [], "random": []}
    print("| seed | sampler | held-out clients | test set |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(args.seeds):
            for sampler, values in found.items():
                place = Path(folder) / f"{sampler}{seed}"
                best = tune(config, parse_space(SPACE), place, jax.local_devices(), trials=args.trials, batch=8,
                            sampler=sampler, seed=1000 * seed, prune=False)  # fmt: skip
                test = sweep(config, [{**best.best, "training.seed": 0}], place / "test", jax.local_devices())
                values.append((best.value, test[0].accuracy[-1] or 0.0))
                print(f"| {seed} | {sampler} | {best.value:.1%} | {values[-1][1]:.1%} |", flush=True)
    gaps = np.array(found["tpe"]) - np.array(found["random"])
    for name, gap in zip(("held-out clients", "test set"), gaps.T, strict=True):
        half = stats.t.ppf(0.975, len(gap) - 1) * gap.std(ddof=1) / len(gap) ** 0.5
        print(f"TPE over random search, {name}: {gap.mean():+.1%} ± {half:.1%} (95 %, paired by seed)")


if __name__ == "__main__":
    main()
