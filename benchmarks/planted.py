"""Federations with a known cause, for `benchmarks.diagnosis`: what is wrong with each, and its configuration."""

from typing import NamedTuple


class Case(NamedTuple):
    """One federation."""

    name: str
    planted: tuple[str, ...]  # causes, none in a healthy control
    settings: tuple[str, ...]


DIGITS = ("model.name=mlp", "model.hidden=[64]", "data.partition=iid", "training.rounds=60",
          "algorithm.learning_rate=0.3")  # fmt: skip
CANCER = ("data.name=breast_cancer", "model.name=mlp", "model.hidden=[32]", "data.partition=iid", "data.clients=10",
          "training.rounds=30")  # fmt: skip
FASHION = ("data.name=fashion_mnist", "model.name=mlp", "model.hidden=[64]", "data.partition=iid", "data.clients=10",
           "training.clients_per_round=5", "training.rounds=150", "training.local_steps=10", "training.batch_size=32",
           "training.evaluate_every=10", "algorithm.learning_rate=0.2")  # fmt: skip
MNIST = ("data.name=mnist", *FASHION[1:])
SKEWED, TWO = ("data.partition=dirichlet", "data.alpha=0.3"), ("data.partition=labels_per_client",
                                                               "data.labels_per_client=2")  # fmt: skip
FREE = ("privacy.guarantee=none", "training.sampling=poisson", "privacy.mechanism=gaussian")
SLOW = ("network.profiles=constant", "network.uplink_bps=1e7", "network.downlink_bps=1e7",
        "network.seconds_per_step=0.1", "network.slowdown=50.0", "network.policy=deadline")  # fmt: skip


def _cases(base: tuple[str, ...], where: str, listed: dict[str, tuple[str | tuple[str, ...], tuple[str, ...]]]):
    return [Case(f"{where}: {name}", (planted,) if isinstance(planted, str) else planted, (*base, *settings))
            for name, (planted, settings) in listed.items()]  # fmt: skip


CASES: list[Case] = [
    *_cases(DIGITS, "digits", {
        "label skew, alpha 0.05": ("label_skew", ("data.partition=dirichlet", "data.alpha=0.05")),
        "label skew, alpha 0.1": ("label_skew", ("data.partition=dirichlet", "data.alpha=0.1")),
        "label skew, 1 label": ("label_skew", ("data.partition=labels_per_client", "data.labels_per_client=1")),
        "scanners 1.0": ("feature_shift", ("heterogeneity.scanner=1.0",)),
        "resolution and blur 1.0": ("feature_shift", ("heterogeneity.resolution=1.0", "heterogeneity.blur=1.0")),
        "rotation 1.0": ("feature_shift", ("heterogeneity.rotation=1.0",)),
        "confusion 0.6": ("label_disagreement", ("heterogeneity.confusion=0.6",)),
        "flip 0.5": ("label_disagreement", ("heterogeneity.flip=0.5",)),
        "imbalance 0.005": ("class_imbalance", ("heterogeneity.imbalance=0.005",)),
        "imbalance 0.02": ("class_imbalance", ("heterogeneity.imbalance=0.02",)),
        "sizes by Zipf, uniform weights": ("quantity_skew", (
            "data.partition=quantity_zipf", "data.exponent=2.0", "data.clients=50", "algorithm.weighting=uniform",
            "training.local_epochs=5", "training.rounds=25")),
        "40 epochs on skewed labels": ("client_drift", (
            *SKEWED, "training.local_epochs=40", "training.rounds=15", "training.evaluate_every=1")),
        "100 local steps on skewed labels": ("client_drift", (
            "data.partition=dirichlet", "data.alpha=0.2", "training.local_steps=100", "training.rounds=15",
            "training.evaluate_every=1")),
        "rate 3.0": ("learning_rate", ("algorithm.learning_rate=3.0",)),
        "rate 1e-3": ("learning_rate", ("algorithm.learning_rate=0.001",)),
        "1 hidden unit": ("model_size", ("model.hidden=[1]",)),
        "2 hidden units": ("model_size", ("model.hidden=[2]",)),
        "1 client a round": ("rare_participation", (*TWO, "training.clients_per_round=1")),
        "deadline drops one hospital": ("stragglers", (
            "data.partition=labels_per_client", "data.labels_per_client=1", "data.clients=10", *SLOW,
            "training.local_steps=2", "training.rounds=150", "training.evaluate_every=10",
            "network.slow_clients=[3]", "network.deadline_seconds=5.0")),
        "top-k 0.0005": ("compression", ("compression.uplink=top_k", "compression.fraction=0.0005")),
        "top-k 0.002": ("compression", ("compression.uplink=top_k", "compression.fraction=0.002")),
        "noise, epsilon 2": ("privacy_noise", (
            "privacy.mechanism=gaussian", "privacy.epsilon=2.0", "privacy.clip_norm=1.0",
            "training.sampling=poisson")),
        "clip norm 0.02": ("clipping", (*FREE, "privacy.noise_multiplier=0.01", "privacy.clip_norm=0.02")),
        "4 in 10 flip labels": ("malicious_clients", ("attack.name=label_flip", "attack.fraction=0.4")),
        "3 in 10 flip signs": ("malicious_clients", ("attack.name=sign_flip", "attack.fraction=0.3")),
        "a NaN sender": ("malicious_clients", ("attack.name=nan_sender", "attack.fraction=0.05")),
        "label skew and noise": (("label_skew", "privacy_noise"), (
            "data.partition=dirichlet", "data.alpha=0.05", *FREE, "privacy.noise_multiplier=0.5",
            "privacy.clip_norm=1.0")),
        "label skew and flipped labels": (("label_skew", "label_disagreement"), (
            "data.partition=dirichlet", "data.alpha=0.05", "heterogeneity.flip=0.4")),
        "small model and low rate": (("model_size", "learning_rate"), (
            "model.hidden=[2]", "algorithm.learning_rate=0.005")),
        "healthy, iid": ((), ()),
        "healthy, alpha 1": ((), ("data.partition=dirichlet", "data.alpha=1.0")),
        "healthy, dissimilar gradients": ((), (
            "data.partition=labels_per_client", "data.labels_per_client=1", "data.clients=10",
            "training.sampling=all", "training.local_steps=1", "training.rounds=600", "training.evaluate_every=30")),
        "healthy, logistic": ((), ("model.name=logistic",)),
        "healthy, CNN": ((), ("model.name=cnn_small", "data.partition=dirichlet", "training.rounds=100")),
        "healthy, top-k with feedback": ((), (
            "compression.uplink=top_k", "compression.fraction=0.1", "compression.feedback=classic")),
    }),
    *_cases(CANCER, "cancer", {
        "flip 0.4": ("label_disagreement", ("heterogeneity.flip=0.4",)),
        "rate 1e-4": ("learning_rate", ("algorithm.learning_rate=0.0001",)),
        "noise 3 norms": ("privacy_noise", (*FREE, "privacy.noise_multiplier=3.0", "privacy.clip_norm=1.0")),
        "4 in 10 flip signs": ("malicious_clients", ("attack.name=sign_flip", "attack.fraction=0.4")),
        "healthy, iid": ((), ()),
        "healthy, alpha 1": ((), ("data.partition=dirichlet", "data.alpha=1.0")),
        "healthy, zipf": ((), ("data.partition=quantity_zipf",)),
    }),
    *_cases(FASHION, "fashion", {
        "label skew, 1 label": ("label_skew", ("data.partition=labels_per_client", "data.labels_per_client=1")),
        "scanners 1.0": ("feature_shift", ("heterogeneity.scanner=1.0",)),
        "confusion 0.6": ("label_disagreement", ("heterogeneity.confusion=0.6",)),
        "imbalance 0.005": ("class_imbalance", ("heterogeneity.imbalance=0.005",)),
        "200 local steps on skewed labels": ("client_drift", (
            *TWO, "training.local_steps=200", "training.rounds=20", "training.evaluate_every=1")),
        "rate 1e-3": ("learning_rate", ("algorithm.learning_rate=0.001",)),
        "4 hidden units": ("model_size", ("model.hidden=[4]",)),
        "1 client a round": ("rare_participation", (*TWO, "training.clients_per_round=1")),
        "top-k 0.0003": ("compression", ("compression.uplink=top_k", "compression.fraction=0.0003")),
        "noise 0.2 norms": ("privacy_noise", (*FREE, "privacy.noise_multiplier=0.2", "privacy.clip_norm=1.0")),
        "clip norm 0.02": ("clipping", (*FREE, "privacy.noise_multiplier=0.01", "privacy.clip_norm=0.02")),
        "4 in 10 flip labels": ("malicious_clients", ("attack.name=label_flip", "attack.fraction=0.4")),
        "label skew and clipping": (("label_skew", "clipping"), (
            "data.partition=labels_per_client", "data.labels_per_client=1", *FREE, "privacy.noise_multiplier=0.01",
            "privacy.clip_norm=0.1")),
        "healthy, iid": ((), ()),
        "healthy, alpha 10": ((), ("data.partition=dirichlet", "data.alpha=10.0")),
    }),
    *_cases(MNIST, "mnist", {
        "label skew, 1 label": ("label_skew", ("data.partition=labels_per_client", "data.labels_per_client=1")),
        "rate 3.0": ("learning_rate", ("algorithm.learning_rate=3.0",)),
        "imbalance and flip": (("class_imbalance", "label_disagreement"), (
            "heterogeneity.imbalance=0.005", "heterogeneity.flip=0.5")),
        "healthy, alpha 10": ((), ("data.partition=dirichlet", "data.alpha=10.0")),
    }),
]  # fmt: skip
