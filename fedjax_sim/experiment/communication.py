"""The settings of links: what is sent in how many bits, how long that takes, and whom the server waits for."""

from typing import Annotated, Literal

from pydantic import Field

from fedjax_sim._validate import InputError
from fedjax_sim.experiment.section import READ, Count, Dial, Fraction, Natural, NotNegative, Positive, Section


class Compression(Section):
    """Messages in fewer bits. Options left out take the compressor's own defaults."""

    uplink: str = Field(default="none", description="what compresses the clients' updates")
    downlink: str = Field(default="none", description="what compresses the news that the server broadcasts")
    feedback: Literal["none", "classic", "ef21"] = Field(
        default="none", description="error feedback on clients; random_k and drive then go without scaling"
    )
    lazy: Fraction | None = Field(
        default=None, description="a client whose message changed by less, as a share of its squared norm, sends none"
    )
    fraction: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="top_k, random_k: share of the entries sent; 0.05 if left out"
    )
    levels: Count | None = Field(default=None, description="qsgd: levels on each side of 0")
    rank: Count | None = Field(default=None, description="power_sgd: rank of what is sent of a matrix")
    dtype: str | None = Field(default=None, description="half: float16 or bfloat16")

    def fits_together(self) -> None:
        """Nothing is set that would be ignored."""
        options = ("fraction", "levels", "rank", "dtype")
        if self.uplink == "none" and self.feedback != "none":
            raise InputError(
                f"compression.feedback: {self.feedback!r} around nothing; set compression.uplink, or leave it out"
            )
        given = [name for name in options if getattr(self, name) is not None]
        if self.uplink == self.downlink == "none" and given:
            raise InputError(
                f"compression.{given[0]}: {getattr(self, given[0])} has no effect without a compressor; leave it out, "
                "or set compression.uplink"
            )


# settings of [network] that belong to one choice of another setting alone
_OF_POLICY = {
    "deadline": ("deadline_seconds", "partial", "wait_out"),
    "over_select": ("extra",),
    "asynchronous": ("concurrency", "buffer", "mixing"),
}
_OF_AVAILABILITY = {
    "periodic": ("availability_share", "availability_seconds"),
    "diurnal": ("availability_share", "availability_seconds"),
    "trace": ("availability_path", "availability_seconds"),
}
_OF_DISCOUNT = {"polynomial": ("exponent",), "hinge": ("slope", "delay")}


class Network(Section):
    """Links and devices on a simulated clock. Options left out take the profiles' own defaults."""

    profiles: str = Field(
        default="none",
        description="constant, lognormal, csv, devices, capacity (FedScale's, of inference) or gml; none: no clock",
    )
    path: Annotated[str, READ] = Field(
        default="", description="file or folder to read, for csv, devices, capacity and gml"
    )
    downlink_bps: Positive | None = Field(
        default=None, description="bits a second to a client; the median if lognormal"
    )
    uplink_bps: Positive | None = Field(
        default=None, description="bits a second from a client; the median if lognormal"
    )
    seconds_per_step: Positive | None = Field(
        default=None, description="of a local step; the median if lognormal or devices"
    )
    sigma_downlink: NotNegative | None = Field(default=None, description="lognormal: deviation of its logarithm")
    sigma_uplink: NotNegative | None = Field(default=None, description="lognormal: deviation of its logarithm")
    sigma_seconds_per_step: NotNegative | None = Field(
        default=None, description="lognormal: deviation of its logarithm"
    )
    latency_s: NotNegative | None = Field(default=None, description="seconds that a transfer takes beside its bits")
    dropout: Fraction | None = Field(default=None, description="chance that a client fails in a round, while it trains")
    completeness: Dial | None = Field(default=None, description="share of the local steps that clients manage")
    slow_clients: tuple[Natural, ...] = Field(
        default=(), strict=False, max_length=100_000, description="clients that are slower than their profile says"
    )
    slowdown: Positive = Field(default=10.0, description="how many times slower slow_clients compute and transfer")
    bandwidth_path: Annotated[str, READ] = Field(
        default="", description="folder of recorded bandwidths, instead of the profiles'"
    )
    server_bps: Positive | None = Field(
        default=None, description="the server's own link, shared fairly; none: no limit"
    )
    pipelined: bool = Field(default=False, description="clients transfer while they train")
    availability: Literal["always", "periodic", "diurnal", "trace"] = Field(
        default="always", description="when clients can be reached"
    )
    availability_share: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="share of the time, or chance, that a client can be reached; 0.5 if left out"
    )
    availability_seconds: Positive | None = Field(default=None, description="period; a day if left out")
    availability_path: Annotated[str, READ] = Field(
        default="", description="table of client, active, inactive in seconds"
    )
    policy: Literal["wait", "deadline", "over_select", "asynchronous"] = Field(
        default="wait", description="whom the server waits for: all, until a deadline, the first, or nobody"
    )
    deadline_seconds: Positive | None = Field(default=None, description="how long a round lasts at most")
    partial: bool | None = Field(default=None, description="deadline: who would be late does fewer local steps instead")
    wait_out: bool | None = Field(
        default=None, description="deadline: rounds last until it even where all have arrived before"
    )
    extra: Natural | None = Field(
        default=None, description="over_select: clients asked beyond clients_per_round; three tenths if left out"
    )
    late: Literal["drop", "stale"] = Field(
        default="drop", description="late messages: dropped, or taken in a later round"
    )
    concurrency: Count | None = Field(
        default=None, description="asynchronous: clients at work at once; clients_per_round if left out"
    )
    buffer: Count | None = Field(
        default=None,
        description="asynchronous: messages that a round waits for; 1 is FedAsync; half of concurrency if left out",
    )
    discount: Literal["none", "polynomial", "hinge"] | None = Field(
        default=None, description="how stale messages are scaled; polynomial if left out"
    )
    exponent: NotNegative | None = Field(default=None, description="polynomial: (1 + staleness)^-exponent")
    slope: Positive | None = Field(default=None, description="hinge: how fast messages lose weight after delay")
    delay: NotNegative | None = Field(default=None, description="hinge: staleness up to which they count fully")
    mixing: bool | None = Field(
        default=None, description="asynchronous: mix models as FedAsync does, instead of adding updates"
    )

    def fits_together(self) -> None:
        """Nothing is missing, and nothing is set that would be ignored."""
        if self.profiles == "none":
            for name, field in type(self).model_fields.items():
                if name != "profiles" and getattr(self, name) != field.default:
                    raise InputError(
                        f"network.{name}: {getattr(self, name)!r} has no effect with profiles 'none'; set "
                        'network.profiles, to "lognormal" say'
                    )
            return
        if self.policy == "deadline" and self.deadline_seconds is None:
            raise InputError("network.deadline_seconds: missing, and policy 'deadline' needs it; set it, to 60 say")
        if self.availability == "trace" and not self.availability_path:
            raise InputError("network.availability_path: missing, and availability 'trace' needs it; give the table")
        stale = self.late == "stale" or self.policy == "asynchronous"
        if self.discount is not None and not stale:
            raise InputError(f"network.discount: {self.discount!r}, but no message is ever stale; leave it out")
        if self.late == "stale" and self.policy not in ("deadline", "over_select"):
            raise InputError(f"network.late: policy {self.policy!r} leaves nobody late; leave it out")
        chosen = self.discount or ("polynomial" if stale else "none")
        for table, setting, choice in (
            (_OF_POLICY, "policy", self.policy),
            (_OF_AVAILABILITY, "availability", self.availability),
            (_OF_DISCOUNT, "discount", chosen),
        ):
            for name in {name for names in table.values() for name in names} - {*table.get(choice, ())}:
                if getattr(self, name) not in (None, ""):
                    raise InputError(
                        f"network.{name}: {getattr(self, name)!r} has no effect with {setting} {choice!r}; leave it "
                        f"out, or set network.{setting}"
                    )
        if self.policy == "asynchronous" and (self.pipelined or self.server_bps or self.bandwidth_path):
            name = "pipelined" if self.pipelined else "server_bps" if self.server_bps else "bandwidth_path"
            raise InputError(f"network.{name}: not known to asynchronous schedules; leave it out")
