"""Robust rules against attacks: `python scripts/attack_matrix.py [--rounds 40] [--picture attacks.png]`.

25 clients, all in every round, five of them malicious (20 %). Fashion-MNIST where FEDJAX_SIM_DATA holds it,
scikit-learn's digits elsewhere; Dirichlet(1) label skew, and the malicious clients hold as many examples as the others
together, so that weighting by examples favours them: robust rules weigh clients alike. Each cell is the accuracy that
counts: on the test set, or for the backdoor on test examples that carry its trigger, with their true labels.
"""

import argparse
import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedjax_sim as fs
from fedjax_sim.attacks import (
    Attack,
    alie,
    attacked,
    backdoor,
    gaussian,
    ipm,
    label_flip,
    malicious,
    nan_sender,
    sign_flip,
    triggered,
)
from fedjax_sim.data import PARTITIONS, SOURCES, FederatedData, federate
from fedjax_sim.models import build_model
from fedjax_sim.plots import matrix

CLIENTS, FRACTION, BATCH, STEPS, RATE, TARGET, SEED = 25, 0.2, 32, 10, 0.1, 0, 0
RULES = {
    "fedavg": {},
    "median": {},
    "trimmed_mean": {"fraction": 0.2},
    "rfa": {"weighting": "uniform"},
    "krum": {"attackers": 5},
    "multi_krum": {"attackers": 5},
    "bulyan": {"attackers": 5},
    "centered_clipping": {"tau": 1.0},
    "norm_bounding": {"bound": 1.0},
}
MESSAGES: dict[str, Attack | None] = {
    "no attack": None,
    "sign flip x 5": sign_flip(5.0),
    "Gaussian 1": gaussian(1.0),
    "IPM 5": ipm(5.0),
    "ALIE 5": alie(5.0),
    "NaN": nan_sender(),
}
DATA = ("label flip", "backdoor")


def federation(who: np.ndarray) -> FederatedData:
    """Malicious clients hold half of all examples."""
    root = os.environ.get("FEDJAX_SIM_DATA")
    folder = Path(root) / "fashion_mnist" if root else None
    found = folder is not None and folder.is_dir()
    data = SOURCES["fashion_mnist"](path=str(folder)) if found else SOURCES["digits"]()
    parts = PARTITIONS["dirichlet"](data.train["labels"], 40, alpha=1.0, seed=SEED)
    merged = [[4 * i + k for k in range(4)] for i in range(5)], [[i] for i in range(20, 40)]
    wicked, honest = iter(merged[0]), iter(merged[1])
    owned = [next(wicked) if bad else next(honest) for bad in who]
    return federate(data, [np.concatenate([parts[k] for k in group]) for group in owned])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--picture", type=Path, default=Path("attacks.png"), help="PNG file to write")
    args = parser.parse_args()
    who, start = malicious(CLIENTS, FRACTION, SEED), time.perf_counter()
    clean = federation(who)
    model = build_model("mlp", clean.input_shape, clean.classes or 0, hidden=(64,), seed=SEED)
    evaluate = fs.make_evaluation(model.metric_fn)
    stamped = {**triggered(clean.test), "labels": clean.test["labels"]} if clean.test else {}
    kept = np.asarray(stamped["labels"]) != TARGET
    stamped = {field: array[kept] for field, array in stamped.items()}
    populations = {"label flip": label_flip(clean, who), "backdoor": backdoor(clean, who, TARGET)}
    table = np.zeros((len(RULES), len(MESSAGES) + len(DATA)))
    columns = [*MESSAGES, *DATA]
    for row, (name, options) in enumerate(RULES.items()):
        for column, attack in enumerate(columns):
            algorithm = fs.ALGORITHMS[name](model.loss_fn, client_tx=optax.sgd(RATE), **options)
            if (message := MESSAGES.get(attack)) is not None:
                algorithm = attacked(algorithm, message, who)
            round_fn = fs.make_round(algorithm, batch_size=BATCH, local_steps=STEPS)
            simulate = fs.make_simulation(round_fn, cohort_size=CLIENTS, max_rounds=args.rounds)
            state = fs.init(algorithm, model.params, CLIENTS)
            population = populations.get(attack, clean).population()
            state, _ = simulate(state, population, jax.random.key(SEED), args.rounds)
            test = stamped if attack == "backdoor" else clean.test
            table[row, column] = float(evaluate(state.params, jax.tree.map(jnp.asarray, test))["accuracy"])
        if row == 0:
            print(f"| rule | {' | '.join(columns)} |\n{'| --- ' * (len(columns) + 1)}|")
        print(f"| {name} | {' | '.join(f'{value:.1%}' for value in table[row])} |", flush=True)
    where = "digits" if "digits" in clean.source else "Fashion-MNIST"
    title = f"Accuracy with 5 of 25 clients malicious: {where}, {args.rounds} rounds"
    matrix(table, list(RULES), columns, args.picture, title=title)
    print(f"\nDrawn in {args.picture}, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
