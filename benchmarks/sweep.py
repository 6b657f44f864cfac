"""What a sweep saves: `python -m benchmarks.sweep [--rounds 20] [--only "drift" ...]`.

32 settings (four learning rates, eight seeds) of federated averaging on scikit-learn's digits: as one compiled program,
and as separate runs, each of which imports nothing anew but builds, compiles and trains for itself, as a loop over
`run` in one process does. Some of the separate runs are timed, and the rest is taken to last as long on average.
Likewise where data change on the way, messages are stale, or local steps follow the loss.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from fedjax_sim import use_cpu_devices
from fedjax_sim.experiment.config import load_config
from fedjax_sim.experiment.run import run
from fedjax_sim.experiment.space import grid, parse_space
from fedjax_sim.experiment.sweep import over_seeds, sweep
from fedjax_sim.experiment.trials import with_settings

CLOCK = ("model.name=logistic", "network.profiles=lognormal")
CASES = {
    "logistic": ("model.name=logistic",),
    "mlp": ("model.name=mlp",),
    "cnn_small": ("model.name=cnn_small",),
    "drift": ("model.name=logistic", "heterogeneity.drift=concept", "heterogeneity.drift_round=10"),
    "asynchronous": (*CLOCK, "network.policy=asynchronous"),
    "adaptive steps": ("model.name=logistic", "training.adapt_steps=adacomm", "training.local_epochs=4"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--separate", type=int, default=6, help="separate runs that are timed")
    args = parser.parse_args()
    use_cpu_devices()
    import jax

    trials = over_seeds(grid(parse_space(["algorithm.learning_rate=0.01,0.03,0.1,0.3"])), 0, 8)
    print("| | one program | separate runs | ratio | largest difference in accuracy |")
    print("| --- | --- | --- | --- | --- |")
    for name in args.only:
        base = load_config(None, [*CASES[name], "model.hidden=[64]", f"training.rounds={args.rounds}"])
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            results = sweep(base, trials, Path(folder) / "sweep", jax.local_devices())
            together, separate, gaps = time.perf_counter() - start, [], []
            for place in range(0, len(trials), -(-len(trials) // args.separate)):
                start = time.perf_counter()
                alone = run(with_settings(base, {**trials[place], "output.folder": folder}))
                separate.append(time.perf_counter() - start)
                gaps.append(abs((alone.test_accuracy or 0) - (results[place].accuracy[-1] or 0)))
        apart = len(trials) * statistics.mean(separate)
        print(f"| {name} | {together:.1f} s | {apart:.0f} s, {statistics.median(separate):.1f} each "
              f"| {apart / together:.1f} | {max(gaps):.4f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
