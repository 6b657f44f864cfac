"""The causes that are looked for, one file each. A cause of one's own is another `Cause`, given to `diagnose`."""

from fedjax_sim.diagnose.cause import Cause
from fedjax_sim.diagnose.causes import (
    agreement,
    balance,
    capacity,
    compression,
    drift,
    duration,
    features,
    labels,
    network,
    participation,
    privacy,
    rates,
    rule,
    senders,
    sizes,
    steps,
)

CAUSES: tuple[Cause, ...] = (
    labels.CAUSE,
    balance.CAUSE,
    features.CAUSE,
    agreement.CAUSE,
    sizes.CAUSE,
    participation.CAUSE,
    network.CAUSE,
    compression.CAUSE,
    privacy.NOISE,
    privacy.CLIPPING,
    steps.CAUSE,
    rates.CAUSE,
    capacity.CAUSE,
    duration.CAUSE,
    senders.CAUSE,
    rule.CAUSE,
    drift.CAUSE,
)
