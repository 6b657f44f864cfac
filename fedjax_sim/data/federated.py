"""A federation's examples on the host: flat arrays, and where each client's rows lie in them.

`N` clients in the population. Everything here is NumPy; `FederatedData.population` puts it on the device.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_sim._validate import InputError, finite, shown, whole
from fedjax_sim.core.types import Population
from fedjax_sim.data.convert import as_bytes, check_classes, class_labels, in_float32, narrowed, pixels, tell_of_pixels

Examples = dict[str, np.ndarray]  # field -> array [total, ...], all of one length
Columns = Mapping[str, np.ndarray]  # name -> array [total] of numbers or strings, which describe and are not trained on
NOTHING: Columns = MappingProxyType({})


class Dataset(NamedTuple):
    """A data set before it is dealt out to clients."""

    train: Examples  # {"inputs": [n, ...], "labels": int32[n]}
    test: Examples
    classes: int
    input_shape: tuple[int, ...]  # of one example
    source: str  # where it comes from, in a few words
    columns: Columns = NOTHING  # facts about the training rows, such as "client", "hospital", "role"
    test_columns: Columns = NOTHING  # the same facts about the test rows, or nothing where the test set is global
    vocabulary: int | None = None  # number of codes, where inputs are codes of characters or words
    pooled: tuple[str, ...] = ()  # what was worked out from all clients' examples together and is in every example


class FederatedData(NamedTuple):
    """The examples of `N` clients and a global test set. Client `i` owns rows `offsets[i]` up to `offsets[i + 1]`."""

    examples: Examples  # arrays [total, ...], in their stored dtype; in memory, or mapped from files
    offsets: np.ndarray  # int64[N + 1]
    test: Examples | None  # arrays [test, ...], which no client holds
    names: np.ndarray | None = None  # N strings, for tables and figures; by default client_0, client_1, ...
    local_test: Population | None = None  # examples each client keeps for testing, host arrays, laid out alike
    attributes: Columns = NOTHING  # facts about the clients, such as "hospital" or "scanner": arrays [N]
    classes: int | None = None  # number of classes, where labels are classes
    source: str = ""  # where it comes from, in a few words
    vocabulary: int | None = None  # number of codes, where inputs are codes of characters or words
    pooled: tuple[str, ...] = ()  # what was worked out from all clients' examples together and is in every example
    validation: Examples | None = None  # arrays [validation, ...] that clients hold out of training, to choose by

    @property
    def num_clients(self) -> int:
        """`N`."""
        return len(self.offsets) - 1

    @property
    def sizes(self) -> np.ndarray:
        """Number of training examples of each client, int64[N]."""
        return np.diff(self.offsets)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example's "inputs"."""
        return self.examples["inputs"].shape[1:]

    def name(self, index: int) -> str:
        """One client's name."""
        return f"client_{index}" if self.names is None else str(self.names[index])

    def client(self, index: int) -> Examples:
        """One client's training examples, as views of the flat arrays.

        Raises:
          InputError: there is no such client.
        """
        return _rows_of(Population(self.examples, self.offsets), index)

    def client_test(self, index: int) -> Examples:
        """The examples that one client keeps for testing, as views; without any where there are no such examples.

        Raises:
          InputError: there is no such client.
        """
        if self.local_test is None:
            return {field: array[:0] for field, array in self.client(index).items()}
        return _rows_of(self.local_test, index)

    def population(self, place: Callable[[Any], Any] = jax.device_put) -> Population:
        """The federation as device arrays; 64-bit numbers become 32-bit ones, the rest keeps its dtype.

        Args:
          place: puts a pytree of host arrays where the round wants it.

        Raises:
          InputError: more rows than int32 can address, a number that does not fit in 32 bits or is not finite, labels
            that are no classes, or inputs that are no codes where these are set.
        """
        total = int(self.offsets[-1])
        if total >= 2**31:
            raise InputError(
                f"examples: {total} rows are more than int32 addresses; give fewer than {2**31}, or stream"
            )
        check_values("examples", self.examples, self.classes, self.vocabulary)
        finite("examples", self.examples)
        examples = {field: narrowed(field, array) for field, array in self.examples.items()}
        return Population(*place((examples, self.offsets.astype(np.int32))))


def _rows_of(held: Population, index: int) -> Examples:
    if not 0 <= index < len(held.offsets) - 1:
        raise InputError(f"client: {index!r} does not exist; give a number from 0 to {len(held.offsets) - 2}")
    start, stop = held.offsets[index], held.offsets[index + 1]
    return {field: array[start:stop] for field, array in held.examples.items()}


def check_values(where: str, examples: Examples, classes: int | None, vocabulary: int | None) -> None:
    """Where they are set, labels are one whole number a row below `classes`, and inputs are such below `vocabulary`.

    Raises:
      InputError: others; the message begins with `where`.
    """
    labels, inputs = examples.get("labels"), examples.get("inputs")
    if labels is not None and classes is not None:
        at = f"{where}, field 'labels'"
        if labels.dtype.kind not in "iu":
            raise InputError(f"{at}: {labels.dtype}; give whole numbers from 0 to {classes - 1}")
        check_classes(at, labels, classes)
    if inputs is not None and vocabulary is not None and inputs.size:
        codes = inputs.dtype.kind in "iu"
        if not codes or inputs.min() < 0 or inputs.max() >= vocabulary:
            given = f"{inputs.dtype} from {inputs.min()} to {inputs.max()}"
            raise InputError(f"{where}, field 'inputs': {given}; give codes, whole numbers from 0 to {vocabulary - 1}")


def with_classes(where: str, examples: Examples, classes: int | None) -> Examples:
    """`examples` whose labels, where classes are set, are one class a row; booleans and one-hot rows become such."""
    if classes is None or "labels" not in examples:
        return examples
    return {**examples, "labels": class_labels(f"{where}, field 'labels'", examples["labels"], classes)}


def with_bytes(train: Examples, test: Examples | None) -> tuple[Examples, Examples | None]:
    """Both with images of whole numbers from 0 to 255 as uint8, which the models scale; a warning tells of it."""
    parts = [part for part in (train, test) if part is not None]
    if any("inputs" not in part for part in parts) or not pixels([part["inputs"] for part in parts]):
        return train, test
    tell_of_pixels("field 'inputs'", train["inputs"].dtype, depth=4)
    done = [{**part, "inputs": as_bytes("field 'inputs'", part["inputs"])} for part in parts]
    return done[0], done[1] if len(done) > 1 else None


def checked(where: str, examples: Any) -> Examples:
    """`examples` as a dict of NumPy arrays of one length, booleans or finite numbers.

    Raises:
      InputError: anything else; the message begins with `where` and names the field.
    """
    if not isinstance(examples, Mapping) or not examples:
        raise InputError(
            f"{where}: {type(examples).__name__} {'is empty' if isinstance(examples, Mapping) else 'is no dict'}; "
            "give a dict of arrays, such as {'inputs': ..., 'labels': ...}"
        )
    arrays = {}
    for field, values in examples.items():
        at = f"{where}, field {field!r}"
        try:
            array = np.asarray(values)
        except ValueError:
            raise InputError(
                f"{at}: rows of different shapes; give an array with one shape for every example"
            ) from None
        if array.dtype.kind not in "buif":
            value = f", {shown(array.reshape(-1)[0])} for instance," if array.size else ""
            raise InputError(f"{at}: dtype {array.dtype}{value} is not trained on; give booleans, integers or floats")
        if array.ndim == 0:
            raise InputError(f"{at}: a single number; give an array with one row per example")
        if array.dtype.kind == "f" and not (in_range := in_float32(array)).all():
            index = tuple(int(i) for i in np.argwhere(~in_range)[0])
            raise InputError(
                f"{at}: {array[index]} at {list(index)} is not finite in float32; remove or fill in such values"
            )
        arrays[field] = array
    lengths = {field: len(array) for field, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise InputError(f"{where}: lengths {lengths} differ; give one row per example in every field")
    return arrays


def same_fields(where: str, examples: Examples, model_name: str, model: Examples) -> None:
    """`examples` has the fields, dtypes and shapes per example of `model`, or an InputError says where it differs."""
    if examples.keys() != model.keys():
        raise InputError(
            f"{where}: fields {sorted(examples)}, but {model_name} has {sorted(model)}; give the same fields"
        )
    for field, array in examples.items():
        expected = model[field]
        if (array.dtype, array.shape[1:]) != (expected.dtype, expected.shape[1:]):
            raise InputError(
                f"{where}, field {field!r}: {array.dtype}{list(array.shape[1:])} per example, but {model_name} has "
                f"{expected.dtype}{list(expected.shape[1:])}; give one dtype and shape everywhere"
            )


def from_clients(
    clients: Sequence[Mapping[str, Any]],
    *,
    test: Mapping[str, Any] | None = None,
    names: Sequence[str] | None = None,
    classes: int | None = None,
    source: str = "",
    vocabulary: int | None = None,
) -> FederatedData:
    """A federation from each client's own arrays, which are copied.

    Where classes are set, labels may be booleans, whole floats, [n, 1] or one-hot rows; they become integers [n].
    Images of whole numbers from 0 to 255 become uint8, which the models divide by 255; a warning tells of it.

    Args:
      clients: one dict per client, field -> array [examples, ...]; a client may have no examples.
      test: the global test set, with the same fields.
      names: one name per client, by default client_0, client_1, ...
      classes: number of classes, where "labels" are classes.
      source: where the data come from, in a few words.
      vocabulary: number of codes, where "inputs" are codes of characters or words, [examples, length].

    Raises:
      InputError: no clients or no examples at all; fields, dtypes or shapes that differ between clients or from the
      test set; fields of different lengths; NaN, infinities, or objects; labels that are no classes.
    """
    if len(clients) == 0:
        raise InputError("clients: the list is empty; give at least one client")
    if classes is not None:
        whole("classes", classes, least=2)
    arrays = [with_classes(f"client {i}", checked(f"client {i}", client), classes) for i, client in enumerate(clients)]
    for i, client in enumerate(arrays):
        same_fields(f"client {i}", client, "client 0", arrays[0])
    held = None if test is None else with_classes("test", checked("test", test), classes)
    if held is not None:
        same_fields("test", held, "client 0", arrays[0])
    sizes = [len(next(iter(client.values()))) for client in arrays]
    if sum(sizes) == 0:
        raise InputError(f"clients: none of the {len(arrays)} has an example; give at least one example")
    examples = {field: np.concatenate([client[field] for client in arrays]) for field in arrays[0]}
    for where, part in (("clients", examples), ("test", held or {})):
        check_values(where, part, None, vocabulary)
    if vocabulary is None:
        examples, held = with_bytes(examples, held)
    listed = client_names(len(arrays), names)
    offsets = offsets_of(sizes)
    return FederatedData(examples, offsets, held, listed, classes=classes, source=source, vocabulary=vocabulary)


def offsets_of(sizes: Sequence[int]) -> np.ndarray:
    """Where each client's rows begin and the last one's end, int64[N + 1]."""
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def client_names(count: int, names: Sequence[str] | None = None) -> np.ndarray | None:
    """`names` as an array of strings, or None for client_0, client_1, ...

    Raises:
      InputError: not one name per client.
    """
    if names is None:
        return None
    if len(names) != count:
        raise InputError(f"names: {len(names)} for {count} clients; give one name per client")
    return np.array([str(name) for name in names])
