"""Privacy: mechanisms whose parts are bound together so that they guarantee something, or say that they do not."""

from fedjax_sim.privacy.laplace import GuaranteeWarning, bare_laplace, laplace

__all__ = ["GuaranteeWarning", "bare_laplace", "laplace"]
