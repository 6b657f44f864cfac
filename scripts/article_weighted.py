"""The article's second program for real: averaging weighted by client size, beside the plain mean."""

import numpy as np
from article import SIZES, arguments, fedavg, federation, show, simulate


def main() -> None:
    args = arguments(__doc__)
    data = federation(random_labels=args.random_labels, seed=args.seed)
    weighted = simulate(fedavg("examples"), data, seed=args.seed)
    uniform = simulate(fedavg("uniform"), data, seed=args.seed)
    show("Weighted by number of examples", weighted)
    show("Plain mean", uniform)
    shares = ", ".join(f"{100 * size / sum(SIZES):.0f}" for size in SIZES)
    apart = np.linalg.norm(weighted.models[-1] - uniform.models[-1]) / np.linalg.norm(uniform.models[-1])
    print(
        f"\nWeighting gives the clients {shares} % of the say instead of a third each, so every example counts the "
        f"same; the final models differ by {100 * apart:.1f} % of their length.\n"
        f"Accuracy: {100 * weighted.accuracies[-1]:.1f} % weighted, {100 * uniform.accuracies[-1]:.1f} % not. These "
        "clients' data are alike; where large and small clients differ, the choice decides whom the model serves."
    )


if __name__ == "__main__":
    main()
