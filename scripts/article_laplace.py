"""The article's third program for real: noise of scale 1/epsilon on updates, beside noise that guarantees something."""

import sys
import warnings

import numpy as np
from article import FEATURES, SIZES, arguments, fedavg, federation, show, simulate

from fedjax_sim import Transform
from fedjax_sim.privacy import GuaranteeWarning, bare_laplace, laplace

EPSILON, CLIP_NORM = 1.0, 1.0


def bare_noise() -> Transform:
    """The article's noise; its warning goes to standard error, on every run."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", GuaranteeWarning)
        transform = bare_laplace(EPSILON)
    for warning in caught:
        print(f"warning: {warning.message}", file=sys.stderr)
    return transform


def main() -> None:
    args = arguments(__doc__)
    data = federation(random_labels=args.random_labels, seed=args.seed)
    algorithm = fedavg("uniform")
    clear = simulate(algorithm, data, seed=args.seed)
    noisy = simulate(algorithm._replace(transform=bare_noise()), data, seed=args.seed)
    calibrated = laplace(epsilon=EPSILON, clip_norm=CLIP_NORM)
    private = simulate(algorithm._replace(transform=calibrated), data, seed=args.seed)
    show("No noise", clear)
    show(f"The article's noise: scale 1/epsilon = {1 / EPSILON:g}, nothing clipped, guarantees nothing", noisy)
    show(
        f"Clipped to an L1 norm of {CLIP_NORM:g}, scale {2 * CLIP_NORM / EPSILON:g}: epsilon {EPSILON:g} a round",
        private,
    )
    moved = np.linalg.norm(np.diff(clear.models, axis=0, prepend=np.zeros((1, FEATURES))), axis=1)
    expected = np.sqrt(2 * FEATURES / len(SIZES)) / EPSILON
    print(
        f"\nNoise of scale 1/epsilon moves the ten averaged parameters by about {expected:.1f} in each round, where "
        f"training moves them by {moved[0]:.2f} in the first and {moved[-1]:.2f} in the last: accuracy "
        f"{100 * clear.accuracies[-1]:.1f} % without, {100 * noisy.accuracies[-1]:.1f} % with.\n"
        "And it buys no privacy, for nothing bounds an update. The clipped variant does: each message is "
        f"{EPSILON:g}-differentially private, {EPSILON * len(private.models):g} over {len(private.models)} rounds; "
        f"with three clients it costs more still ({100 * private.accuracies[-1]:.1f} %)."
    )


if __name__ == "__main__":
    main()
