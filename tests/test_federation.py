"""From a configuration to a federation, and training on it: every source, partition, dial and sampler by name."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import one_line

from fedjax_sim import InputError
from fedjax_sim.data import DISAGREEMENTS, DRIFTS, PARTITIONS, SAMPLERS, SHIFTS, FederatedData, save
from fedjax_sim.experiment import drive
from fedjax_sim.experiment.config import Heterogeneity, load_config, to_toml
from fedjax_sim.experiment.federation import Federation, make_federation
from fedjax_sim.experiment.history import read_history
from fedjax_sim.experiment.run import run


def made(*overrides: str) -> Federation:
    return make_federation(load_config(None, overrides))


def same(a: FederatedData, b: FederatedData) -> bool:
    return all(np.array_equal(a.examples[field], b.examples[field]) for field in a.examples)


@pytest.mark.parametrize("sampling", SAMPLERS)
def test_every_sampler_is_a_setting(sampling: str) -> None:
    some = [] if sampling == "all" else ["training.clients_per_round=4"]
    federation = made(f"training.sampling={sampling}", "algorithm.weighting=uniform", *some)
    cohort = federation.sampler.draw(0, 0)
    assert len(cohort) >= 4
    assert cohort.max() < 20


def test_sampling_by_size_says_when_size_counts_twice() -> None:
    with pytest.warns(UserWarning, match=r"^training.sampling: by_size and weights by examples"):
        made("training.sampling=by_size")
    with pytest.raises(InputError, match=r"^training.sampling: by_size goes by the first rounds' sizes"):
        made("training.sampling=by_size", "heterogeneity.drift=prior", "heterogeneity.drift_round=3")


def test_every_dial_is_a_setting() -> None:
    dials = {name for name, field in Heterogeneity.model_fields.items() if field.default == 0.0}
    assert dials == {*SHIFTS, *DISAGREEMENTS}


def test_the_default_is_dirichlet_on_digits() -> None:
    federation = made()
    data = federation.config.data
    assert (data.partition, data.clients, data.alpha, data.test_fraction) == ("dirichlet", 20, 0.3, 0.2)
    assert federation.config.training.clients_per_round == 10
    assert federation.phases[0].data.num_clients == 20
    again = make_federation(load_config(None, []).model_copy(update={"data": data}))
    assert same(again.phases[0].data, federation.phases[0].data)


@pytest.mark.parametrize("partition", [name for name in PARTITIONS if name != "list"])
def test_every_partition_deals_all_examples(partition: str) -> None:
    federation = made(f"data.partition={partition}", "data.clients=12")
    assert federation.phases[0].data.sizes.sum() == 1437
    assert federation.phases[0].data.num_clients == 12


@pytest.mark.parametrize("dial", [*SHIFTS, *DISAGREEMENTS])
def test_every_dial_changes_what_it_should_alone(dial: str) -> None:
    source = "breast_cancer" if dial in ("affine", "missing") else "digits"
    plain, turned = (made(f"data.name={source}", f"heterogeneity.{dial}={s}").phases[0].data for s in (0, 0.8))
    changed = "labels" if dial in DISAGREEMENTS else "inputs"
    for field in plain.examples:
        equal = plain.examples[field].dtype == turned.examples[field].dtype and same(
            plain._replace(examples={field: plain.examples[field]}), turned
        )
        assert equal == (field != changed)
    assert plain.test is not None
    assert turned.test is not None
    if plain.test["inputs"].dtype == turned.test["inputs"].dtype:
        np.testing.assert_array_equal(plain.test["inputs"], turned.test["inputs"])
    np.testing.assert_array_equal(plain.test["labels"], turned.test["labels"])


def test_class_imbalance() -> None:
    data = made("heterogeneity.imbalance=0.1").phases[0].data
    counts = np.bincount(data.examples["labels"])
    assert counts.argmax() == 0
    assert counts[9] == pytest.approx(0.1 * counts[0], abs=1)


@pytest.mark.parametrize("drift", DRIFTS)
def test_drift_begins_at_its_round(drift: str) -> None:
    phases = made(f"heterogeneity.drift={drift}", "heterogeneity.drift_round=7").phases
    assert [phase.start for phase in phases] == [0, 6]
    assert not same(phases[0].data, phases[1].data)
    first = made(f"heterogeneity.drift={drift}", "heterogeneity.drift_round=1").phases
    assert [phase.start for phase in first] == [0]
    assert same(first[0].data, phases[1].data)


def test_clients_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "wards.csv"
    rows = [f"{i % 3 + i / 7:.3f},{i % 5},{i % 2},ward {i % 3}" for i in range(60)]
    path.write_text("\n".join(["a,b,label,client", *rows]))
    federation = made("data.name=csv", f"data.path={path}")
    data, config = federation.phases[0].data, federation.config
    assert [data.name(i) for i in range(3)] == ["ward 0", "ward 1", "ward 2"]
    assert (config.data.partition, config.data.clients, config.training.clients_per_round) == ("column", 3, 3)
    assert data.local_test is not None
    dealt = made("data.name=csv", f"data.path={path}", "data.partition=iid", "data.clients=4").phases[0].data
    assert dealt.num_clients == 4
    with pytest.raises(InputError, match=r"^data.clients: 5, but .* has 3 of its own; leave it out$"):
        made("data.name=csv", f"data.path={path}", "data.clients=5")
    with pytest.raises(InputError, match=r"^data.column: 'ward' is not in"):
        made("data.name=csv", f"data.path={path}", "data.partition=column", "data.column=ward")


BAD = {
    "data.alpha=1 data.partition=iid": "data set 'digits' with partition 'iid' has no such option; leave it out",
    "data.path=x": "data.path: 'x' is not used",
    "data.label=x": "data.label: data set 'digits' with partition 'auto' has no such option",
    "data.partition=iid data.clients=2000": "data.clients: 2000",
    "data.partition=iid data.min_examples=100": "data.clients: 20 with at least 100",
    "data.partition=column": "data.column: 'client' is not in scikit-learn digits",
    "data.name=store": "data.path: it is empty",
    "data.name=store data.path=nowhere": "nowhere/federation.json: no such file",
    "data.name=digitz": "data.name: 'digitz' is unknown; did you mean digits?",
    "data.partition=iidd": "data.partition: 'iidd' is unknown; did you mean iid?",
    "training.sampling=evenly": "training.sampling: 'evenly' is unknown",
    "training.clients_per_round=21": "training.clients_per_round: 21 is more than the 20 clients",
    "heterogeneity.drift=sudden heterogeneity.drift_round=3": "heterogeneity.drift: 'sudden' is unknown",
    "heterogeneity.affine=1": "affine",
    "data.name=breast_cancer heterogeneity.blur=1": "blur",
    "data.partition=list": "data.owners",
    "data.alpha=0": "data.alpha: 0",
    "training.sampling=all training.clients_per_round=3": "training.clients_per_round: 3, but all are 20",
}


@pytest.mark.parametrize("overrides", BAD)
def test_what_does_not_fit_is_one_line(overrides: str) -> None:
    with pytest.raises(InputError) as error:
        made(*overrides.split())
    one_line(error, BAD[overrides])


QUICK = ("model.name=logistic", "training.rounds=4", "training.evaluate_every=3", "execution.devices=1")


def losses(folder: Path, *overrides: str) -> list[dict]:
    run(load_config(None, [*QUICK, f"output.folder={folder.parent}", f"output.name={folder.name}", *overrides]))
    rows = read_history(folder / "history.jsonl")
    return [{name: value for name, value in row.items() if name != "elapsed_seconds"} for row in rows]


@pytest.mark.parametrize(
    "sampling", ["uniform", pytest.param("poisson", marks=pytest.mark.slow)]
)  # drawn on the device, or not
def test_streamed_and_resident_runs_write_the_same_history(tmp_path: Path, sampling: str) -> None:
    a, b = (
        losses(tmp_path / m, f"execution.memory={m}", f"training.sampling={sampling}") for m in ("device", "stream")
    )
    assert jax.tree.structure(a) == jax.tree.structure(b)
    np.testing.assert_allclose(jax.tree.leaves(a), jax.tree.leaves(b), rtol=1e-5)
    assert len(a) == len(b) == 4
    assert a[-1]["test_accuracy"] is not None


def test_a_run_is_repeated_from_its_own_configuration_and_from_disk(tmp_path: Path) -> None:
    overrides = ["data.partition=shards", "heterogeneity.flip=0.2", "training.sampling=round_robin"]
    first = losses(tmp_path / "first", *overrides)
    config = load_config(tmp_path / "first" / "config.toml", [f"output.name={tmp_path.name}_again"])
    assert run(config).status == "finished"
    save(tmp_path / "store", made(*overrides).phases[0].data)
    stored = losses(
        tmp_path / "stored", "data.name=store", f"data.path={tmp_path / 'store'}", "training.sampling=round_robin"
    )
    assert stored == first
    assert "shards_per_client = 2" in to_toml(config)


@pytest.mark.parametrize("memory", ["device", pytest.param("stream", marks=pytest.mark.slow)])
def test_drift_shows_in_the_losses(tmp_path: Path, memory: str) -> None:
    common = ["training.rounds=8", "training.sampling=all", "data.partition=iid", f"execution.memory={memory}"]
    steady = losses(tmp_path / "steady", *common)
    drifting = losses(tmp_path / "drifting", *common, "heterogeneity.drift=concept", "heterogeneity.drift_round=6")
    assert drifting[:4] == steady[:4]
    assert drifting[4]["loss_before"] == steady[4]["loss_before"]
    assert drifting[5]["loss_before"] > 1.5 * steady[5]["loss_before"]


def test_a_population_without_a_global_test_set_is_tested_on_the_clients_own(tmp_path: Path) -> None:
    data = made("data.local_test_fraction=0.25").phases[0].data
    save(tmp_path / "own", data._replace(test=None))
    save(tmp_path / "none", data._replace(test=None, local_test=None))
    rows = losses(tmp_path / "a", "data.name=store", f"data.path={tmp_path / 'own'}")
    assert rows[-1]["test_accuracy"] > 0.1
    rows = losses(tmp_path / "b", "data.name=store", f"data.path={tmp_path / 'none'}")
    assert rows[-1]["test_accuracy"] is None
    assert json.loads((tmp_path / "b" / "summary.json").read_text())["status"] == "finished"


def test_poisson_rounds_may_be_empty(tmp_path: Path) -> None:
    rows = losses(
        tmp_path / "a", "training.sampling=poisson", "training.clients_per_round=1", "data.clients=5",
        "training.rounds=12",
    )  # fmt: skip
    clients = [row["clients"] for row in rows]
    assert 0 in clients
    assert max(clients) > 1
    assert all(row["loss_before"] is None for row in rows if row["clients"] == 0)
    assert all(row["aggregate_norm"] == 0 for row in rows if row["clients"] == 0)


def test_tiny_clients_and_classes_nobody_has(tmp_path: Path) -> None:
    owners = np.full(1437, -1)
    owners[0], owners[1:3], owners[3:40] = 1, 2, 3  # client 0 has nothing, client 1 one example
    np.savetxt(tmp_path / "owners.txt", owners, "%d")
    rows = losses(
        tmp_path / "a", "data.partition=list", f"data.owners={tmp_path / 'owners.txt'}",
        "training.sampling=all", "training.batch_size=64", "data.min_examples=0",
    )  # fmt: skip
    assert [row["clients"] for row in rows] == [3] * 4
    assert np.load(tmp_path / "a" / "per_client.npy")["examples"][:3].tolist() == [1, 2, 37]
    assert all(np.isfinite(row["loss_after"]) for row in rows)


def test_what_a_clock_says_of_streamed_clients_follows_their_data(tmp_path: Path) -> None:
    """Cohorts are read ahead, beyond the round in which the data change."""
    common = ["model.name=logistic", "training.rounds=9", "training.evaluate_every=3", "network.profiles=constant",
              "network.dropout=0.3", "heterogeneity.drift=concept", "heterogeneity.drift_round=4"]  # fmt: skip
    histories = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(drive, "SLICE_BYTES", 1)  # a round in each slice
        for memory in ("device", "stream"):
            config = load_config(None, [*common, f"execution.memory={memory}", f"output.folder={tmp_path / memory}"])
            rows = read_history(Path(run(config).folder) / "history.jsonl")
            histories.append([{k: v for k, v in row.items() if k != "elapsed_seconds"} for row in rows])
    assert histories[0] == histories[1]
