"""The causes that are looked for, one file each. A cause of one's own is another `Cause`, given to `diagnose`."""

from collections.abc import Sequence

from fedjax_sim.diagnose.cause import Cause
from fedjax_sim.diagnose.causes.agreement import LABEL_DISAGREEMENT
from fedjax_sim.diagnose.causes.balance import CLASS_IMBALANCE
from fedjax_sim.diagnose.causes.capacity import MODEL_SIZE
from fedjax_sim.diagnose.causes.compression import COMPRESSION
from fedjax_sim.diagnose.causes.drift import DRIFT_OVER_TIME
from fedjax_sim.diagnose.causes.duration import TOO_FEW_ROUNDS
from fedjax_sim.diagnose.causes.features import FEATURE_SHIFT
from fedjax_sim.diagnose.causes.labels import LABEL_SKEW
from fedjax_sim.diagnose.causes.network import STRAGGLERS
from fedjax_sim.diagnose.causes.participation import RARE_PARTICIPATION
from fedjax_sim.diagnose.causes.privacy import CLIPPING, NOISE
from fedjax_sim.diagnose.causes.rates import LEARNING_RATE
from fedjax_sim.diagnose.causes.rule import AGGREGATION_RULE
from fedjax_sim.diagnose.causes.senders import MALICIOUS_CLIENTS
from fedjax_sim.diagnose.causes.sizes import QUANTITY_SKEW
from fedjax_sim.diagnose.causes.steps import CLIENT_DRIFT
from fedjax_sim.experiment.names import look_up, of_kind

CAUSES: tuple[Cause, ...] = (
    LABEL_SKEW,
    CLASS_IMBALANCE,
    FEATURE_SHIFT,
    LABEL_DISAGREEMENT,
    QUANTITY_SKEW,
    RARE_PARTICIPATION,
    STRAGGLERS,
    COMPRESSION,
    NOISE,
    CLIPPING,
    CLIENT_DRIFT,
    LEARNING_RATE,
    MODEL_SIZE,
    TOO_FEW_ROUNDS,
    MALICIOUS_CLIENTS,
    AGGREGATION_RULE,
    DRIFT_OVER_TIME,
)


def causes_named(names: Sequence[str]) -> list[Cause]:
    """The causes of these names, all of ours if there are none; others by entry points or `package.module:attribute`.

    Raises:
      InputError: a name that no cause has.
    """
    known = {cause.name: cause for cause in CAUSES}
    found = {name: look_up("--cause", name, known, "causes") for name in names or known}
    return [of_kind("--cause", name, cause, Cause) for name, cause in found.items()]
