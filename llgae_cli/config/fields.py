"""The keys of a config: each with its type, default, limits and the condition under which it has an effect."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, field_validator

from llgae_cli.config.conditions import (
    AFFINE,
    AFFINE_START,
    ASCENDING,
    ASCENT,
    CLOSED_FORM,
    CLOSED_RATE,
    COLLAPSE,
    DECAYING,
    DENSE,
    FOR_RATE,
    FOR_RESIDUAL,
    GRADIENT,
    NETWORK,
    NETWORKS,
    RATE_OF_NETWORK,
    RESTARTS,
    SECOND_ORDER,
    SEVERAL_START,
    STAGED_ASCENT,
    STEPS,
    STEPS_OF_ASCENT,
    TASK_ALIASES,
)
from llgae_cli.config.keys import MAX_INT, NonNegative, Positive, key, when


class Fields(BaseModel):
    """All keys in their order, and how single values are read."""

    task: str = key(
        "fashion-mnist-compress", "data set: a name, a data file or images:FOLDER", source=True, min_length=1
    )
    model: Literal[
        "llgae", "pca", "kmeans", "soft-llgae", "gae", "deep-llgae", "residual", "shift", "autoencoder",
        "denoising-autoencoder",
    ] = key("llgae", "the model")  # fmt: skip
    K: Positive = key(11, "number of components (affine subspaces)", source=True)
    embed_dim: NonNegative = key(20, "E, latent dimensions of each component", source=True)
    prior: Literal["uniform", "gaussian"] = key(
        "uniform", "prior on the latent b: uniform (alpha = 0) or unit Gaussian (alpha = 1)", COLLAPSE | ASCENT
    )
    inference: Literal["loop", "collapse", "least-squares"] = key(
        "collapse",
        "how b is computed: T ascent steps one by one (loop), as one matrix (collapse), or for T = infinity",
        COLLAPSE,
    )
    beta: float = key(
        0.01,
        "step size of the ascent on b; with trainer closed-form it sets the scale of the bases W",
        STEPS
        | when(trainer="closed-form", model=("llgae", "pca", "residual", "shift"))
        | when(start="closed-form", model=AFFINE)
        | STEPS_OF_ASCENT,
        source=True,
        gt=0,
    )
    n_step: int = key(
        5,
        "T, number of steps of the ascent on b; 0 keeps b at a learnt or linear latent-start. After closed-form "
        "training the result is the same for every T from 1",
        STEPS | when(model="soft-llgae", gates="embedding") | ASCENT,
        source=True,
        ge=0,
    )
    trainer: Literal["closed-form", "gradient"] = key("closed-form", "how the offsets mu and the bases W are trained")
    epochs: Positive = key(100, "largest number of passes over the training samples", neutral=True)
    tol: float = key(1e-4, "stop when a pass improves the objective by less than this fraction", CLOSED_FORM, ge=0)
    restarts: Positive | Literal["auto"] = key(
        "auto", "number of initialisations, each tried on a part of the rows; the best is trained", RESTARTS
    )
    moves: NonNegative | Literal["auto"] = key(
        "auto", "largest number of split-merge moves that are tried on each initialisation", RESTARTS
    )
    candidates: Positive | Literal["auto", "off"] = key(
        "auto",
        "shortlist: number of components, the neighbours of its own, under which each sample is scored; off: all",
        FOR_RESIDUAL | SEVERAL_START | AFFINE_START,
    )
    shrinkage: Annotated[float, Field(ge=0)] | Literal["auto"] = key(
        0.0,
        "shrinkage of each component's scatter toward its neighbours', which counts as this many samples",
        when(trainer="closed-form", model=("llgae", "residual", "shift"))
        | when(start="closed-form", model=("llgae", "residual", "shift", "soft-llgae", "gae", "deep-llgae"))
        | AFFINE_START,
    )
    bits: float | None = key(
        None,
        "train for this bit rate, in bits a sample: minimise squared error plus the price of the bits, with at most "
        "embed-dim latents a component; model gae or deep-llgae: with a network, latent-start learnt and ascent later",
        RATE_OF_NETWORK | CLOSED_RATE,
        later=True,
        gt=0,
        le=MAX_INT,
    )
    step: float | None = key(
        None, "the same for a given quantiser step, in the units of the data", CLOSED_RATE, later=True, gt=0
    )
    leave_one_out: bool = key(
        False, "assign each sample by what it would cost in a component fitted without it", FOR_RATE, later=True
    )
    optimizer: Literal["rmsprop", "adam", "adamw", "muon", "sgd"] = key("rmsprop", "the optimiser", GRADIENT)
    lr: float = key(1e-3, "the learning rate", GRADIENT, source=True, gt=0)
    batch_size: Positive = key(280, "samples in a mini-batch", GRADIENT)
    start: Literal["random", "near-zero", "closed-form"] = key(
        "random",
        "initial mu and W: random samples and a random basis (random), both random and small (near-zero, as in the "
        "author's program), or those of an LLGAE that is trained in closed form first",
        when(model="deep-llgae", latent_start="zero")
        | when(model="gae", latent_start="zero", decoder="linear")
        | when(trainer="gradient", model=("llgae", "pca", "kmeans", "soft-llgae", "residual", "shift")),
        later=True,
    )
    schedule: Literal["constant", "one-cycle", "trapezoidal"] = key(
        "constant",
        "learning rate: constant; one-cycle: rises to lr, then falls to 0 along a cosine; trapezoidal: rises to lr, "
        "stays there, then falls to 0 linearly. Both end with the last epoch",
        GRADIENT,
        later=True,
    )
    weight_decay: float = key(
        0.0,
        "weight decay of the networks",
        when(optimizer=DECAYING, model=ASCENDING, decoder=DENSE) | when(optimizer=DECAYING, latent_start="learnt"),
        later=True,
        ge=0,
    )
    average: float = key(
        0.0,
        "EMA decay of the weights; the averaged weights are saved. 0 turns it off",
        GRADIENT,
        later=True,
        ge=0,
        lt=1,
    )
    precision: Literal["float32", "bfloat16"] = key(
        "float32",
        "precision of the networks' products while codes are computed; reported numbers are always float32",
        NETWORK,
        later=True,
    )
    flip: bool = key(False, "mirror each training image left to right with probability 1/2", GRADIENT, later=True)
    decoder: Literal["linear", "mlp", "conv"] = key("conv", "kind of the decoder network", NETWORK, later=True)
    width: Positive = key(
        512,
        "units in a dense layer of a network",
        when(model=NETWORKS, decoder=DENSE) | when(latent_start="learnt"),
        later=True,
    )
    channels: Positive = key(
        32, "channels of a network at its finest resolution", when(model=NETWORKS, decoder="conv"), later=True
    )
    latent_start: Literal["zero", "linear", "learnt"] = key(
        "zero",
        "where the ascent on b starts: at 0, at the code of a closed-form LLGAE (linear), or at the output of an "
        "encoder network (learnt)",
        ASCENT,
        later=True,
    )
    ascent: Literal["through", "given", "later"] = key(
        "through",
        "how gradients treat the ascent: through it (unrolled), with its result detached (given), or no ascent in "
        "training (later)",
        ASCENT,
        later=True,
    )
    ascent_epochs: NonNegative = key(
        0,
        "number of the last epochs in which training takes the ascent; before, none as with later. 0: all epochs",
        STAGED_ASCENT,
        later=True,
    )
    ascent_steps: Positive | None = key(
        None, "number of steps of the ascent in training (default: n-step)", STAGED_ASCENT, later=True
    )
    ascent_method: Literal["gradient", "bfgs"] = key(
        "gradient",
        "how b ascends at encoding: T gradient steps of size beta, or at most T quasi-Newton steps from the curvature "
        "of Gauss-Newton (bfgs), which converge in fewer",
        AFFINE_START,
        later=True,
    )
    ascent_tol: float = key(
        1e-4,
        "bfgs ends for a sample when the next step is expected to change the log-likelihood by less than this fraction",
        SECOND_ORDER,
        later=True,
        ge=0,
    )
    tries: Positive = key(
        1,
        "largest number of components that encoding considers: the best of the closed-form LLGAE, then those whose "
        "squared residual there is less than 1.6 times the least; by bfgs only the best one takes all steps",
        AFFINE_START,
        later=True,
    )
    tau: float = key(
        1e-5, "gates are softmax(-tau |x - mu_k|^2)", when(model="soft-llgae", gates="data"), later=True, gt=0
    )
    gates: Literal["data", "embedding"] = key(
        "data",
        "gates computed from the sample (data), or from a low-dimensional embedding that is part of the code",
        when(model="soft-llgae"),
        later=True,
    )
    gate_dim: Positive = key(2, "dimensions of that embedding", when(model="soft-llgae", gates="embedding"), later=True)
    levels: Positive = key(
        2, "number of levels; a reconstruction adds up one component of each", when(model="residual"), later=True
    )
    sweeps: int = key(
        1,
        "rounds in which the component of each level is chosen again, given those of the other levels",
        when(model="residual"),
        later=True,
        ge=0,
    )
    window: int = key(
        1, "largest shift of an image in each direction, in pixels", when(model="shift"), later=True, ge=0
    )
    noise: float = key(
        50.0,
        "standard deviation of the Gaussian noise that is added to each value in training",
        when(model="denoising-autoencoder"),
        later=True,
        ge=0,
    )
    centring: Literal["auto", "sample", "none"] = key(
        "auto",
        "subtract each sample's own mean (sample), or nothing (none); auto: none for tables, else sample",
    )
    scaling: Literal[
        "auto", "none", "std", "range", "pareto", "vast", "level", "max", "poisson", "robust"
    ] = key(
        "auto",
        "scale of each column, by which it is divided: standard deviation (std), range, interquartile range (robust) "
        "and others; auto: std for tables, else none",
        later=True,
    )  # fmt: skip
    columns: list[str] | str | None = key(
        None, "names of the columns that are variables, a list or separated by commas; -NAME leaves one out", later=True
    )
    labels: str | None = key(None, "labels of own data: a column, a member of its file, or a file", later=True)
    test: float | str | None = key(
        None, "test set of own data: a file, a share of the rows, or a column of 0 and 1; default: a tenth", later=True
    )
    missing: Literal["error", "drop"] = key(
        "error", "missing values of own data: an error, or their rows are dropped", later=True
    )
    shards: Literal["all", "own"] = key(
        "all",
        "files of data in shards that a process of torchrun opens: all, or only its own",
        neutral=True,
        later=True,
    )
    validation: float = key(0.0, "fraction of the training samples held out as the validation split", ge=0, le=0.5)
    rows: Positive | None = key(
        None, "number of training samples to fit to, drawn with the seed (default: all); figures are of all", later=True
    )
    seed: int = key(28, "seed of all random numbers", ge=0, lt=2**63)
    device: Literal["auto", "cpu", "cuda", "mps"] = key("auto", "device of the computation", neutral=True)
    threads: int = key(0, "CPU threads; 0 leaves the choice to torch", neutral=True, ge=0, le=1024)
    data_dir: Path = key(Path("data"), "folder in which data sets are stored", neutral=True, strict=False)
    checkpoint_dir: Path = key(Path("checkpoints"), "folder of the checkpoints", neutral=True, strict=False)
    save_every: NonNegative = key(0, "epochs between checkpoints; 0 writes only the last", neutral=True)
    eval_every: NonNegative = key(
        0,
        "epochs between measurements of test (and validation) mean L2; 0 measures only for checkpoints",
        neutral=True,
        later=True,
    )
    log: Literal["none", "jsonl", "tensorboard"] = key(
        "none",
        "write the figures of each epoch to checkpoint-dir/logs: as JSON lines, or as TensorBoard's event files",
        neutral=True,
        later=True,
    )
    figures: bool = key(True, "draw the training curve and reconstructions next to the checkpoint", neutral=True)

    @field_validator("task")
    @classmethod
    def _resolve_alias(cls, value: str) -> str:
        return TASK_ALIASES.get(value, value)

    @field_validator("rows", mode="before")
    @classmethod
    def _read_whole(cls, value: Any) -> Any:
        return int(value) if isinstance(value, float) and value.is_integer() else value  # 1e6 is a number of rows

    @field_validator("columns")
    @classmethod
    def _split_names(cls, value: list[str] | str | None) -> list[str] | None:
        # One spelling of each choice, so that it has one identity.
        names = value.split(",") if isinstance(value, str) else value or []
        return [name.strip() for name in names if name.strip()] or None

    @field_validator("model", mode="before")
    @classmethod
    def _lower_case(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value  # the source document writes LLGAE
