"""What personalising algorithms share: models of which a part stays with each client, chosen by the names of leaves.

A part is a tree like the model with None where the leaves of the other part are, which JAX takes for nothing at all.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_sim import _validate
from fedjax_sim.core.client import Client, Info, LocalData, LossFn, Message, StepsOnly, distance, train
from fedjax_sim.core.server import Server, take
from fedjax_sim.core.types import Array, PyTree, Variables, trained, with_trained


def check_pattern(pattern: Any) -> None:
    """`pattern` is a regular expression, or None.

    Raises:
      InputError: it is not.
    """
    if pattern is None:
        return
    if not isinstance(pattern, str):
        raise _validate.InputError(f"personal: {_validate.shown(pattern)} is no text; give a regular expression")
    try:
        re.compile(pattern)
    except re.error as error:
        shown = _validate.shown(pattern)
        raise _validate.InputError(f"personal: {shown} is no regular expression: {error}; mend it") from None


def split(model: PyTree, pattern: str | None) -> tuple[PyTree, PyTree]:
    """The shared and the personal part of `model`.

    Personal are the leaves in whose path `pattern` is found. A path reads "layer0/kernel", in `Variables`
    "params/layer0/kernel" or "statistics/layer0/mean". With None the last layer is personal: of the topmost keys where
    paths part, the last in natural order (layer10 after layer9), with its statistics.

    Raises:
      InputError: `pattern` is no regular expression, or it leaves no parameter to share or nothing to keep.
    """
    check_pattern(pattern)
    leaves, structure = jax.tree_util.tree_flatten_with_path(model)
    paths = [[jax.tree_util.keystr((key,), simple=True) for key in path] for path, _ in leaves]
    names = ["/".join(path) for path in paths]
    parameters = [not isinstance(model, Variables) or path[0] == "params" for path in paths]
    if pattern is None:
        chosen = _last_layer([path[isinstance(model, Variables) :] for path in paths], parameters)
    else:
        chosen = [re.search(pattern, name) is not None for name in names]
    shared_parameters = [known for known, own in zip(parameters, chosen, strict=True) if not own]
    if not any(chosen) or not any(shared_parameters):
        wrong = "nothing stays with the client" if not any(chosen) else "no parameter is left to share"
        listed = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
        raise _validate.InputError(
            f"personal: with {_validate.shown(pattern)} {wrong}; give a regular expression that is found in some, not "
            f"all, of the model's paths: {listed}"
        )

    def part(own: bool) -> PyTree:
        kept = [leaf if mine == own else None for (_, leaf), mine in zip(leaves, chosen, strict=True)]
        return jax.tree.unflatten(structure, kept)

    return part(False), part(True)


def _last_layer(paths: list[list[str]], parameters: list[bool]) -> list[bool]:
    """Which paths lead to the last layer; keys that all paths have in common, as a lone outer one, are passed over."""

    def natural(key: str) -> list[tuple[str, int]]:
        return [(text, int(digits or -1)) for text, digits in re.findall(r"(\D*)(\d*)", key)]

    depth, layered = 0, [path for path, known in zip(paths, parameters, strict=True) if known]
    while all(len(path) > depth for path in layered) and len({path[depth] for path in layered}) == 1:
        depth += 1
    last = max((path[depth:][:1] for path in layered), key=lambda keys: [natural(key) for key in keys])
    return [path[depth:][:1] == last for path in paths]


def merge(shared: PyTree, personal: PyTree) -> PyTree:
    """The model of its two parts."""
    return jax.tree.map(lambda a, b: b if a is None else a, shared, personal, is_leaf=lambda x: x is None)


def train_part(
    loss_fn: LossFn,
    client_tx: optax.GradientTransformation,
    model: PyTree,
    pattern: str | None,
    data: LocalData,
    key: Array,
    *,
    own: bool,
) -> tuple[PyTree, Info]:
    """`model` with its personal parameters trained, or its shared ones, and the others frozen; and the losses.

    The optimizer sees nothing but the part it trains, hence neither weight decay nor momentum moves the rest.
    Statistics are renewed by every forward pass, in both parts.
    """
    shared, personal = (trained(part) for part in split(model, pattern))
    moving, frozen = (personal, shared) if own else (shared, personal)

    def whole(part: PyTree) -> PyTree:
        return with_trained(part, merge(trained(part), frozen))

    result = train(lambda part, batch, key: loss_fn(whole(part), batch, key), client_tx, with_trained(model, moving),
                   data, key)  # fmt: skip
    return whole(result.model), result.info


def partial_client(loss_fn: LossFn, client_tx: optax.GradientTransformation, pattern: str | None) -> Client:
    """Trains the received part together with its own; sends received minus trained, and keeps its own."""

    def run(received: PyTree, own: PyTree, data: LocalData, key: Array) -> tuple[Message, PyTree, Info]:
        result = train(loss_fn, client_tx, merge(received, own), data, key)
        return sent(received, result.model, pattern, result.info)

    return Client(init=lambda params: split(params, pattern)[1], like=Message, run=StepsOnly(loss_fn, run))


def sent(received: PyTree, model: PyTree, pattern: str | None, info: Info) -> tuple[Message, PyTree, Info]:
    """What a client sends of a trained model, what it keeps, and the drift of the part that it had received."""
    shared, own = split(model, pattern)
    info = info._replace(drift=distance(received, shared))
    return Message(jax.tree.map(jnp.subtract, received, shared)), own, info


def partial_server(server_tx: optax.GradientTransformation, pattern: str | None) -> Server:
    """Broadcasts and updates the shared part; in its own model the personal part stays as it was at the start."""

    def update(params: PyTree, memory: PyTree, aggregate: Message) -> tuple[PyTree, PyTree]:
        shared, own = split(params, pattern)
        shared, memory = take(server_tx, shared, memory, aggregate.update)
        return merge(shared, own), memory

    return Server(
        init=lambda params, num_clients: server_tx.init(trained(split(params, pattern)[0])),
        broadcast=lambda params, memory: split(params, pattern)[0],
        update=update,
    )
