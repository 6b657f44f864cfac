"""Federated learning simulated as array programs: fast, reproducible, and able to say why training stalls.

algorithm = fedavg(loss_fn, client_tx=optax.sgd(0.1))
state = init(algorithm, params, num_clients)
round_fn = jax.jit(make_round(algorithm, batch_size=10))
state, metrics = round_fn(state, select(population, ids), key)
"""

from importlib import import_module

TYPE_CHECKING = False  # `typing` itself takes a while to import
if TYPE_CHECKING:
    from fedjax_sim._public import *  # noqa: F403
    from fedjax_sim._public import __all__ as __all__

__version__ = "0.1.0"

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Subpackages and public names, imported when they are asked for: JAX takes seconds, and the command line must
        be able to answer Ctrl-C before that."""
        if name.startswith("_") and name != "__all__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            return import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
        found = getattr(import_module("fedjax_sim._public"), name, None)
        if found is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = found
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *import_module("fedjax_sim._public").__all__})
