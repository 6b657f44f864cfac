"""Whole private runs from a configuration: what they write of their privacy, where they stop, and what is refused."""

import math
from pathlib import Path

import dp_accounting as dp
import jax
import numpy as np
import pytest
from conftest import one_line
from dp_accounting import pld
from runs import QUICK, Run, of_round, trained
from scipy.stats import chi2, norm

from fedjax_sim import InputError
from fedjax_sim.data import write_store
from fedjax_sim.experiment.build import build
from fedjax_sim.experiment.config import explained, load_config
from fedjax_sim.experiment.history import Row
from fedjax_sim.privacy import GuaranteeWarning

ENTRIES = 65 * 10  # of logistic regression on digits
CLIENTS, DELTA = 20, 0.001  # of the default federation, and less than a tenth over it
GAUSSIAN = ("privacy.mechanism=gaussian", "privacy.clip_norm=1.0")
POISSON = (*GAUSSIAN, "privacy.noise_multiplier=3.0", "training.sampling=poisson", "training.seed=1",
           "privacy.epsilon=0.85", "training.rounds=9")  # fmt: skip


def values(found: Run, name: str) -> list[float]:
    return [row[name] for row in found.rows]


def gaussian_delta(epsilon: float, deviation: float) -> float:
    """Of one Gaussian mechanism of sensitivity 1, exactly (Balle and Wang 2018, theorem 8)."""
    half = 1 / (2 * deviation)
    return float(norm.cdf(half - epsilon * deviation) - math.exp(epsilon) * norm.cdf(-half - epsilon * deviation))


@pytest.fixture(scope="module")
def spent(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose noise is given, and whose budget does not last for all rounds."""
    return trained(tmp_path_factory.mktemp("runs") / "spent", *POISSON)


# --- what a private run writes ---------------------------------------------------------------------------------------


def test_every_round_says_what_is_spent(spent: Run) -> None:
    event = dp.PoissonSampledDpEvent(0.5, dp.GaussianDpEvent(3.0))  # 10 of 20 clients on average
    epsilons = values(spent, "epsilon")
    private = build(load_config(None, [*QUICK, *POISSON])).private
    assert private is not None
    assert private.spending is not None
    for rounds, epsilon in enumerate(epsilons, start=1):
        assert epsilon == private.spending.epsilon(rounds)
        assert epsilon == pytest.approx(pld.PLDAccountant().compose(event, rounds).get_epsilon(DELTA), rel=2e-3)
    assert (np.diff(epsilons) > 0).all()
    assert {row["guarantee"] for row in spent.rows} == {"dp"}


def test_a_run_stops_before_its_budget_is_exceeded(spent: Run) -> None:
    epsilons, rounds = values(spent, "epsilon"), spent.summary.rounds
    event = dp.PoissonSampledDpEvent(0.5, dp.GaussianDpEvent(3.0))
    assert (spent.summary.status, spent.written["status"]) == ("spent", "spent")
    assert len(spent.rows) == rounds < 9
    assert epsilons[-1] <= 0.85 < pld.PLDAccountant().compose(event, rounds + 1).get_epsilon(DELTA)
    assert any(line.startswith(f"Stopped after {rounds} of 9 rounds, for one more exceeds the privacy budget")
               for line in spent.lines)  # fmt: skip


def test_the_summary_and_the_lines_name_the_guarantee(spent: Run) -> None:
    promise = ("noise of 3 clip norms", "poisson sampling", "each client", "add or remove one", "delta 0.001", "PLD")
    assert spent.summary.privacy is not None
    assert all(part in spent.summary.privacy for part in promise)
    assert spent.written["privacy"] == spent.summary.privacy
    assert spent.written["epsilon"] == spent.summary.epsilon == spent.rows[-1]["epsilon"]
    printed = [line for line in spent.lines if line.startswith("round ")]
    assert printed
    assert all(", epsilon 0." in line for line in printed)
    assert f"Epsilon {spent.summary.epsilon:.3g} spent. Gaussian noise" in "\n".join(spent.lines)


def test_noise_and_clipping_are_as_large_as_they_say(spent: Run) -> None:
    scale = 3.0 * 1.0 / 10  # noise multiplier and clip norm over the clients expected, however many came
    squares = sum(square**2 for square in values(spent, "noise_norm"))
    draws = chi2(ENTRIES * len(spent.rows))
    assert 1e-3 < draws.cdf(squares / scale**2) < 1 - 1e-3
    assert draws.sf(squares / (2 / 3 * scale) ** 2) < 1e-12
    assert draws.cdf(squares / (3 / 2 * scale) ** 2) < 1e-12
    for row in spent.rows:  # where a client of FedAvg ended is how far its message reached before it was clipped
        before, sent = (np.array(of_round(spent.table, row["round"])[name]) for name in ("drift", "update_norm"))
        np.testing.assert_allclose(sent, np.minimum(before, 1), rtol=1e-5)
        assert row["clipped"] == pytest.approx((before > 1).mean(), abs=1e-6)
        assert 0 < row["signal_norm"] <= sent.sum() / 10 * (1 + 1e-5)
        assert row["clip_norm"] == 1.0
    assert 0 < np.mean(values(spent, "clipped")) < 1


def test_a_private_run_is_the_same_wherever_the_data_lie_and_however_wide(spent: Run, tmp_path: Path) -> None:
    settings = Path(spent.summary.folder) / "config.toml"
    again = trained(tmp_path / "again", "execution.memory=stream", "execution.lanes=3", path=settings)
    assert again.summary.status == "spent"

    def timeless(rows: list[Row]) -> list[Row]:
        return [
            {name: value for name, value in row.items() if name not in ("elapsed_seconds", "lanes")} for row in rows
        ]

    a, b = timeless(spent.rows), timeless(again.rows)
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert values(again, "epsilon") == values(spent, "epsilon")
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x == y if isinstance(x, str) else np.isclose(x, y, rtol=1e-5, atol=1e-6), (x, y)


def test_public_turns_are_counted_by_client(tmp_path: Path) -> None:
    """Half of the clients one round, half the next: after four rounds everybody has taken part twice."""
    found = trained(tmp_path / "turns", *GAUSSIAN, "privacy.noise_multiplier=1.2", "training.sampling=round_robin")
    epsilons = values(found, "epsilon")
    assert found.summary.status == "finished"
    for epsilon, turns in zip(epsilons, (1, 1, 2, 2), strict=True):
        assert gaussian_delta(epsilon, 1.2 / math.sqrt(turns)) == pytest.approx(DELTA, rel=1e-3)
    assert found.summary.privacy is not None
    assert "zero out one" in found.summary.privacy
    assert "turns of a client" in found.summary.privacy


def test_an_epsilon_of_laplace_noise_is_for_all_rounds_together(tmp_path: Path) -> None:
    overrides = ("privacy.mechanism=laplace", "privacy.epsilon=2.0", "privacy.clip_norm=3.0", "privacy.delta=0",
                 "training.sampling=all")  # fmt: skip
    found = trained(tmp_path / "laplace", *overrides)
    assert (found.summary.status, found.summary.rounds) == ("finished", 4)
    assert 2.0 * (1 - 1.001e-3) <= found.rows[-1]["epsilon"] <= 2.0
    np.testing.assert_allclose(np.divide(values(found, "epsilon"), [1, 2, 3, 4]), found.rows[-1]["epsilon"] / 4)
    scale = 3.0 * 4 / 2.0 / CLIENTS  # clip norm times rounds over epsilon: Laplace's own, over the clients
    mean_square = np.mean(np.square(values(found, "noise_norm"))) / ENTRIES  # of 2600 entries
    deviation = math.sqrt(20 / (4 * ENTRIES)) * scale**2  # a squared Laplace draw of scale b varies by 20 b^4
    assert abs(mean_square - 2 * scale**2) < 4 * deviation + 2e-3 * 2 * scale**2
    assert min(abs(mean_square - 2 * (f * scale) ** 2) for f in (2 / 3, 3 / 2)) > 4 * (3 / 2) ** 2 * deviation


def test_a_budget_below_one_round_trains_none(tmp_path: Path) -> None:
    options = ("privacy.noise_multiplier=0.5", "privacy.epsilon=0.1", "training.sampling=round_robin")
    found = trained(tmp_path / "none", *GAUSSIAN, *options)
    assert (found.summary.status, found.summary.rounds, found.rows) == ("spent", 0, [])
    assert found.summary.epsilon == 0.0
    assert any(line.startswith("Stopped after 0 of 4 rounds, for one more exceeds") for line in found.lines)


# --- without a guarantee ---------------------------------------------------------------------------------------------


def test_a_run_without_a_guarantee_says_so_in_every_row_and_line(tmp_path: Path) -> None:
    settings = ("privacy.mechanism=laplace_bare", "privacy.epsilon=1.0", "privacy.guarantee=none")
    with pytest.warns(GuaranteeWarning, match="guarantees no privacy") as warned:
        found = trained(tmp_path / "bare", *settings)
    assert len(warned) == 1
    assert (found.summary.status, found.summary.epsilon, found.written["epsilon"]) == ("finished", None, None)
    assert [(row["guarantee"], row["epsilon"]) for row in found.rows] == [("none", None)] * 4
    assert found.summary.privacy is not None
    assert found.summary.privacy.startswith("no privacy guarantee")
    rounds = [line for line in found.lines if line.startswith("round ")]
    assert [line.split(":")[0] for line in rounds][:1] == ["round 1/4"]
    assert rounds[-1].startswith("round 4/4")
    assert all(line.endswith(", no privacy guarantee") for line in rounds)
    assert "no privacy guarantee" in found.lines[0]
    assert any(line.startswith("No privacy guarantee") for line in found.lines)


def test_a_run_without_noise_says_nothing_of_privacy(tmp_path: Path) -> None:
    found = trained(tmp_path / "plain")
    assert not {"epsilon", "guarantee", "clipped"} & found.rows[0].keys()
    assert found.summary.privacy is None
    assert "privacy" not in "".join(found.lines)


# --- what is left out ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mechanism", ["gaussian", "laplace", "matrix", "discrete_gaussian", "local_gaussian",
                                       "local_laplace", "dp_sgd"])  # fmt: skip
def test_sampling_that_is_left_out_is_what_needs_least_noise(mechanism: str) -> None:
    """10 of 20 clients over 20 rounds: no other cohort of 10 hides clients, or examples, with less noise."""
    noise = {}
    for sampling in ("", "poisson", "uniform", "round_robin"):
        chosen = [f"training.sampling={sampling}"] if sampling else []
        asked = (f"privacy.mechanism={mechanism}", "privacy.clip_norm=1.0", "privacy.epsilon=8", "training.rounds=20",
                 "training.local_steps=1")  # fmt: skip
        if (mechanism, sampling) in (("matrix", "poisson"), ("matrix", "uniform"), ("discrete_gaussian", "poisson")):
            continue  # which have no bound
        found = build(load_config(None, [*QUICK, *asked, *chosen]))
        assert found.private is not None
        noise[sampling] = found.private.noise_multiplier
        if not sampling:
            noise[found.config.training.sampling] = found.private.noise_multiplier
    assert noise[""] == min(noise.values())


def test_what_a_run_took_for_its_sampling_is_written(tmp_path: Path) -> None:
    plain, private = load_config(None, QUICK), load_config(None, [*QUICK, *GAUSSIAN, NOISE])
    assert (plain.training.sampling, build(plain).config.training.sampling) == (None, "uniform")
    assert 'training.sampling = "uniform"' in explained(plain)
    assert 'training.sampling = "poisson" (default "uniform")' in explained(private)
    found = trained(tmp_path / "private", *GAUSSIAN, "privacy.noise_multiplier=3.0")
    assert load_config(tmp_path / "private" / "config.toml").training.sampling == "poisson"
    assert "poisson sampling" in (found.summary.privacy or "")


def test_a_weak_delta_is_warned_of() -> None:
    with pytest.warns(GuaranteeWarning, match=r"delta: 0.005 for 20 clients is a weak guarantee"):
        build(load_config(None, [*QUICK, *GAUSSIAN, NOISE, "privacy.delta=0.005"]))
    build(load_config(None, [*QUICK, *GAUSSIAN, NOISE, "privacy.delta=0.001"]))
    silo = build(load_config(None, [*QUICK, *GAUSSIAN, NOISE, "data.clients=4"])).private
    assert silo is not None
    assert silo.spending is not None
    assert silo.spending.delta == 0.001  # a tenth over four is 0.025


# --- one client's values end nothing ---------------------------------------------------------------------------------


HELD_OUT = ("training.validation_fraction=0.5",)


@pytest.mark.parametrize(
    ("mechanism", "own"),
    [
        ("gaussian", HELD_OUT),
        ("dp_sgd", ()),
        pytest.param("gaussian", (), marks=pytest.mark.slow),
        pytest.param("dp_sgd", HELD_OUT, marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore:inputs. column 0 has values")
def test_one_clients_values_do_not_end_a_private_run(mechanism: str, own: tuple[str, ...], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    clients = [{"inputs": rng.normal(size=(20, 4)).astype(np.float32), "labels": np.arange(20) % 2} for _ in range(10)]
    clients[3]["inputs"][:] = 3e38
    test = {"inputs": rng.normal(size=(20, 4)).astype(np.float32), "labels": np.arange(20) % 2}
    write_store(tmp_path / "store", clients, classes=2, test=test)
    chosen = ("data.name=store", f"data.path={tmp_path / 'store'}", "training.evaluate_every=2", *own)
    noise = (f"privacy.mechanism={mechanism}", "privacy.clip_norm=1.0", "privacy.noise_multiplier=30.0")
    found = trained(tmp_path / "run", *chosen, *noise)
    assert (found.summary.status, len(found.rows)) == ("finished", 4)
    measured = [row[name] for row in found.rows for name in ("loss_before", "loss_after", "drift")]
    assert None in measured or any(row["rejected"] for row in found.rows)
    assert all(np.isfinite(leaf).all() for leaf in map(np.load, (tmp_path / "run" / "model").rglob("*.npy")))
    if own:
        assert found.rows[-1]["validation_loss"] is None


def test_a_released_model_that_is_not_finite_ends_a_private_run(tmp_path: Path) -> None:
    found = trained(tmp_path / "run", *GAUSSIAN, "privacy.noise_multiplier=3.0", "training.evaluate_every=2",
                    "algorithm.server_learning_rate=3e38", "algorithm.name=fedavgm")  # fmt: skip
    assert found.summary.status == "diverged"
    assert found.summary.divergence == (2, "a parameter")
    assert "The model diverged: a parameter is not finite in round 2" in "\n".join(found.lines)


def test_forged_messages_leave_discrete_noise_without_a_guarantee() -> None:
    chosen = (*QUICK, *DISCRETE, "attack.name=sign_flip")
    with pytest.raises(InputError) as error:
        build(load_config(None, chosen))
    one_line(error, "attack.name: sign_flip", "share of noise", 'privacy.guarantee "none"')
    build(load_config(None, [*chosen, "privacy.guarantee=none"]))


# --- refusals --------------------------------------------------------------------------------------------------------

NOISE = "privacy.noise_multiplier=1.0"
MATRIX = ("privacy.mechanism=matrix", "privacy.clip_norm=1.0", NOISE)
DISCRETE = ("privacy.mechanism=discrete_gaussian", "privacy.clip_norm=1.0", NOISE)
BAD = {
    "privacy.epsilon: missing, and mechanism 'laplace_bare'": ("privacy.mechanism=laplace_bare",),
    "privacy.epsilon: missing, and mechanism 'gaussian'": GAUSSIAN,
    "privacy.clip_norm: missing, and mechanism 'gaussian'": ("privacy.mechanism=gaussian", NOISE),
    "privacy.clip_norm: missing, and mechanism 'local_laplace'":
        ("privacy.mechanism=local_laplace", "privacy.epsilon=1.0"),
    "privacy.noise_multiplier: -1.0 is not allowed; give a number over 0":
        (*GAUSSIAN, "privacy.noise_multiplier=-1.0"),
    "privacy.epsilon: -2 is not allowed; give a number over 0": (*GAUSSIAN, "privacy.epsilon=-2"),
    "privacy.clip_norm: 0 is not allowed; give a number over 0": (*GAUSSIAN, NOISE, "privacy.clip_norm=0"),
    "privacy.delta: 1": (*GAUSSIAN, NOISE, "privacy.delta=1"),
    "privacy.delta: 0": (*GAUSSIAN, NOISE, "privacy.delta=0"),
    "privacy.epsilon: 1.0 has no effect with mechanism 'none'; leave it out": ("privacy.epsilon=1.0",),
    "privacy.mechanism: 'gausian' is unknown; did you mean gaussian?":
        ("privacy.mechanism=gausian", "privacy.clip_norm=1.0", NOISE),
    "privacy.mechanism: 'laplas_bare' is unknown; did you mean laplace_bare?": ("privacy.mechanism=laplas_bare",),
    "training.sampling: 'by_size' is unknown; choose one of poisson, uniform, round_robin, all":
        (*GAUSSIAN, NOISE, "training.sampling=by_size", "algorithm.weighting=uniform"),
    "training.sampling: 'poisson' lets a client come again at once": (*MATRIX, "training.sampling=poisson"),
    "training.sampling: 'uniform' lets a client come again at once": (*MATRIX, "training.sampling=uniform"),
    "privacy.bands: 3 are more than the 2 rounds": (*MATRIX, "training.sampling=round_robin", "privacy.bands=3"),
    'training.sampling: "poisson" leaves the number of noise shares to chance':
        (*DISCRETE, "training.sampling=poisson"),
    "privacy.adaptive: discrete_gaussian noise has no such option": (*DISCRETE, "privacy.adaptive=true"),
    "privacy.weight_cap: local_gaussian noise has no such option; leave it out":
        ("privacy.mechanism=local_gaussian", "privacy.clip_norm=1.0", NOISE, "privacy.weight_cap=20"),
    "privacy.accountant: 'sum' does not count gaussian noise": (*GAUSSIAN, NOISE, "privacy.accountant=sum"),
    "privacy.delta: 0.99 guarantees nothing, for publishing one of 20 clients":
        (*GAUSSIAN, NOISE, "privacy.delta=0.99"),
    "privacy.delta: 0.05 guarantees nothing": (*GAUSSIAN, NOISE, "privacy.delta=0.05"),
    "privacy.guarantee: noise of scale 1/epsilon (epsilon 1.0) on messages that are not clipped hides nobody; take":
        ("privacy.mechanism=laplace_bare", "privacy.epsilon=1.0"),
    "privacy.accountant: dp_sgd has no such option; leave it out":
        ("privacy.mechanism=dp_sgd", "privacy.clip_norm=1.0", NOISE, "privacy.accountant=rdp"),
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_what_guarantees_nothing_is_refused_in_one_line(message: str) -> None:
    with pytest.raises(InputError) as error:
        build(load_config(None, [*QUICK, *BAD[message]]))
    one_line(error, message, "; ")
    assert str(error.value).startswith(message)


def test_clients_that_remember_are_refused_in_cohorts_of_a_fixed_size(tmp_path: Path) -> None:
    overrides = (*GAUSSIAN, NOISE, "training.sampling=uniform", "algorithm.name=scaffold")
    with pytest.raises(InputError) as error:
        trained(tmp_path / "scaffold", *overrides)
    one_line(error, 'sampling: "uniform" has no bound for clients that remember earlier rounds; take "poisson"')
