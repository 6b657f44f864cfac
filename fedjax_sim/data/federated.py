"""A federation's examples on the host: flat arrays, and where each client's rows lie in them.

`N` clients in the population. Everything here is NumPy; `FederatedData.population` puts it on the device.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_sim._validate import InputError
from fedjax_sim.core.types import Population

Examples = dict[str, np.ndarray]  # field -> array [total, ...], all of one length
Columns = Mapping[str, np.ndarray]  # name -> array [total] of numbers or strings, which describe and are not trained on
NOTHING: Columns = MappingProxyType({})

_DEVICE_DTYPES = {"float64": np.float32, "int64": np.int32, "uint64": np.uint32}


class Dataset(NamedTuple):
    """A data set before it is dealt out to clients."""

    train: Examples  # {"inputs": [n, ...], "labels": int32[n]}
    test: Examples
    classes: int
    input_shape: tuple[int, ...]  # of one example
    source: str  # where it comes from, in a few words
    columns: Columns = NOTHING  # facts about the training rows, such as "client", "hospital", "role"
    test_columns: Columns = NOTHING  # the same facts about the test rows, or nothing where the test set is global


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
          InputError: more rows than int32 can address, an integer that does not fit in 32 bits, or labels that are no
            classes where these are set.
        """
        total = int(self.offsets[-1])
        if total >= 2**31:
            raise InputError(
                f"examples: {total} rows are more than int32 addresses; give fewer than {2**31}, or stream"
            )
        check_labels("examples", self.examples, self.classes)
        examples = {field: narrowed(field, array) for field, array in self.examples.items()}
        return Population(*place((examples, self.offsets.astype(np.int32))))


def _rows_of(held: Population, index: int) -> Examples:
    if not 0 <= index < len(held.offsets) - 1:
        raise InputError(f"client: {index!r} does not exist; give a number from 0 to {len(held.offsets) - 2}")
    start, stop = held.offsets[index], held.offsets[index + 1]
    return {field: array[start:stop] for field, array in held.examples.items()}


def check_labels(where: str, examples: Examples, classes: int | None) -> None:
    """Labels are whole numbers from 0 to `classes - 1`, where there are labels and classes are set.

    Raises:
      InputError: others; the message begins with `where`.
    """
    labels = examples.get("labels")
    if labels is None or classes is None or labels.size == 0:
        return
    low, high = labels.min(), labels.max()
    if labels.dtype.kind not in "iub" or low < 0 or high >= classes:
        given = f"{labels.dtype} from {low} to {high}"
        raise InputError(f"{where}, field 'labels': {given}; give whole numbers from 0 to {classes - 1}")


def narrowed(field: str, array: np.ndarray) -> np.ndarray:
    """`array` in a dtype that devices hold: 64-bit numbers become 32-bit ones, in the machine's byte order.

    Raises:
      InputError: an integer that does not fit in 32 bits.
    """
    dtype = _DEVICE_DTYPES.get(array.dtype.name)
    if dtype is None:
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype.kind in "iu" and array.size:
        low, high = int(array.min()), int(array.max())
        allowed = np.iinfo(dtype)
        if low < allowed.min or high > allowed.max:
            raise InputError(
                f"field {field!r}: values from {low} to {high} exceed {np.dtype(dtype).name}; give smaller numbers"
            )
    return array.astype(dtype)


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
            raise InputError(f"{at}: dtype {array.dtype} is not trained on; give booleans, integers or floats")
        if array.ndim == 0:
            raise InputError(f"{at}: a single number; give an array with one row per example")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            index = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
            raise InputError(f"{at}: {array[index]} at {list(index)}; remove or fill in such values first")
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
) -> FederatedData:
    """A federation from each client's own arrays, which are copied.

    Args:
      clients: one dict per client, field -> array [examples, ...]; a client may have no examples.
      test: the global test set, with the same fields.
      names: one name per client, by default client_0, client_1, ...
      classes: number of classes, where "labels" are classes.
      source: where the data come from, in a few words.

    Raises:
      InputError: no clients or no examples at all; fields, dtypes or shapes that differ between clients or from the
      test set; fields of different lengths; NaN, infinities, or objects.
    """
    if len(clients) == 0:
        raise InputError("clients: the list is empty; give at least one client")
    arrays = [checked(f"client {i}", client) for i, client in enumerate(clients)]
    for i, client in enumerate(arrays):
        same_fields(f"client {i}", client, "client 0", arrays[0])
    held = None if test is None else checked("test", test)
    if held is not None:
        same_fields("test", held, "client 0", arrays[0])
    sizes = [len(next(iter(client.values()))) for client in arrays]
    if sum(sizes) == 0:
        raise InputError(f"clients: none of the {len(arrays)} has an example; give at least one example")
    examples = {field: np.concatenate([client[field] for client in arrays]) for field in arrays[0]}
    for where, part in (("clients", examples), ("test", held or {})):
        check_labels(where, part, classes)
    listed = client_names(len(arrays), names)
    return FederatedData(examples, offsets_of(sizes), held, listed, classes=classes, source=source)


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
