"""Federations on disk: what is written is read back, whole or not at all, and damage is named."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import BATCH, assert_equal, make_algorithm, one_line
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim.data import ClientRecord, FederatedData, from_clients, gather, open_store, save, stream, write_store
from fedjax_sim.experiment.config import Config
from fedjax_sim.experiment.federation import make_federation

KINDS = st.sampled_from(["uint8", "float32", "int64", "bool", "float16"])


def examples(size: int, kind: str = "float32", seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "inputs": rng.integers(0, 2, (size, 2, 3)).astype(kind),
        "labels": rng.integers(0, 3, size).astype(np.int32),
    }


def assert_same(a: FederatedData, b: FederatedData) -> None:
    assert a.num_clients == b.num_clients
    assert (a.classes, a.source) == (b.classes, b.source)
    for x, y in ((a.examples, b.examples), (a.test or {}, b.test or {}), (dict(a.attributes), dict(b.attributes))):
        assert_equal(x, y)
        assert [array.dtype for array in x.values()] == [array.dtype for array in y.values()]
    for i in range(a.num_clients):
        assert a.name(i) == b.name(i)
        assert_equal(a.client(i), b.client(i))
        assert_equal(a.client_test(i), b.client_test(i))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any), KINDS, st.booleans(), st.booleans())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read_back(tmp_path: Path, sizes, kind, named, own_tests):
    clients = [examples(n, kind, i) for i, n in enumerate(sizes)]
    records = [
        ClientRecord(
            client,
            name=f"höspital {i}" if named else None,
            test=examples(i % 3, kind, 9) if own_tests else None,
            attributes={"scanner": "AB"[i % 2] * (i + 1), "beds": i} if named else {},
        )
        for i, client in enumerate(clients)
    ]
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    assert write_store(folder, iter(records), test=clients[0], classes=3, source="mine") == folder
    data = open_store(folder, verify=True)
    np.testing.assert_array_equal(data.offsets, np.concatenate([[0], np.cumsum(sizes)]))
    own = {"names": data.names, "local_test": data.local_test, "attributes": data.attributes}
    assert_same(data, from_clients(clients, test=clients[0])._replace(**own, classes=3, source="mine"))
    assert all(isinstance(array, np.memmap) for array in data.examples.values())
    assert not data.examples["inputs"].flags.writeable
    for i, record in enumerate(records):
        assert data.name(i) == (record.name or f"client_{i}")
        if record.test is not None:
            np.testing.assert_array_equal(data.client_test(i)["labels"], record.test["labels"])
        if named:
            assert (data.attributes["scanner"][i], data.attributes["beds"][i]) == ("AB"[i % 2] * (i + 1), i)
    save(again := folder.with_name(folder.name + "b"), data)
    assert_same(open_store(again, verify=True), data)


def test_a_client_is_a_view(tmp_path: Path):
    data = open_store(write_store(tmp_path / "a", [examples(4), examples(7)]))
    assert np.shares_memory(data.client(1)["inputs"], data.examples["inputs"])


def test_an_interrupted_write_leaves_nothing(tmp_path: Path):
    seen = []

    def clients():
        yield examples(3)
        seen.extend(path.name for path in tmp_path.iterdir())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_store(tmp_path / "a", clients())
    assert seen == ["a.partial"]
    assert not list(tmp_path.iterdir())
    with pytest.raises(fs.InputError, match=r"federation.json: no such file; give a folder that holds a whole"):
        open_store(tmp_path / "a")
    (tmp_path / "a.partial").mkdir()  # as after a power cut
    with pytest.raises(fs.InputError) as error:
        write_store(tmp_path / "a", [examples(3)])
    one_line(error, "a.partial", "interrupted write", "remove it")


def test_nothing_is_overwritten(tmp_path: Path):
    write_store(tmp_path / "a", [examples(3)])
    with pytest.raises(fs.InputError, match="it exists already"):
        write_store(tmp_path / "a", [examples(2)])
    assert open_store(tmp_path / "a").offsets[-1] == 3
    (tmp_path / "file").write_text("mine")
    with pytest.raises(fs.InputError, match="it exists already"):
        write_store(tmp_path / "file", [examples(2)])


@pytest.mark.parametrize(
    ("clients", "parts"),
    [
        ([], ["clients: none of the 0"]),
        ([examples(0)], ["clients: none of the 1"]),
        ([examples(1), {"inputs": np.zeros((1, 2, 3), np.float32)}], ["client 1", "['inputs']"]),
        ([examples(1), examples(1, "uint8")], ["client 1", "'inputs'", "uint8", "float32"]),
        ([{"x": np.array([[1.0, np.nan]])}], ["client 0", "'x'", "nan at [0, 1]"]),
        ([{"x": np.array([None])}], ["client 0", "'x'", "object"]),
        ([{"a/b": np.zeros(1)}], ["client 0", "'a/b'", "no name for a file"]),
        ([ClientRecord(examples(1), name="a"), examples(1)], ["client 1", "name"]),
        ([ClientRecord(examples(1), test=examples(1)), ClientRecord(examples(1))], ["client 1", "test"]),
        ([ClientRecord(examples(1), test=examples(1, "uint8"))], ["client 0, test", "uint8"]),
        ([ClientRecord(examples(1), attributes={"../x": 1})], ["'../x'", "no name for a file"]),
    ],
)
def test_bad_clients_are_named_and_nothing_is_left(tmp_path: Path, clients, parts):
    with pytest.raises(fs.InputError) as error:
        write_store(tmp_path / "a", clients)
    one_line(error, *parts)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("labels", [np.array([0, 3]), np.array([-1, 0]), np.array([0.5, 1.0])])
def test_labels_that_are_no_classes(tmp_path: Path, labels: np.ndarray):
    clients = [{"inputs": np.zeros((2, 1)), "labels": labels}]
    for make in (lambda: write_store(tmp_path / "a", clients, classes=3), lambda: from_clients(clients, classes=3)):
        with pytest.raises(fs.InputError) as error:
            make()
        one_line(error, "client", "'labels'", "give whole numbers from 0 to 2")
    data = open_store(write_store(tmp_path / "b", clients))._replace(classes=3)
    for use in (data.population, lambda: gather(data, np.array([0]))):
        with pytest.raises(fs.InputError, match="field 'labels'"):
            use()
    with pytest.raises(fs.InputError, match=r"^classes: 1 is not a whole number of at least 2"):
        write_store(tmp_path / "c", clients, classes=1)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def rewrite(path: Path, **change: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


DAMAGE = {
    "truncated examples": (lambda f: truncate(f / "train.inputs.npy"), ["train.inputs.npy"]),
    "missing examples": (lambda f: (f / "train.labels.npy").unlink(), ["train.labels.npy", "no such file"]),
    "other examples": (lambda f: np.save(f / "train.labels.npy", np.zeros(5, np.int32)), ["train.labels.npy", "[5]"]),
    "other dtype": (lambda f: np.save(f / "train.labels.npy", np.zeros(7, np.int64)), ["train.labels.npy", "<i8"]),
    "objects": (
        lambda f: np.save(f / "train.labels.npy", np.array([None] * 7), allow_pickle=True),
        ["train.labels.npy", "object"],
    ),
    "other offsets": (lambda f: np.save(f / "train.offsets.npy", np.array([0, 3, 9])), ["train.offsets.npy", "7"]),
    "empty index": (lambda f: (f / "federation.json").write_text(""), ["federation.json", "damaged"]),
    "half an index": (lambda f: truncate(f / "federation.json"), ["federation.json", "damaged"]),
    "no index": (lambda f: (f / "federation.json").unlink(), ["federation.json", "no such file"]),
    "an index of something else": (lambda f: (f / "federation.json").write_text("[1]"), ["federation.json", "damaged"]),
    "another version": (lambda f: rewrite(f / "federation.json", version=9), ["federation.json", "version 9"]),
    "another count": (lambda f: rewrite(f / "federation.json", clients=5), ["train.offsets.npy", "[3]"]),
}


DAMAGE |= {
    "offsets that go back": (
        lambda f: np.save(f / "train.offsets.npy", np.array([0, -5, 7])), ["train.offsets.npy", "fall after client 0"]),
    "offsets of another type": (
        lambda f: np.save(f / "train.offsets.npy", np.array([0, 3, 7], np.int32)), ["train.offsets.npy", "<i4"]),
    "offsets in pairs": (
        lambda f: (np.save(f / "train.offsets.npy", np.zeros((3, 2), np.int64)), offsets_of_index(f, [3, 2])),
        ["train.offsets.npy", "[3, 2]"]),
    "labels in another number": (
        lambda f: (np.save(f / "train.labels.npy", np.zeros(5, np.int32)), field_of_index(f, "labels", shape=[5])),
        ["train.offsets.npy", "lengths"]),
    "complex inputs": (
        lambda f: (np.save(f / "train.inputs.npy", np.zeros((7, 2), np.complex64)),
                   field_of_index(f, "inputs", shape=[7, 2], dtype="<c8")), ["complex64"]),
    "too many classes": (lambda f: rewrite(f / "federation.json", classes=10**12), ["classes", "10000000"]),
    "classes that are no number": (lambda f: rewrite(f / "federation.json", classes="two"), ["classes", "'two'"]),
    "no clients": (lambda f: rewrite(f / "federation.json", clients=0), ["clients", "0"]),
    "deep brackets": (lambda f: (f / "federation.json").write_text("[" * 200_000), ["federation.json", "too deeply"]),
    "a number without end": (lambda f: (f / "federation.json").write_text("9" * 5000), ["too many digits"]),
}  # fmt: skip


def offsets_of_index(folder: Path, shape: list[int]) -> None:
    index = json.loads((folder / "federation.json").read_text())
    index["train"]["offsets"]["shape"] = shape
    (folder / "federation.json").write_text(json.dumps(index))


def field_of_index(folder: Path, field: str, **change: object) -> None:
    index = json.loads((folder / "federation.json").read_text())
    index["train"]["fields"][field] |= change
    (folder / "federation.json").write_text(json.dumps(index))


@pytest.mark.parametrize("part", ["test", "local_test"])
@pytest.mark.parametrize("change", ["no labels", "another width"])
def test_test_sets_unlike_the_training_set_are_refused_when_opened(tmp_path: Path, part: str, change: str):
    clients = [ClientRecord(examples(3), test=examples(2)), ClientRecord(examples(4), test=examples(1))]
    folder = write_store(tmp_path / "a", clients, test=examples(3))
    index = json.loads((folder / "federation.json").read_text())
    fields = index["test"] if part == "test" else index["local_test"]["fields"]
    if change == "no labels":
        del fields["labels"]
    else:
        np.save(folder / f"{part}.inputs.npy", np.zeros((3, 9), np.float32))
        fields["inputs"] |= {"shape": [3, 9], "dtype": "<f4"}
    (folder / "federation.json").write_text(json.dumps(index))
    with pytest.raises(fs.InputError) as error:
        open_store(folder)
    one_line(error, str(folder / "federation.json"), part, "labels" if change == "no labels" else "[9]")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_found_in_every_part_of_a_store(tmp_path: Path, value: float):
    clients = [ClientRecord(examples(3), test=examples(2)), ClientRecord(examples(4), test=examples(1))]
    for part in ("train", "test", "local_test"):
        folder = write_store(tmp_path / part, clients, test=examples(3), classes=3)
        inputs = np.load(folder / f"{part}.inputs.npy")
        inputs.reshape(-1)[-1] = value
        np.save(folder / f"{part}.inputs.npy", inputs)
        data = open_store(folder)
        uses = [lambda data=data: make_federation(Config(), given=data)]
        if part == "train":
            uses = [data.population, lambda data=data: gather(data, np.array([1]))]
            gather(data, np.array([0]))
        for use in uses:
            with pytest.raises(fs.InputError) as error:
                use()
            one_line(error, "'inputs'", str(value), "fill in")


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named(tmp_path: Path, kind: str):
    folder = write_store(tmp_path / "a", [examples(3), examples(4)])
    damage, parts = DAMAGE[kind]
    damage(folder)
    with pytest.raises(fs.InputError) as error:
        open_store(folder)
    one_line(error, *parts)


def test_a_flipped_bit_shows_in_the_checksum(tmp_path: Path):
    folder = write_store(tmp_path / "a", [examples(3), examples(4)])
    path = folder / "train.inputs.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    open_store(folder)  # opening reads nothing
    with pytest.raises(fs.InputError) as error:
        open_store(folder, verify=True)
    one_line(error, "train.inputs.npy", "checksum")


def test_training_from_disk_equals_training_from_memory(tmp_path: Path, federation):
    bounds = zip(federation.offsets[:-1], federation.offsets[1:], strict=True)
    clients = [{"inputs": federation.inputs[a:b], "labels": federation.labels[a:b]} for a, b in bounds]
    data = open_store(write_store(tmp_path / "a", clients))
    algorithm, key = make_algorithm("fedavg"), jax.random.key(0)
    round_fn = jax.jit(fs.make_round(algorithm, batch_size=BATCH))
    a = b = fs.init(algorithm, federation.params, 6)
    drawn = [np.array([0, 5, -1]), np.array([3, 1, 2])]
    for ids, cohort in zip(drawn, stream(data, drawn), strict=True):
        a, _ = round_fn(a, fs.select(federation.population, ids), key)
        b, _ = round_fn(b, cohort, key)
    assert_equal(a, b)


def test_changes_to_a_private_map_are_not_lost(tmp_path: Path):
    """Its pages differ from the file, which must neither be read instead nor brought back."""
    folder = write_store(tmp_path / "a", [examples(3), examples(4)])
    data = open_store(folder)
    labels = np.lib.format.open_memmap(folder / "train.labels.npy", mode="c")
    labels[:] = 2
    offsets = np.lib.format.open_memmap(folder / "train.offsets.npy", mode="c")
    offsets[1] = 2
    changed = data._replace(examples={**data.examples, "labels": labels}, offsets=offsets)
    for _ in range(2):
        np.testing.assert_array_equal(gather(changed, np.array([0])).examples["labels"], [2, 2])
