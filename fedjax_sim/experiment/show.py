"""A federation in words: tables of what `describe` measured, and of the clients where they are few."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from fedjax_sim._text import clean
from fedjax_sim.data import FederatedData, Heterogeneity

LISTED = 30  # clients up to which each has a line


def summary(data: FederatedData, about: Heterogeneity) -> list[tuple[str, str, str]]:
    """Rows of name, value and meaning."""
    rows = [
        ("clients", f"{about.clients:,}", f"{about.empty_clients:,} without examples" if about.empty_clients else ""),
        ("examples", f"{about.examples:,}", f"{_count(data.test)} in the global test set"),
        ("examples per client", f"{about.size_min:,} to {about.size_max:,}", f"median {about.size_median:,.0f}"),
        ("Gini of sizes", f"{about.gini:.3f}", "0 all equal, towards 1 one client has nearly everything"),
    ]
    if data.local_test is not None:
        rows.insert(2, ("own test examples", f"{int(data.local_test.offsets[-1]):,}", "kept by the clients"))
    if about.label_entropy_bits is not None:
        most = np.log2(max(data.classes or 2, 2))
        entropies = f"mean over clients; {about.pooled_label_entropy_bits:.2f} pooled, {most:.2f} at most"
        rows.append(("label entropy", f"{about.label_entropy_bits:.2f} bits", entropies))
        iid = f"mean Jensen-Shannon, 0 to 1; {about.js_iid:.3f} if the same sizes were dealt iid"
        rows.append(("label divergence", f"{about.js_divergence:.3f}", iid))
        if about.missing_classes is not None and len(about.missing_classes):
            rows.append(("classes nobody has", ", ".join(map(str, about.missing_classes[:20])), ""))
    if about.feature_shift is not None:
        rows.append(
            ("feature shift", f"{about.feature_shift:.3f}", "share of variance at equal label due to the client")
        )
    return rows


def client_rows(data: FederatedData) -> tuple[list[str], list[list[str]]]:
    """Header and one row per client: name, attributes, sizes, entropy and most frequent label."""
    labelled = data.classes is not None and "labels" in data.examples
    header = ["client", *data.attributes, "examples", *(["own test"] if data.local_test is not None else [])]
    header += ["label entropy", "most frequent label"] if labelled else []
    rows = []
    for i in range(data.num_clients):
        row = [data.name(i), *(str(values[i]) for values in data.attributes.values()), f"{data.sizes[i]:,}"]
        row += [f"{_count(data.client_test(i))}"] if data.local_test is not None else []
        if labelled:
            counts = np.bincount(data.client(i)["labels"], minlength=1)
            shares = counts[counts > 0] / max(counts.sum(), 1)
            entropy = float(-(shares * np.log2(shares)).sum()) + 0.0
            row += [f"{entropy:.2f} bits", f"{counts.argmax()} ({shares.max():.0%})" if len(shares) else "-"]
        rows.append(row)
    return header, rows


def tables(data: FederatedData, about: Heterogeneity) -> list[Any]:
    """What `fedjax-sim data show` prints, as rich tables."""
    from rich.table import Table

    overview = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    overview.add_column(no_wrap=True)
    overview.add_column(justify="right", no_wrap=True)
    overview.add_column(style="dim")
    for row in summary(data, about):
        overview.add_row(*_cells(row))
    if data.num_clients > LISTED:
        return [overview]
    header, rows = client_rows(data)
    listed = Table(box=None, padding=(0, 2, 0, 0))
    for i, name in enumerate(header):
        listed.add_column(*_cells([name]), justify="left" if i <= len(data.attributes) else "right", overflow="fold")
    for row in rows:
        listed.add_row(*_cells(row))
    return [overview, "", listed]


def _cells(texts: Iterable[Any]) -> list[Any]:
    """Cells of a table of rich, in which nothing is markup."""
    from rich.text import Text

    return [Text(clean(text)) for text in texts]


def _count(examples: Any) -> str:
    return "none" if examples is None else f"{len(next(iter(examples.values()))):,}"
