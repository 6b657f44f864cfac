"""Privacy: mechanisms whose parts are bound together so that they guarantee something, or say that they do not."""

from fedjax_sim.privacy.central import Adaptive, central
from fedjax_sim.privacy.examples import PrivateLoss, privatize_examples
from fedjax_sim.privacy.laplace import GuaranteeWarning, bare_laplace, laplace
from fedjax_sim.privacy.local import local
from fedjax_sim.privacy.plan import MECHANISMS, Ledger, Private, privatize
from fedjax_sim.privacy.secure import secure

__all__ = [
    "MECHANISMS",
    "Adaptive",
    "GuaranteeWarning",
    "Ledger",
    "Private",
    "PrivateLoss",
    "bare_laplace",
    "central",
    "laplace",
    "local",
    "privatize",
    "privatize_examples",
    "secure",
]
