"""The tables of settings that an experiment is made of.

Names of data sets, models and algorithms, and options of theirs that are not declared here, are checked where they are
looked up, so that adding one needs no change.
"""

from typing import Annotated, Literal

from pydantic import Field

from fedjax_sim.experiment.section import READ, Count, Dial, Fraction, Natural, NotNegative, Open, Positive, Section


class Data(Open):
    """Which examples, and who holds them. Options left out take the source's or the partition's own defaults."""

    name: str = Field(default="digits", description='data set, or "store" for a federation on disk')
    path: Annotated[str, READ] = Field(
        default="", description="file or folder to read, for data sets that are not bundled"
    )
    label: str | None = Field(default=None, description="name of the label's column, in tables")
    client: str | None = Field(default=None, description="name of the client's column, in tables")
    beta: NotNegative | None = Field(default=None, description="spread of inputs, in synthetic data")
    standardise: str | None = Field(default=None, description="whose mean and deviation: client, pooled or none")
    stride: Count | None = Field(default=None, description="characters from one window of text to the next")
    test_fraction: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="share held out as the global test set, where the data bring none"
    )
    partition: str = Field(
        default="auto", description='how training examples are dealt; "auto" keeps the data\'s own clients if any'
    )
    clients: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = Field(
        default=None, description="clients in the population; 20 unless the data say it"
    )
    alpha: NotNegative | None = Field(
        default=None, description="Dirichlet concentration, smaller is more skew; spread of models, in synthetic data"
    )
    column: str | None = Field(default=None, description="column whose values are the clients")
    owners: Annotated[str | None, READ] = Field(
        default=None, description="file with one client number per training example"
    )
    labels_per_client: Count | None = Field(default=None, description="labels that a client has")
    shards_per_client: Count | None = Field(default=None, description="shards of sorted labels that a client gets")
    sigma: NotNegative | None = Field(default=None, description="spread of log-normal sizes")
    exponent: NotNegative | None = Field(default=None, description="exponent of Zipf's sizes")
    min_examples: Natural | None = Field(default=None, description="examples that every client gets at least")
    local_test_fraction: float = Field(
        default=0.0, ge=0, lt=1, description="share of its examples that each client keeps for testing"
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="seed of split, partition and all heterogeneity")


class Heterogeneity(Section):
    """What differs between clients beyond the partition: each dial from 0, nothing, to 1."""

    imbalance: float = Field(default=1.0, gt=0, le=1, description="rarest class over the most frequent; 1 is as it is")
    scanner: Dial = Field(default=0.0, description="all of the next seven: each client has a scanner of its own")
    gain: Dial = Field(default=0.0, description="brightness of images, by client")
    bias_field: Dial = Field(default=0.0, description="smooth shading of images, by client")
    gamma: Dial = Field(default=0.0, description="contrast curve of images, by client")
    blur: Dial = Field(default=0.0, description="Gaussian blur of images, by client")
    resolution: Dial = Field(default=0.0, description="loss of resolution of images, by client")
    noise: Dial = Field(default=0.0, description="Gaussian noise on images, by client")
    rotation: Dial = Field(default=0.0, description="rotation of images, by client")
    noise_levels: Dial = Field(default=0.0, description="NIID-Bench's noise: more for each further client")
    affine: Dial = Field(default=0.0, description="scale and offset of table columns, by client")
    missing: Dial = Field(default=0.0, description="table columns that a client lacks")
    flip: Dial = Field(default=0.0, description="chance that a training label is replaced by another")
    confusion: Dial = Field(default=0.0, description="weight of a confusion matrix of the client's own")
    swap: Dial = Field(default=0.0, description="share of clients that read two classes the wrong way round")
    drift: str = Field(default="none", description="what changes at drift_round: none, concept or prior")
    drift_round: Count | None = Field(default=None, description="first round after the change, counted from 1")
    drift_severity: Dial = Field(default=1.0, description="share of clients that change")


class Model(Open):
    """What is trained."""

    name: str = Field(default="cnn_small", description="model")
    hidden: tuple[Annotated[int, Field(ge=1, le=65_536)], ...] = Field(
        default=(200, 200), strict=False, max_length=64, description="widths of the hidden layers of the MLP"
    )
    start: Annotated[str, READ] = Field(
        default="",
        description="parameters to start from: a folder of arrays, such as a run's best_model, or .safetensors; {seed} "
        "in its name stands for training.seed",
    )
    skip: str | None = Field(default=None, description="pattern in the paths of leaves that start afresh all the same")
    freeze: str | None = Field(
        default=None, description="pattern in the paths of leaves that are never trained or sent"
    )
    train_only: str | None = Field(default=None, description="pattern in the paths of the only leaves that are trained")
    lora_rank: Count | None = Field(default=None, description="train adapters of this rank on matrices, and no others")
    lora_pattern: str | None = Field(default=None, description="pattern in the paths of matrices with adapters; all")
    lora_also: str | None = Field(default=None, description="pattern in the paths of leaves trained beside adapters")


class Algorithm(Open):
    """How it is trained. Options left out take the algorithm's own defaults; those it does not have are refused."""

    name: str = Field(default="fedavg", description="federated algorithm")
    learning_rate: Positive = Field(default=0.1, description="step size of the client optimizer (SGD)")
    momentum: float = Field(
        default=0.0, ge=0, lt=1, description="momentum of the client optimizer, started afresh each round"
    )
    server_learning_rate: Positive | None = Field(default=None, description="step size of the server optimizer")
    server_schedule: Literal["constant", "cosine", "linear"] = Field(
        default="constant", description="how the server's step size goes to 0 over the rounds, if it does"
    )
    server_momentum: Fraction | None = Field(default=None, description="fedavgm: momentum")
    beta1: Fraction | None = Field(default=None, description="fedadam, fedyogi, fedadagrad: first moment")
    beta2: Fraction | None = Field(default=None, description="fedadam, fedyogi: second moment")
    tau: Positive | None = Field(default=None, description="fedadam and its kin: adaptivity; centered_clipping: radius")
    weighting: str | None = Field(default=None, description="weights of the mean over clients: examples or uniform")
    fraction: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="fedavg_topk: share of entries sent; trimmed_mean: share cut from each end"
    )
    mu: NotNegative | None = Field(default=None, description="fedprox: pull towards the global model")
    option: Annotated[int, Field(ge=1, le=2)] | None = Field(default=None, description="scaffold: option of the paper")
    alpha: NotNegative | None = Field(
        default=None, description="feddyn, feddc: regularization; fedcm, apfl: mixing; perfedavg: inner step size"
    )
    eps: NotNegative | None = Field(default=None, description="fedexp: what keeps its server step bounded")
    lam: NotNegative | None = Field(default=None, description="ditto, pfedme: pull towards the global model")
    eta: Positive | None = Field(default=None, description="pfedme: step size of the local model")
    inner_steps: Count | None = Field(default=None, description="pfedme: steps to the personal model on a batch")
    adaptive: bool | None = Field(default=None, description="apfl: learn alpha on each client")
    alpha_rate: NotNegative | None = Field(default=None, description="apfl: step size of an adaptive alpha")
    first_order: bool | None = Field(default=None, description="perfedavg: leave second derivatives out")
    personal: str | None = Field(
        default=None, description="fedper, fedrep, fedbn: pattern in the paths of leaves that stay on clients"
    )
    head_steps: Count | None = Field(default=None, description="fedrep: steps of the personal leaves before the others")
    clusters: Count | None = Field(default=None, description="ifca: models")
    spread: NotNegative | None = Field(default=None, description="ifca: how far apart the models start")
    q: NotNegative | None = Field(default=None, description="qffl: weight of clients with large losses")
    lipschitz: Positive | None = Field(default=None, description="qffl: smoothness; 1 / learning rate if left out")
    gamma: NotNegative | None = Field(default=None, description="afl: step size of the clients' weights")
    attackers: Natural | None = Field(
        default=None, description="krum, multi_krum, bulyan: attackers in a cohort; as many as it allows if left out"
    )
    selected: Count | None = Field(default=None, description="multi_krum: messages averaged")
    iterations: Count | None = Field(default=None, description="rfa, centered_clipping: iterations of the mean")
    nu: Positive | None = Field(default=None, description="rfa: smoothing")
    bound: Positive | None = Field(default=None, description="norm_bounding: L2 norm that an update may have")


class Attack(Open):
    """Clients that mean harm: a fraction of the population, chosen by the seed of the data."""

    name: str = Field(default="none", description="what they do to their data or messages")
    fraction: float = Field(default=0.2, ge=0, le=1, description="share of the clients that do it")
    scale: Positive | None = Field(default=None, description="sign_flip, gaussian: how large what they send is")
    epsilon: Positive | None = Field(default=None, description="ipm: how far against the honest mean")
    z: NotNegative | None = Field(default=None, description="alie: deviations from the mean; computed if left out")
    target: Natural | None = Field(default=None, description="backdoor: label the trigger means")
    share: Dial | None = Field(default=None, description="backdoor: share of their examples with the trigger")


class Training(Section):
    """How much work is done."""

    rounds: int = Field(default=100, ge=1, le=1_000_000_000, description="rounds")
    clients_per_round: Count | None = Field(
        default=None, description="clients in the cohort of a round; 10, or all where there are fewer"
    )
    sampling: str | None = Field(
        default=None,
        description="how cohorts are drawn: uniform, poisson, by_size, round_robin, all; if left out, uniform, or what "
        "needs least noise for privacy.mechanism",
    )
    batch_size: int = Field(default=16, ge=1, le=65_536, description="examples in a local step")
    local_epochs: int = Field(default=2, ge=1, le=10_000, description="passes over a client's examples in a round")
    local_steps: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        default=None, description="local steps of every client, instead of epochs"
    )
    adapt_steps: Literal["none", "adacomm"] = Field(
        default="none", description="adacomm lowers the local steps as the loss falls, so that rounds come more often"
    )
    adapt_every: int = Field(default=10, ge=1, le=100_000, description="rounds between two changes of the local steps")
    evaluate_every: int = Field(default=5, ge=1, le=100_000, description="rounds between evaluations on the test set")
    patience: Count | None = Field(
        default=None, description="stop when so many evaluations in a row brought nothing better than before them"
    )
    min_improvement: float = Field(
        default=0.0, ge=0, lt=1, description="by how much accuracy, balanced accuracy or AUC must be better for that"
    )
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] | Literal["auto"] = Field(
        default="auto",
        description="share of each client's training examples held out to choose the best round by; auto holds 0.1 out "
        "where patience is set, without privacy",
    )
    evaluate_clients: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        default=1000,
        description="clients at most whose models are tested on their own test examples at the end, if they have any",
    )
    seed: int = Field(
        default=0, ge=0, lt=2**32, description="seed of the initial model, cohorts, batch order and noise"
    )


class Privacy(Section):
    """What hides a client, if anything. Options left out take the mechanism's own defaults."""

    mechanism: str = Field(default="none", description="what adds noise, and where; none adds none")
    epsilon: Positive | None = Field(
        default=None, description="budget: training stops before it; the noise is worked out from it if not given"
    )
    delta: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None, description="of the guarantee; a tenth over the number of clients if left out, 0.001 at most"
    )
    noise_multiplier: Positive | None = Field(default=None, description="scale of the noise over clip_norm")
    clip_norm: Positive | None = Field(default=None, description="norm that a message is clipped to, L1 for Laplace")
    per_leaf: bool | None = Field(default=None, description="clip each array of the model to its share of clip_norm")
    adaptive: bool | None = Field(default=None, description="gaussian: let clip_norm follow the median update")
    weight_cap: Positive | None = Field(default=None, description="examples from which on a client counts fully")
    bands: Count | None = Field(default=None, description="matrix: rounds over which noise is correlated")
    dropout: Natural | None = Field(
        default=None, description="discrete_gaussian: clients of a round that may fail to arrive"
    )
    accountant: Literal["auto", "pld", "rdp", "sum"] | None = Field(default=None, description="how epsilons are summed")
    guarantee: Literal["dp", "none"] = Field(
        default="dp", description="none runs what guarantees nothing, and says so on every line"
    )


class Execution(Section):
    """Where and how wide; results do not depend on it beyond the rounding of float32. The history holds the lanes of
    each round, and a run that is resumed keeps them."""

    lanes: Count | Literal["auto"] = Field(
        default="auto", description="clients trained at once on a device; auto tries widths in a long run and remembers"
    )
    memory: Literal["auto", "device", "stream"] = Field(
        default="auto", description="population on the device, or streamed by cohort; auto streams from 1 GB on disk"
    )
    client_memory: Literal["auto", "device", "disk"] = Field(
        default="auto", description="where what clients remember is kept; auto takes the disk from 4 GB on"
    )
    devices: Count | Literal["auto"] = Field(
        default="auto", description="devices; auto means all, on a CPU one per core"
    )


class Output(Section):
    """What is written, and where."""

    folder: str = Field(default="runs", min_length=1, description="folder for run folders")
    name: str = Field(default="", description="name of the run folder; empty means date, time, algorithm and data")
    checkpoint_every: Count | Literal["auto"] = Field(
        default="auto", description="rounds between checkpoints; auto makes one when a minute has passed"
    )
    save_model: bool = Field(default=True, description="write the last and the best model at the end, as arrays")
    per_client: bool | Literal["auto"] = Field(
        default="auto",
        description="also write every client's values in every round; auto does up to 100 clients in a round",
    )
    track: tuple[str, ...] = Field(default=(), strict=False, description="also track to: tensorboard, mlflow, wandb")
