"""How far a federation is from iid: quantity skew, label skew and feature shift. `N` clients, `K` classes."""

from typing import Any, NamedTuple

import numpy as np

from fedjax_sim import _memory, _validate
from fedjax_sim._validate import InputError
from fedjax_sim.data.federated import FederatedData

CHUNK = 2**22  # numbers read at a time
FEATURES = 64  # most features of a table that are looked at, evenly spaced
DEALS = 8  # iid deals that `js_iid` is the mean of
CONSTANT = 1e-10  # a descriptor whose variance is less than this share of its mean square is rounding


class Heterogeneity(NamedTuple):
    """What `describe` finds; label indices are None where examples have no class."""

    clients: int  # N
    examples: int  # training examples of all clients
    size_min: int
    size_median: float
    size_max: int
    empty_clients: int
    gini: float  # of the sizes: 0 where all are equal, up to 1 - 1/N where one client has everything
    sampled_clients: np.ndarray | None  # int64[M], whose labels were counted; None where it was everybody's, M = N
    label_counts: np.ndarray | None  # int64[M, K], of the examples that were looked at
    label_entropy_bits: float | None  # mean over clients with examples
    pooled_label_entropy_bits: float | None  # of all counted labels together
    missing_classes: np.ndarray | None  # int64[], classes that none of the counted labels has
    js_divergence: float | None  # mean over clients with examples, 0 to 1
    js_iid: float | None  # what js_divergence would be if the same sizes were dealt iid
    feature_shift: float | None  # share of the variance at equal label due to the client, 0 to 1; None if unknowable


def describe(
    data: FederatedData, *, max_clients: int = 2000, max_examples: int = 200_000, seed: int = 0
) -> Heterogeneity:
    """Indices of heterogeneity of the training examples.

    * gini: of the clients' sizes.
    * js_divergence: the Jensen-Shannon divergence to base 2 (Lin 1991) between a client's labels and those of all
      clients, as a plain mean over clients. Small clients differ from the whole by chance, even iid ones: compare it
      with js_iid, for which the same labels are dealt out at random.
    * feature_shift: how much of the variance of simple descriptors of the inputs the client explains among examples of
      one label: the intraclass correlation (Fisher 1925; Donner 1986), whose variance components are estimated with
      label and client as factors (Henderson 1953, method 3). It is the mean over descriptors, at least 0, and neither
      sizes nor label skew bias it; but the fewer clients share a label, the less certain it is, and where no label has
      two clients it cannot be told. Images are described by their brightness, contrast, asymmetry, sharpness,
      orientation and layout; tables by the features, their distance from the mean, and the size of their principal
      components, which noise and broken relations between features change most.

    A large federation is sampled: `max_clients` clients, and of each of them at most `max_examples` divided by their
    number. Labels are counted on all clients where there are at most `max_examples` examples, otherwise on the sample.

    Args:
      data: in memory or mapped from files. Images are uint8 or floats [n, height, width, channels]; any other uint8 or
        floats count as tables. Integers (tokens, say) have no feature shift.
      max_clients: most clients to sample.
      max_examples: most examples to look at.
      seed: what samples and deals are drawn from.

    Raises:
      InputError: a setting out of range, or labels beyond the classes.
    """
    _validate.whole("max_clients", max_clients)
    _validate.whole("max_examples", max_examples)
    rng = np.random.default_rng(_validate.whole("seed", seed, least=0))
    sizes = data.sizes
    clients, rows = _sample(data.offsets, max_clients, max_examples, rng)
    owner = np.repeat(np.arange(len(clients)), [len(part) for part in rows])
    rows = np.concatenate(rows)
    labels = _labels(data, rows)
    return Heterogeneity(
        clients=data.num_clients,
        examples=int(sizes.sum()),
        size_min=int(sizes.min()),
        size_median=float(np.median(sizes)),
        size_max=int(sizes.max()),
        empty_clients=int((sizes == 0).sum()),
        gini=gini(sizes),
        **_label_indices(data, clients, owner, labels, max_examples, rng),
        feature_shift=_feature_shift(data, rows, owner, labels),
    )


def _sample(
    offsets: np.ndarray, max_clients: int, max_examples: int, rng: np.random.Generator
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Which clients to look at, in ascending order, and which rows of each."""
    total = len(offsets) - 1
    clients = np.arange(total)
    if total > max_clients:
        clients = np.sort(rng.choice(total, max_clients, replace=False))
    firsts, sizes = np.asarray(offsets)[clients], np.diff(offsets)[clients]
    most = max_examples if sizes.sum() <= max_examples else max(1, max_examples // len(clients))
    rows = [
        first + (np.arange(size) if size <= most else np.sort(rng.choice(size, most, replace=False)))
        for first, size in zip(firsts, sizes, strict=True)
    ]
    return clients, rows


# --- sizes and labels ------------------------------------------------------------------------------------------------


def gini(sizes: np.ndarray) -> float:
    """Gini's coefficient of `sizes` [N], at least 0: half the mean difference between two clients, over the mean."""
    ordered = np.sort(np.asarray(sizes, np.float64))
    count, total = len(ordered), ordered.sum()
    if total == 0:
        return 0.0
    return max(0.0, float((2 * np.arange(1, count + 1) - count - 1) @ ordered / (count * total)))


def js_divergence(counts: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence to base 2 (Lin 1991) of each row's distribution from that of the sum of all rows.

    Args:
      counts: [N, K], at least 0.

    Returns:
      f64[N], from 0 to 1; NaN for a row without anything.
    """
    own, pooled = _shares(counts), _shares(counts.sum(0, keepdims=True))
    return np.maximum(0.0, entropy_bits((own + pooled) / 2) - (entropy_bits(own) + entropy_bits(pooled)) / 2)


def entropy_bits(shares: np.ndarray) -> np.ndarray:
    """Shannon's entropy of each distribution [..., K] in bits."""
    return 0.0 - (shares * np.log2(np.where(shares > 0, shares, 1))).sum(-1)  # 0, not -0


def _shares(counts: np.ndarray) -> np.ndarray:
    totals = counts.sum(1, keepdims=True)
    return np.where(totals > 0, counts / np.maximum(totals, 1), np.nan)


def _labels(data: FederatedData, rows: np.ndarray | slice) -> np.ndarray | None:
    """The labels of `rows`, int64, where an example has one label and that is a class."""
    if data.classes is None or "labels" not in data.examples:
        return None
    labels = data.examples["labels"]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        return None
    found = np.asarray(labels[rows]).astype(np.int64)
    if len(found) and (found.min() < 0 or found.max() >= data.classes):
        raise InputError(
            f"labels: from {found.min()} to {found.max()} with {data.classes} classes; give labels 0 to K - 1"
        )
    return found


def _label_indices(
    data: FederatedData,
    clients: np.ndarray,
    owner: np.ndarray,
    labels: np.ndarray | None,
    most: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """The fields of `Heterogeneity` that are about labels."""
    fields = Heterogeneity._fields
    indices = dict.fromkeys(fields[fields.index("sampled_clients") : fields.index("feature_shift")])
    if data.classes is not None and len(clients) < data.num_clients and int(data.offsets[-1]) <= most:
        clients, labels = np.arange(data.num_clients), _labels(data, slice(None))
        owner = np.repeat(clients, data.sizes)
    indices["sampled_clients"] = None if len(clients) == data.num_clients else clients
    if labels is None or data.classes is None:
        return indices
    cells, held = (len(clients), data.classes), np.unique(owner)

    table = f"classes: a table of {cells[0]:,} clients by {cells[1]:,} classes needs"
    _memory.require(table, 32 * cells[0] * cells[1], "give the number of classes that there are")

    def count(labels: np.ndarray) -> np.ndarray:
        return np.bincount(owner * cells[1] + labels, minlength=cells[0] * cells[1]).reshape(cells)

    counts = count(labels)
    pooled = counts.sum(0)
    indices |= {"label_counts": counts, "missing_classes": np.flatnonzero(pooled == 0)}
    if len(held):
        chance = [js_divergence(count(rng.permutation(labels))[held]).mean() for _ in range(DEALS)]
        indices |= {
            "label_entropy_bits": float(entropy_bits(_shares(counts[held])).mean()),
            "pooled_label_entropy_bits": float(entropy_bits(pooled / pooled.sum())),
            "js_divergence": float(js_divergence(counts[held]).mean()),
            "js_iid": float(np.mean(chance)),
        }
    return indices


# --- feature shift ---------------------------------------------------------------------------------------------------


def intraclass_correlation(values: np.ndarray, owner: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
    """The share of the variance at equal label that the client explains, for each column of `values`.

    The model is value = label + client + rest, with clients drawn at random. With R the sum of squares that clients
    explain beyond labels, on f degrees of freedom, and E that of the rest, on e, the variances of the rest and between
    clients are estimated by their expectations (Henderson 1953, method 3): `E / e`, and `(R - f E / e) / c` with `c = n
    - sum over labels and clients of n_lc^2 / n_l`. Without labels that is the one-way analysis of variance (Fisher
    1925; Donner 1986).

    Args:
      values: [n, descriptors].
      owner: int[n], whose row it is.
      labels: int[n], from 0.

    Returns:
      f64[descriptors], at most 1, and under 0 by chance where clients do not differ; NaN where all clients are one, no
      label has two clients, no client has two rows of a label, or the column is constant.
    """
    values = np.asarray(values, np.float64)
    count = len(values)
    if values.size == 0:
        return np.full(values.shape[1], np.nan)
    owner = np.unique(owner, return_inverse=True)[1]
    labels = np.zeros(count, np.int64) if labels is None else np.unique(labels, return_inverse=True)[1]
    table = np.zeros((owner.max() + 1, labels.max() + 1))  # [clients, labels]
    np.add.at(table, (owner, labels), 1)
    values = values - values.mean(0)
    scale = (values**2).mean(0)
    of_client, of_label = table.sum(1), table.sum(0)
    client_sums, label_sums = _sums(values, owner), _sums(values, labels)

    square = (values**2).sum(0)
    explained_by_label = (label_sums**2 / of_label[:, None]).sum(0)
    explained_by_client = (client_sums**2 / of_client[:, None]).sum(0)
    share = table / of_client[:, None]
    gram = np.diag(of_label) - share.T @ table  # of the label indicators, less their means per client
    response = label_sums - share.T @ client_sums
    rank = np.linalg.matrix_rank(gram, hermitian=True, tol=1e-9 * count)
    added = (response * (np.linalg.pinv(gram, rcond=1e-9, hermitian=True) @ response)).sum(0)

    rest = np.maximum(0.0, square - explained_by_client - added)
    between = explained_by_client + added - explained_by_label
    rest_freedom = count - len(of_client) - rank
    freedom = len(of_client) + rank - len(of_label)
    weight = count - (table**2 / of_label).sum()
    if freedom <= 0 or rest_freedom <= 0 or weight <= 0:
        return np.full(values.shape[1], np.nan)
    rest_variance = rest / rest_freedom
    client_variance = (between - freedom * rest_variance) / weight
    total = client_variance + rest_variance
    return np.where(total > CONSTANT * scale, client_variance / np.where(total > 0, total, 1), np.nan)


def _sums(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Sum of the rows of each group, [groups, columns]."""
    return np.stack([np.bincount(group, column) for column in values.T], 1)


def _feature_shift(data: FederatedData, rows: np.ndarray, owner: np.ndarray, labels: np.ndarray | None) -> float | None:
    inputs = data.examples.get("inputs")
    if inputs is None or len(rows) == 0 or not (inputs.dtype == np.uint8 or inputs.dtype.kind == "f"):
        return None
    at_once = max(1, CHUNK // max(1, int(np.prod(inputs.shape[1:]))))
    describe_rows = _image_descriptors if inputs.ndim == 4 else _features
    pieces = [describe_rows(np.asarray(inputs[rows[i : i + at_once]])) for i in range(0, len(rows), at_once)]
    values = np.concatenate(pieces).astype(np.float64)
    mean, deviation = values.mean(0), values.std(0)
    varied = deviation**2 > CONSTANT * (values**2).mean(0)
    values = (values[:, varied] - mean[varied]) / deviation[varied]
    if inputs.ndim != 4:
        values = np.concatenate([values, np.abs(values), np.abs(_principal_components(values))], 1)
    correlations = intraclass_correlation(values, owner, labels)
    known = correlations[np.isfinite(correlations)]
    return max(0.0, float(known.mean())) if len(known) else None


def _features(rows: np.ndarray) -> np.ndarray:
    """At most `FEATURES` numbers of each row, evenly spaced, f64[n, features]."""
    flat = rows.reshape(len(rows), -1)
    width = flat.shape[1]
    return flat[:, np.unique(np.linspace(0, width - 1, min(width, FEATURES)).astype(np.int64))].astype(np.float64)


def _principal_components(values: np.ndarray) -> np.ndarray:
    """Scores of standardised columns [n, features] on their principal components, standardised as well."""
    variances, directions = np.linalg.eigh(values.T @ values / len(values))
    kept = variances > 1e-6
    return values @ directions[:, kept] / np.sqrt(variances[kept])


def _image_descriptors(images: np.ndarray) -> np.ndarray:
    """What a scanner changes, f64[n, descriptors], of images [n, h, w, c]: brightness (mean of each channel), contrast
    (standard deviation), asymmetry (cube root of the third moment), sharpness and noise (mean squares of horizontal,
    vertical and diagonal differences, and the share of the variance that survives at half resolution), orientation
    (mean product of horizontal and vertical differences), and where it is bright (means of 3x3 blocks).
    """
    images = images.astype(np.float32) / np.float32(255 if images.dtype == np.uint8 else 1)
    height, width = images.shape[1:3]
    grey = images.mean(3)
    centred = grey - grey.mean((1, 2), keepdims=True)
    variance = (centred**2).mean((1, 2))
    found = [*images.mean((1, 2)).T, np.sqrt(variance), np.cbrt((centred**3).mean((1, 2)))]
    across, down = np.diff(grey, axis=2), np.diff(grey, axis=1)
    found += [(d**2).mean((1, 2)) for d in (across, down) if d.shape[1] and d.shape[2]]
    if height > 1 and width > 1:
        found.append(((grey[:, 1:, 1:] - grey[:, :-1, :-1]) ** 2).mean((1, 2)))
        x, y = across[:, 1:], down[:, :, 1:]
        energy = np.maximum((x**2 + y**2).mean((1, 2)), 1e-12)
        found += [(x * y).mean((1, 2)) / energy, (x**2 - y**2).mean((1, 2)) / energy]
        place_y, place_x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)
        mass = np.maximum(np.abs(grey).mean((1, 2)), 1e-12)
        found += [(grey * form).mean((1, 2)) / mass for form in (place_x * place_y, place_x**2 - place_y**2)]
        even = grey[:, : height // 2 * 2, : width // 2 * 2]
        half = even.reshape(len(grey), height // 2, 2, width // 2, 2).mean((2, 4))
        found.append(half.var((1, 2)) / np.maximum(variance, 1e-12))
    if height > 2 and width > 2:
        bands = np.array_split(np.arange(height), 3), np.array_split(np.arange(width), 3)
        found += [grey[:, r[0] : r[-1] + 1, c[0] : c[-1] + 1].mean((1, 2)) for r in bands[0] for c in bands[1]]
    return np.stack(found, 1).astype(np.float64)
