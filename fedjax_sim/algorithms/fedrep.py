"""FedRep: a shared representation under personal heads, trained in turn."""

import jax
import jax.numpy as jnp
import optax

from fedjax_sim import _validate
from fedjax_sim.core.aggregate import mean
from fedjax_sim.core.algorithm import Algorithm
from fedjax_sim.core.client import Client, Info, LocalData, LossFn, Message
from fedjax_sim.core.types import Array, PyTree, trained
from fedjax_sim.personal import check_pattern, merge, partial_server, sent, split, train_part


def fedrep(
    loss_fn: LossFn,
    *,
    client_tx: optax.GradientTransformation,
    server_tx: optax.GradientTransformation = optax.sgd(1.0),
    weighting: str = "examples",
    personal: str | None = None,
    head_steps: int | None = None,
) -> Algorithm:
    """FedRep (Collins et al. 2021, algorithm 1): clients train their head, then the shared body.

    Client `k` joins the received body `x` with its own head `h_k`, runs `client_tx` on `h_k` alone for `head_steps`
    steps, then, its state started afresh, on the body alone for its local steps to `y_k`; it keeps `h_k` and sends `x -
    y_k`. A frozen part is out of the optimizer's sight, weight decay and momentum included. `personal` is a regular
    expression, searched in paths like "layer0/kernel", that chooses the head; by default the last layer. `head_steps`
    by default equals the local steps, which is our choice (in algorithm 1 the head takes many and the body one). Sends
    and receives the body only, keeps the head of every client of the population, and costs the head's steps on top of
    the local ones.

    A client predicts with the received body and its own head, trained on its own examples with the body frozen; one
    that never took part begins with the initial head. The loss before is that of the head's first step, the loss after
    that of the body's last.

    Raises:
      InputError: `personal` is no regular expression, or `head_steps` is no positive whole number; from `init`,
        `personal` leaves nothing to share, nothing to keep, or no parameter in the head.
    """
    check_pattern(personal)
    if head_steps is not None:
        _validate.whole("head_steps", head_steps)

    def init(params: PyTree) -> PyTree:
        head = split(params, personal)[1]
        if not jax.tree.leaves(trained(head)):
            raise _validate.InputError(
                f"personal: {_validate.shown(personal)} is found in statistics only; include parameters for the head"
            )
        return head

    def with_head(model: PyTree, data: LocalData, key: Array) -> tuple[PyTree, Info]:
        if head_steps is not None:
            steps = jnp.where(data.steps > 0, head_steps, 0).astype(jnp.int32)
            data = data._replace(steps=steps, widths=data.widths[:1])
        return train_part(loss_fn, client_tx, model, personal, data, jax.random.fold_in(key, 0), own=True)

    def run(received: PyTree, head: PyTree, data: LocalData, key: Array) -> tuple[Message, PyTree, Info]:
        model, before = with_head(merge(received, head), data, key)
        model, after = train_part(loss_fn, client_tx, model, personal, data, jax.random.fold_in(key, 1), own=False)
        return sent(received, model, personal, after._replace(loss_before=before.loss_before))

    return Algorithm(
        Client(init=init, like=Message, run=run),
        mean(weighting),
        partial_server(server_tx, personal),
        personal=lambda received, head, data, key: with_head(merge(received, head), data, key)[0],
    )
