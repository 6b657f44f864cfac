"""Starting from saved parameters, and training only some: what is frozen is neither moved nor sent."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_equal, one_line
from runs import QUICK

import fedjax_sim as fs
from fedjax_sim.experiment.build import build
from fedjax_sim.experiment.config import load_config
from fedjax_sim.experiment.run import run
from fedjax_sim.models import build_model, freeze, load_leaves, lora, save_leaves, train_only, warm_start
from fedjax_sim.models.transfer import named

KEY = jax.random.key(0)
BATCH = {"inputs": np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32),
         "labels": np.random.default_rng(1).integers(0, 3, 12).astype(np.int32)}  # fmt: skip
BASE = build_model("mlp", (4,), 3, hidden=(5,))


def trained(model, rounds=3):
    population = fs.Population(jax.tree.map(jnp.asarray, BATCH), jnp.array([0, 5, 12]))
    algorithm = fs.fedavg(model.loss_fn, client_tx=optax.sgd(0.3))
    run = fs.make_simulation(fs.make_round(algorithm, batch_size=4), cohort_size=2, max_rounds=rounds)
    state, metrics = run(fs.init(algorithm, model.params, 2), population, KEY, rounds)
    return state.params, metrics


@pytest.mark.parametrize("kind", ["folder", "file.safetensors"])
def test_leaves_are_written_and_read(tmp_path, kind):
    if kind.endswith("safetensors"):
        pytest.importorskip("safetensors")
    save_leaves(tmp_path / kind, BASE.params)
    found = load_leaves(tmp_path / kind)
    assert found.keys() == {"layer0/kernel", "layer0/bias", "layer1/kernel", "layer1/bias"}
    other = build_model("mlp", (4,), 3, hidden=(5,), seed=1)
    assert_equal(warm_start(other, found).params, BASE.params)


def test_a_skipped_head_starts_afresh_and_may_have_another_shape():
    other = build_model("mlp", (4,), 7, hidden=(5,), seed=1)
    model = warm_start(other, named(BASE.params), skip="layer1")
    assert_equal(model.params["layer0"], BASE.params["layer0"])
    assert_equal(model.params["layer1"], other.params["layer1"])


def test_what_is_frozen_neither_moves_nor_is_sent():
    model = freeze(BASE, "layer0")
    assert model.params.keys() == {"layer1/kernel", "layer1/bias"}
    np.testing.assert_array_equal(model.logits_fn(model.params, BATCH["inputs"]),
                                  BASE.logits_fn(BASE.params, BATCH["inputs"]))  # fmt: skip
    params, metrics = trained(model)
    assert (metrics.uplink_bits == 32 * (5 * 3 + 3)).all()
    assert metrics.loss_after[-1].mean() < metrics.loss_before[0].mean()
    whole = model.whole(params)
    assert_equal(whole["layer0"], BASE.params["layer0"])
    np.testing.assert_allclose(model.logits_fn(params, BATCH["inputs"]), BASE.logits_fn(whole, BATCH["inputs"]))
    assert_equal(trained(train_only(BASE, "layer1"))[0], params)  # the converse

    def masked(params, batch, key):  # as if the others' gradients were zero
        return BASE.loss_fn({**params, "layer0": jax.lax.stop_gradient(params["layer0"])}, batch, key)

    again, _ = trained(BASE._replace(loss_fn=masked))
    np.testing.assert_allclose(again["layer1"]["kernel"], params["layer1/kernel"], atol=1e-6)


def test_adapters_start_as_the_base_train_alone_and_can_be_merged():
    model = lora(BASE, 2, alpha=4, pattern="layer0", also="layer1/bias")
    assert {name: leaf.shape for name, leaf in model.params.items()} == {
        "layer0/kernel/a": (4, 2), "layer0/kernel/b": (2, 5), "layer1/bias": (3,)
    }  # fmt: skip
    np.testing.assert_array_equal(model.logits_fn(model.params, BATCH["inputs"]),
                                  BASE.logits_fn(BASE.params, BATCH["inputs"]))  # fmt: skip
    params, metrics = trained(model)
    assert (metrics.uplink_bits == 32 * (8 + 10 + 3)).all()
    whole = model.whole(params)
    change = np.asarray(whole["layer0"]["kernel"] - BASE.params["layer0"]["kernel"])
    np.testing.assert_allclose(change, 2 * np.asarray(params["layer0/kernel/a"] @ params["layer0/kernel/b"]), atol=1e-6)
    assert np.linalg.matrix_rank(change, tol=1e-5) == 2
    assert_equal(whole["layer1"]["kernel"], BASE.params["layer1"]["kernel"])
    np.testing.assert_allclose(
        model.logits_fn(params, BATCH["inputs"]), BASE.logits_fn(whole, BATCH["inputs"]), atol=1e-6
    )
    stacked = freeze(model, "/a$")  # adapters of which only B is trained
    assert stacked.params.keys() == {"layer0/kernel/b", "layer1/bias"}
    assert_equal(stacked.whole(stacked.params), BASE.params)


def test_a_convolution_is_adapted_as_a_matrix():
    model = lora(build_model("cnn_small", (8, 8, 1), 3), 1, pattern="layer1/kernel")
    assert {name: leaf.shape for name, leaf in model.params.items()} == {
        "layer1/kernel/a": (144, 1), "layer1/kernel/b": (1, 32)
    }  # fmt: skip


def test_a_run_starts_from_anothers_best_model_and_sends_only_what_it_trains(tmp_path: Path):
    common = [*QUICK, "model.name=mlp", "model.hidden=[8]", f"output.folder={tmp_path}"]
    first = run(load_config(None, [*common, "output.name=first"]))
    best = tmp_path / "first" / "best_model"
    second = run(load_config(None, [*common, "output.name=second", f"model.start={best}", "model.train_only=layer1"]))
    assert second.uplink_bits == 4 * 10 * 32 * (8 * 10 + 10)
    assert second.first_loss is not None
    assert first.first_loss is not None
    assert second.first_loss < first.first_loss
    start, end = load_leaves(best), load_leaves(tmp_path / "second" / "model")
    np.testing.assert_array_equal(start["layer0/kernel"], end["layer0/kernel"])
    assert (start["layer1/kernel"] != end["layer1/kernel"]).any()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: freeze(BASE, "nothing"), ("pattern", "'nothing'", "everything", "layer0/bias")),
        (lambda: freeze(BASE, "layer"), ("pattern", "nothing to train")),
        (lambda: freeze(BASE, "("), ("pattern", "'('", "regular expression")),
        (lambda: lora(BASE, 0), ("rank", "0")),
        (lambda: lora(BASE, 1, pattern="bias"), ("pattern", "'bias'", "no matrix")),
        (lambda: warm_start(BASE, {}), ("layer0/bias", "missing")),
        (lambda: warm_start(BASE, {**named(BASE.params), "x": np.ones(2)}), ("x is unknown",)),
        (lambda: warm_start(BASE, {**named(BASE.params), "layer0/bias": np.ones(2)}), ("layer0/bias", "[2]", "[5]")),
        (lambda: warm_start(BASE, {**named(BASE.params), "layer0/bias": np.full(5, np.nan)}), ("layer0/bias", "nan")),
        (lambda: warm_start(BASE, {**named(BASE.params), "layer0/bias": np.full(5, 1e99)}), ("layer0/bias", "1e+99")),
        (lambda: load_leaves("/nowhere"), ("/nowhere", "no .npy")),
    ],
)
def test_mistakes_are_one_line(make, words):
    with pytest.raises(fs.InputError) as error:
        make()
    one_line(error, *words)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros(3, np.complex64), ("complex64", "real numbers")),
        (np.zeros(3, "datetime64[s]"), ("datetime64", "real numbers")),
        (np.array(["a", "b"]), ("<U1", "real numbers")),
        (np.zeros(3, [("a", "f4"), ("b", "i4")]), ("layer0.bias.npy", "not read")),
        (np.array([None]), ("objects", "unpickled")),
    ],
)
def test_only_real_numbers_are_taken_for_parameters(tmp_path, array, words):
    np.save(tmp_path / "layer0.bias.npy", array, allow_pickle=True)
    with pytest.raises(fs.InputError) as error:
        load_leaves(tmp_path)
    one_line(error, "layer0.bias.npy", *words)


def test_a_header_that_claims_more_than_the_file_holds_is_refused_before_it_is_believed(tmp_path):
    np.save(tmp_path / "layer0.bias.npy", np.zeros(5, np.float32))
    written = (tmp_path / "layer0.bias.npy").read_bytes()
    (tmp_path / "layer0.bias.npy").write_bytes(written.replace(b"(5,), }" + b" " * 13, b"(10000000000000,), }"))
    with pytest.raises(fs.InputError) as error:
        load_leaves(tmp_path)
    one_line(error, "layer0.bias.npy", "truncated", "40000000000128")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.start=/nowhere"], ("model.start", "/nowhere")),
        (["model.skip=layer1"], ("model.skip", "model.start")),
        (["model.lora_also=layer1"], ("model.lora_also", "model.lora_rank")),
        (["model.freeze=bias", "model.lora_rank=2"], ("model.lora_rank", "model.freeze")),
        (["model.train_only=head"], ("model.train_only", "'head'", "nothing")),
    ],
)
def test_settings_that_do_not_fit_are_one_line(overrides, words):
    with pytest.raises(fs.InputError) as error:
        build(load_config(None, [*QUICK, *overrides]))
    one_line(error, *words)


def test_broken_files_and_missing_packages_are_one_line(tmp_path, monkeypatch):
    (tmp_path / "layer0.bias.npy").write_bytes(b"no array")
    with pytest.raises(fs.InputError) as error:
        load_leaves(tmp_path)
    one_line(error, "layer0.bias.npy", "not as a .npy file does")
    with pytest.raises(fs.InputError) as error:
        save_leaves(tmp_path, BASE.params)
    one_line(error, "not empty")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(fs.InputError) as error:
        load_leaves(tmp_path / "x.safetensors")
    one_line(error, "fedjax-sim[models]")


def test_each_seed_may_have_a_start_of_its_own(tmp_path):
    for seed in (0, 1):
        model = build_model("logistic", (8, 8, 1), 10, hidden=())
        save_leaves(tmp_path / f"start_{seed}", jax.tree.map(lambda leaf, seed=seed: leaf + seed, model.params))
    for seed in (0, 1):
        config = load_config(None, ["model.name=logistic", f"model.start={tmp_path}/start_{{seed}}",
                                    f"training.seed={seed}"])  # fmt: skip
        assert {float(x) for leaf in jax.tree.leaves(build(config).model.params) for x in np.unique(leaf)} == {seed}
