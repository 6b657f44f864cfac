"""A world: the federation as it is, with some things about it changed."""

import json
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, NamedTuple

from fedjax_sim.data import SOURCES, Dataset, FederatedData
from fedjax_sim.experiment.build import Changes, Experiment, build
from fedjax_sim.experiment.config import Config, parse_config
from fedjax_sim.experiment.federation import Source
from fedjax_sim.experiment.trials import SEED


class Change(NamedTuple):
    """Something done to the clients' data. Two changes of one name do the same."""

    name: str
    make: Callable[[FederatedData], FederatedData]
    order: int = 0  # those of a lower number come first
    last: bool = False  # after the dials of [heterogeneity] and attacks, instead of before


class World(NamedTuple):
    """A configuration, and what is changed beside it. Training seeds are not part of it."""

    config: Config
    changes: tuple[Change, ...] = ()

    def set(self, settings: Mapping[str, Any]) -> "World":
        """With these settings, by path; None leaves one out.

        Raises:
          InputError: one that does not fit.
        """
        tree = self.config.model_dump(exclude_none=True)
        for path, value in settings.items():
            section, _, key = path.partition(".")
            tree[section].pop(key, None)
            if value is not None:
                tree[section][key] = value
        return self._replace(config=parse_config(tree))

    def change(self, *changes: Change) -> "World":
        """With these changes too; one that is there already stays as it is."""
        known = {change.name for change in self.changes}
        more = [change for change in changes if change.name not in known]
        return self._replace(changes=tuple(sorted([*self.changes, *more], key=lambda c: (c.last, c.order, c.name))))

    def key(self) -> str:
        """Equal for worlds in which the same happens."""
        tree = self.config.model_dump(exclude_none=True, exclude={"output", "execution"})
        tree["training"].pop(SEED.partition(".")[2])
        changes = [change.name for change in self.changes]
        return json.dumps({**tree, "changes": changes}, sort_keys=True, default=list)

    def build(self, data: FederatedData | None = None, sources: Mapping[str, Source] = SOURCES) -> Experiment:
        """What trains in this world, on `data` instead of what [data] names and `sources` read if there are any.

        Raises:
          InputError: as `build` does.
        """
        changes = Changes(*(tuple(c.make for c in self.changes if c.last is last) for last in (False, True)))
        return build(self.config, changes, data, sources)


def remembering(load: Source, most_bytes: float) -> Source:
    """`load`, which reads a data set only once as long as it is asked for with the same options, and holds it up to a
    size; what it returns is not to be written to."""
    held: dict[str, Dataset] = {}

    @wraps(load)
    def again(**options: Any) -> Dataset:
        key = json.dumps(options, sort_keys=True, default=repr)
        if key not in held:
            held.clear()
            read = load(**options)
            parts = (read.train, read.test, read.columns, read.test_columns)
            arrays = [array for part in parts for array in part.values()]
            if sum(array.nbytes for array in arrays) > most_bytes:
                return read
            for array in arrays:
                array.flags.writeable = False
            held[key] = read
        return held[key]

    return again
