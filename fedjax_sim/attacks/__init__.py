"""Clients that mean harm: who they are, what they make of their examples, and what they send."""

from fedjax_sim.attacks.clients import malicious
from fedjax_sim.attacks.examples import DATA_ATTACKS, backdoor, label_flip, triggered
from fedjax_sim.attacks.sent import MESSAGE_ATTACKS, Attack, alie, attacked, gaussian, ipm, nan_sender, sign_flip

__all__ = [
    "DATA_ATTACKS",
    "MESSAGE_ATTACKS",
    "Attack",
    "alie",
    "attacked",
    "backdoor",
    "gaussian",
    "ipm",
    "label_flip",
    "malicious",
    "nan_sender",
    "sign_flip",
    "triggered",
]
