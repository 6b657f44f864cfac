"""Networks between data centres, read from GML (Graph Modelling Language): each site's path to the server.

A parser for what the format's description calls key-value lists; no text but the graph's own is interpreted.
"""

import heapq
import html
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim import _validate
from fedjax_sim._validate import InputError
from fedjax_sim.network.profiles import Profiles, make_profiles

SECONDS_PER_KM, SECONDS_PER_LINK = 0.0085e-3, 4e-3  # as the authors of the Gaia and Zoo networks' distances take them

LARGEST = 1e30  # of a number in a file
_TOKEN = re.compile(r'\s*(?:#[^\n]*(?:\n|$)\s*)*("[^"]*"|\[|\]|[^\s\[\]"#][^\s\[\]"]*|$)')


class Network(NamedTuple):
    """An undirected graph of sites; several links between two sites stay apart."""

    labels: tuple[str, ...]  # [n]
    ends: np.ndarray  # the two sites of each link, int64[m, 2]
    latency_s: np.ndarray  # of each link, [m]
    capacity_bps: np.ndarray  # of each link, [m]


def parse_gml(text: str) -> list[tuple[str, Any]]:
    """The key-value pairs of a GML text in order; a value is an int, a float, a str or again such a list.

    Raises:
      InputError: naming the line where a key has no value or a bracket is not closed.
    """
    stack: list[list[tuple[str, Any]]] = [[]]
    keys: list[str] = []
    key, position = None, 0
    while True:
        match = _TOKEN.match(text, position)
        token = match[1] if match else None
        line = text.count("\n", 0, position) + 1
        if token is None:
            raise InputError(f"GML: line {line} holds a quotation that does not end; close it")
        position = match.end() if match else position
        if token == "":
            break
        if key is None:
            if token == "]" and keys:
                content = stack.pop()
                stack[-1].append((keys.pop(), content))
            elif re.fullmatch(r"[A-Za-z_]\w*", token):
                key = token
            else:
                raise InputError(f"GML: line {line} has {_validate.shown(token)} where a key is due; give `key value`")
        elif token == "[":
            keys.append(key)
            stack.append([])
            key = None
        elif token == "]":
            raise InputError(f"GML: line {line}: {key!r} has no value; give `key value`")
        else:
            stack[-1].append((key, _value(token, line)))
            key = None
    if keys or key is not None:
        raise InputError(f"GML: the text ends inside {(keys or [key])[-1]!r}; close it with ]")
    return stack[0]


def _value(token: str, line: int) -> int | float | str:
    if token.startswith('"'):
        return html.unescape(token[1:-1])
    for kind in (int, float):
        try:
            value = kind(token)
        except ValueError:
            continue
        if -LARGEST < value < LARGEST:
            return value
    raise InputError(f"GML: line {line} has {_validate.shown(token)} for a value; give a number or a quotation")


def read_network(path: str | Path, *, default_capacity_bps: float = 1e9) -> Network:
    """The graph of a GML file whose links have a `distance` in km and may have a `capacity` in bit/s.

    Raises:
      InputError: naming the file and the site or link that is wrong.
    """
    _validate.real("default_capacity_bps", default_capacity_bps, above=0)
    try:
        pairs = parse_gml(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {error}; give a GML file") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    graph = dict(pairs).get("graph")
    if not isinstance(graph, list):
        raise InputError(f"{path}: it holds no graph; give `graph [ node [...] edge [...] ]`")
    nodes = [dict(content) for key, content in graph if key == "node" and isinstance(content, list)]
    links = [dict(content) for key, content in graph if key == "edge" and isinstance(content, list)]
    nodes, links = ([_plain(part) for part in parts] for parts in (nodes, links))
    places = {node.get("id"): i for i, node in enumerate(nodes)}
    if not nodes or None in places or len(places) < len(nodes):
        raise InputError(f"{path}: {len(nodes)} sites with {len(places)} different ids; give each an id of its own")
    ends, distances, capacities = [], [], []
    for i, link in enumerate(links):
        pair = (link.get("source"), link.get("target"))
        distance, capacity = link.get("distance"), link.get("capacity", default_capacity_bps)
        if pair[0] not in places or pair[1] not in places:
            raise InputError(f"{path}: link {i} joins {pair[0]!r} and {pair[1]!r}; give ids of sites")
        if not isinstance(distance, (int, float)) or not 0 <= distance < np.inf:
            raise InputError(f"{path}: link {i} has distance {distance!r}; give km of at least 0")
        if not isinstance(capacity, (int, float)) or not 0 < capacity < np.inf:
            raise InputError(f"{path}: link {i} has capacity {capacity!r}; give bits a second over 0")
        ends.append((places[pair[0]], places[pair[1]]))
        distances.append(float(distance))
        capacities.append(float(capacity))
    return Network(
        tuple(str(node.get("label", node["id"])) for node in nodes),
        np.array(ends, np.int64).reshape(-1, 2),
        np.array(distances) * SECONDS_PER_KM + SECONDS_PER_LINK,
        np.array(capacities),
    )


def _plain(table: dict[str, Any]) -> dict[str, Any]:
    """Without the keys that have a list for a value, such as positions: those that are read here have none."""
    return {key: value for key, value in table.items() if not isinstance(value, list)}


def paths_to(network: Network, server: int) -> tuple[np.ndarray, np.ndarray]:
    """Latency in seconds and bottleneck in bit/s of each site's path of least latency to the server's site, [n] each.

    Of several such paths the one with the widest bottleneck; the server's own site has (0, inf), one that is cut off
    (inf, 0).
    """
    sites = len(network.labels)
    neighbours: list[list[tuple[int, float, float]]] = [[] for _ in range(sites)]
    for (a, b), latency, capacity in zip(
        network.ends.tolist(), network.latency_s.tolist(), network.capacity_bps.tolist(), strict=True
    ):
        neighbours[a].append((b, latency, capacity))
        neighbours[b].append((a, latency, capacity))
    latencies, bottlenecks = np.full(sites, np.inf), np.zeros(sites)
    queue = [(0.0, -np.inf, server)]  # Dijkstra's algorithm on (latency, minus bottleneck)
    done = np.zeros(sites, bool)
    while queue:
        latency, narrow, site = heapq.heappop(queue)
        if done[site]:
            continue
        done[site], latencies[site], bottlenecks[site] = True, latency, -narrow
        for other, more, capacity in neighbours[site]:
            if not done[other]:
                heapq.heappush(queue, (latency + more, max(narrow, -capacity), other))
    return latencies, bottlenecks


def from_gml(
    path: str | Path,
    *,
    server: str | int | None = None,
    default_capacity_bps: float = 1e9,
    seconds_per_step: float = 0.05,
    dropout: float = 0.0,
) -> Profiles:
    """One client at each site of a GML network, in the file's order; the server sits at one of the sites.

    A client's latency is that of its path of least latency, 0.0085 ms a km and 4 ms a link; its bandwidth, both ways,
    is that of the path's narrowest link; links that name no capacity have `default_capacity_bps`. The client at the
    server's own site has latency 0 and an infinite bandwidth.

    Args:
      path: the file.
      server: a site's label or its place in the file; None for the site whose longest latency is least.
      default_capacity_bps: for links without a capacity.
      seconds_per_step: of every client.
      dropout: of every client.

    Raises:
      InputError: what `read_network` refuses, a server that is no site, or sites that no path joins to it.
    """
    network = read_network(path, default_capacity_bps=default_capacity_bps)
    site = _site(network, server, path)
    latencies, bottlenecks = paths_to(network, site)
    cut = np.flatnonzero(np.isinf(latencies))
    if len(cut):
        raise InputError(
            f"{path}: no path joins site {network.labels[cut[0]]!r} and the server {network.labels[site]!r}; add a link"
        )
    return make_profiles(
        bottlenecks, bottlenecks, latency_s=latencies, seconds_per_step=seconds_per_step, dropout=dropout
    )


def _site(network: Network, server: str | int | None, path: str | Path) -> int:
    sites = len(network.labels)
    if server is None:
        return int(np.argmin([paths_to(network, i)[0].max() for i in range(sites)]))
    if isinstance(server, str):
        if network.labels.count(server) != 1:
            raise InputError(
                f"server: {network.labels.count(server)} sites of {path} are called {server!r}; "
                f"give a label such as {network.labels[0]!r}, or a place from 0 to {sites - 1}"
            )
        return network.labels.index(server)
    if _validate.whole("server", server, least=0) >= sites:
        raise InputError(f"server: {server} is no site; give a place from 0 to {sites - 1}")
    return int(server)
