"""Texts: LEAF's tweets as LEAF writes them, and models that take a text for a text and nothing else for one."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import one_line
from test_natural import write_leaf

from fedjax_sim import InputError
from fedjax_sim.data import by_column, federate, from_clients, open_store, save
from fedjax_sim.data.sources import leaf, shakespeare
from fedjax_sim.experiment.build import build
from fedjax_sim.experiment.config import load_config
from fedjax_sim.models import MODELS, build_model
from fedjax_sim.models.classifiers import INPUTS

# --- LEAF's Sent140 --------------------------------------------------------------------------------------------------


def tweet(text: str, *more: Any) -> list[Any]:
    return ["1467810672", "Mon Apr 06 22:19:49 PDT 2009", "NO_QUERY", "me", text, *more]


def texts(inputs: np.ndarray) -> list[str]:
    return [bytes(row).rstrip(b"\0").decode() for row in inputs]


@pytest.mark.parametrize("more", [(), ("training",), ("test",), (4,)])
def test_the_text_of_a_tweet_is_its_fifth_field(tmp_path: Path, more: tuple[Any, ...]) -> None:
    said = {user: [f"what a {word} day for {user}" for word in ("lovely", "awful")] for user in ("ann", "bob")}
    users = {user: ([tweet(text, *more) for text in own], [1, 0]) for user, own in said.items()}
    write_leaf(tmp_path / "train" / "a.json", users)
    write_leaf(tmp_path / "test" / "a.json", users)
    data = leaf(path=str(tmp_path))
    assert texts(data.train["inputs"]) == [*said["ann"], *said["bob"]]
    assert data.train["labels"].tolist() == [1, 0, 1, 0]
    assert (data.classes, data.vocabulary, by_column(data).vocabulary) == (2, 256, 256)


@pytest.mark.parametrize(
    "x",
    [
        tweet("a text", "something else"),
        tweet("a text", "training", "more"),
        tweet("a text")[1:],
        [*tweet("a text")[:4], 5],
        [1.5, *tweet("a text")[1:]],
        ["a", "b"],
        [[["<BOS>", "hello"]]],  # Reddit's
        "1.jpg",  # CelebA's
    ],
)
def test_lists_of_another_layout_are_refused(tmp_path: Path, x: Any) -> None:
    write_leaf(tmp_path / "a.json", {"me": ([x, x], [0, 1])})
    with pytest.raises(InputError) as error:
        leaf(path=str(tmp_path))
    one_line(error, "a.json, user 'me'", "which is not read", "[id, date, query, user, text]")


def test_the_folder_above_leafs_files_names_them(tmp_path: Path) -> None:
    for name in ("all_data", "rem_user_data"):
        write_leaf(tmp_path / name / "a.json", {"me": ([tweet("x"), tweet("y")], [0, 1])})
    with pytest.raises(InputError) as error:
        leaf(path=str(tmp_path))
    one_line(error, "no .json files", "all_data or rem_user_data in it say")


def test_leafs_images_of_whole_numbers_are_scaled(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 784))
    write_leaf(tmp_path / "a.json", {"me": (images.tolist(), [0, 1] * 3)})
    with pytest.warns(UserWarning, match="kept as uint8, which the models divide by 255"):
        data = leaf(path=str(tmp_path), test_fraction=0.5)
    assert data.train["inputs"].dtype == np.uint8
    both = np.concatenate([data.train["inputs"], data.test["inputs"]]).reshape(6, 784)
    np.testing.assert_array_equal(np.sort(both.sum(1)), np.sort(images.sum(1)))


# --- models of text --------------------------------------------------------------------------------------------------


def test_different_texts_have_different_logits() -> None:
    model = build_model("char_lstm", (140,), 2)
    assert model.params["embedding"].shape == (256, 8)
    said = ["i love it so much", "i hate it so much", "zzzzzzzzzzzzzzzzz", "z" * 140]
    codes = np.stack([np.frombuffer(text.encode().ljust(140, b"\0"), np.uint8) for text in said])
    logits = np.asarray(model.logits_fn(model.params, jnp.asarray(codes)))
    assert logits.shape == (4, 2)
    assert min(np.abs(a - b).max() for i, a in enumerate(logits) for b in logits[:i]) > 1e-4
    short = model.logits_fn(model.params, jnp.asarray(codes[:3, :17]))  # padding changes nothing
    np.testing.assert_allclose(logits[:3], short, atol=1e-6)


def test_every_model_says_what_it_takes() -> None:
    assert INPUTS.keys() == MODELS.keys()
    assert set(INPUTS.values()) == {"numbers", "images", "codes"}


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "vocabulary", "words"),
    [
        ("char_lstm", (10,), np.float32, None, ("float32[10]", "take logistic, mlp, mlp_norm")),
        ("char_lstm", (10,), np.int32, None, ("int32[10]", "vocabulary=")),
        ("char_lstm", (8, 8, 1), np.uint8, None, ("uint8[8, 8, 1]", "take logistic, mlp, mlp_norm, cnn, cnn_small")),
        ("mlp", (80,), np.uint8, 64, ("codes below 64", "take char_lstm")),
        ("logistic", (80,), np.int32, 64, ("codes below 64", "take char_lstm")),
        ("vit", (80,), np.uint8, 64, ("codes below 64", "take char_lstm")),
        ("cnn", (10,), np.float32, None, ("float32[10]", "take logistic, mlp, mlp_norm")),
        ("vit", (3, 8, 1), np.uint8, None, ("uint8[3, 8, 1]", "take logistic")),
    ],
)
def test_models_refuse_what_they_do_not_take(
    name: str, shape: tuple[int, ...], dtype: Any, vocabulary: int | None, words: tuple[str, ...]
) -> None:
    with pytest.raises(InputError) as error:
        build_model(name, shape, 2, dtype=dtype, vocabulary=vocabulary)
    one_line(error, f"model.name: {name} takes", *words)


def test_a_text_model_applied_to_floats_says_so() -> None:
    model = build_model("char_lstm", (10,), 2)
    with pytest.raises(InputError) as error:
        model.logits_fn(model.params, jnp.ones((3, 10)))
    one_line(error, "model.name: char_lstm takes codes of a text", "float32")


def test_a_configuration_builds_the_text_model_of_its_data(tmp_path: Path) -> None:
    users = {user: ([tweet(f"{user} {i}", "training") for i in range(10)], [0, 1] * 5) for user in ("ann", "bob")}
    write_leaf(tmp_path / "tweets" / "a.json", users)
    settings = ["data.name=leaf", f"data.path={tmp_path / 'tweets'}"]
    params = build(load_config(None, [*settings, "model.name=char_lstm"])).model.params
    assert params["embedding"].shape == (256, 8)
    assert params["layer2"]["bias"].shape == (2,)
    with pytest.raises(InputError) as error:
        build(load_config(None, [*settings, "model.name=mlp"]))
    one_line(error, "model.name: mlp takes numbers", "uint8[140], codes below 256", "take char_lstm")
    with pytest.raises(InputError) as error:
        build(load_config(None, ["data.name=breast_cancer", "model.name=char_lstm"]))
    one_line(error, "model.name: char_lstm", "float32[30]", "take logistic, mlp, mlp_norm")


def test_shakespeares_characters_are_the_vocabulary(tmp_path: Path) -> None:
    role = {"play": "p", "role": "r", "speeches": ["to be or not to be, that is the question " * 5] * 20}
    (tmp_path / "roles.jsonl").write_text(json.dumps(role))
    data = shakespeare(path=str(tmp_path))
    federation = federate(data, [np.arange(len(data.train["labels"]))])
    assert federation.vocabulary == data.classes < 30
    experiment = build(load_config(None, ["model.name=char_lstm"]), data=federation)
    assert experiment.model.params["embedding"].shape == (data.classes, 8)
    save(tmp_path / "store", federation)
    assert open_store(tmp_path / "store").vocabulary == data.classes


def test_codes_beyond_the_vocabulary_are_refused() -> None:
    clients = [{"inputs": np.array([[0, 4], [5, 1]]), "labels": np.array([0, 1])}]
    assert from_clients(clients, classes=2, vocabulary=6).vocabulary == 6
    for given in (clients, [{**clients[0], "inputs": clients[0]["inputs"] - 2}]):
        with pytest.raises(InputError) as error:
            from_clients(given, classes=2, vocabulary=5)
        one_line(error, "clients, field 'inputs': int64 from", "whole numbers from 0 to 4")
    with pytest.raises(InputError) as error:
        from_clients([{**clients[0], "inputs": np.ones((2, 2))}], classes=2, vocabulary=5)
    one_line(error, "float64 from 1.0 to 1.0; give codes")
