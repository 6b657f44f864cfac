"""The article's first program for real: federated averaging, beside an update that ignores the global model."""

from article import arguments, articles_update, fedavg, federation, show, simulate


def main() -> None:
    args = arguments(__doc__)
    data = federation(random_labels=args.random_labels, seed=args.seed)
    real = simulate(fedavg("uniform"), data, seed=args.seed)
    pretended = simulate(articles_update(), data, seed=args.seed)
    show("Federated averaging with local training", real)
    show("The article's update: a random vector instead of training", pretended)
    if args.random_labels:
        print("\nThe labels are coin tosses: there is nothing to learn, and 50 % is all that any method can reach.")
    print(
        f"\nTrained locally, the averaged model goes from 50 % at zero to {100 * real.accuracies[-1]:.1f} % in "
        f"{len(real.accuracies)} rounds, for each round starts where the last ended.\n"
        f"Random vectors that ignore the global model average {100 * pretended.accuracies.mean():.1f} %, and the last "
        f"round ({100 * pretended.accuracies[-1]:.1f} %) knows nothing of those before: it can never improve."
    )


if __name__ == "__main__":
    main()
