"""Laplace noise on messages: with a guarantee, and as people add it without one."""

import warnings
from typing import Any

from fedjax_sim import _validate
from fedjax_sim.core.message import Transform, chain
from fedjax_sim.messages import add_laplace, clip


class GuaranteeWarning(UserWarning):
    """A privacy setting that guarantees nothing, or little."""


def laplace(*, epsilon: Any, clip_norm: Any) -> Transform:
    """The Laplace mechanism on each message (Dwork et al. 2006): one message is `epsilon`-locally differentially
    private.

    The message is clipped to an L1 norm of `clip_norm`, so that any two differ by at most `2 * clip_norm`, and gets
    Laplace noise of scale `2 * clip_norm / epsilon`. The guarantee is for one message of one client and all that it
    trained on; the epsilons of the rounds it takes part in add up. It holds in real arithmetic: floating-point samples
    leak (Mironov 2012).

    Raises:
      InputError: `epsilon` or `clip_norm` is not over 0.
    """
    _validate.number("epsilon", epsilon, above=0)
    return chain(clip(clip_norm, order=1), add_laplace(2 * clip_norm / epsilon))


def bare_laplace(epsilon: Any) -> Transform:
    """Laplace noise of scale `1 / epsilon` on messages that nothing bounds, as many tutorials add it.

    It guarantees nothing, whatever `epsilon` is, for one client's message may be as large as it likes; it warns so.

    Raises:
      InputError: `epsilon` is not over 0.
    """
    _validate.number("epsilon", epsilon, above=0)
    warnings.warn(
        f"Laplace noise of scale 1/epsilon (epsilon {epsilon}) on messages that are not clipped guarantees no privacy; "
        "take noise that clips, local_laplace say",
        GuaranteeWarning,
        stacklevel=2,
    )
    return add_laplace(1 / epsilon)
