"""Privacy: mechanisms whose parts are bound together so that they guarantee something, or say that they do not."""

from fedjax_sim.privacy.audit import Audit, Canaries, audit, plant
from fedjax_sim.privacy.central import Adaptive, central
from fedjax_sim.privacy.examples import PrivateLoss, privatize_examples
from fedjax_sim.privacy.laplace import GuaranteeWarning, bare_laplace, laplace
from fedjax_sim.privacy.local import local
from fedjax_sim.privacy.plan import MECHANISMS, Ledger, Private, privatize
from fedjax_sim.privacy.secure import secure

__all__ = [
    "MECHANISMS",
    "Adaptive",
    "Audit",
    "Canaries",
    "GuaranteeWarning",
    "Ledger",
    "Private",
    "PrivateLoss",
    "audit",
    "bare_laplace",
    "central",
    "laplace",
    "local",
    "plant",
    "privatize",
    "privatize_examples",
    "secure",
]
