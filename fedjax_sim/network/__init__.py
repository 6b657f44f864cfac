"""Links and devices: profiles -> timing -> policy -> who arrives, and when; asynchronous schedules. NumPy."""

from fedjax_sim.network.availability import Availability, always, by_round, diurnal, intervals, periodic
from fedjax_sim.network.coupling import Coupling, coupling
from fedjax_sim.network.events import ServerStep, asynchronous
from fedjax_sim.network.gml import from_gml
from fedjax_sim.network.makers import constant, from_csv, from_devices, lognormal, resampled, slowed
from fedjax_sim.network.policy import Outcome, Policy, deadline, over_select, wait_for_all
from fedjax_sim.network.profiles import Profiles, failures, make_profiles, managed_steps
from fedjax_sim.network.recorded import availability_trace, device_capacity
from fedjax_sim.network.rounds import synchronous
from fedjax_sim.network.timing import Times, round_times
from fedjax_sim.network.trace import Trace, make_trace, read_trace, read_traces

__all__ = [
    "Availability",
    "Coupling",
    "Outcome",
    "Policy",
    "Profiles",
    "ServerStep",
    "Times",
    "Trace",
    "always",
    "asynchronous",
    "availability_trace",
    "by_round",
    "constant",
    "coupling",
    "deadline",
    "device_capacity",
    "diurnal",
    "failures",
    "from_csv",
    "from_devices",
    "from_gml",
    "intervals",
    "lognormal",
    "make_profiles",
    "make_trace",
    "managed_steps",
    "over_select",
    "periodic",
    "read_trace",
    "read_traces",
    "resampled",
    "round_times",
    "slowed",
    "synchronous",
    "wait_for_all",
]
