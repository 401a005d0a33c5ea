"""Groups of models and of data sets, and the conditions under which several keys of a config have an effect."""

from llgae_cli.config.keys import GIVEN, UNSET, when

AFFINE = ("llgae", "pca", "residual", "shift", "soft-llgae")  # models whose ascent on b collapses into a matrix
ASCENDING = ("gae", "deep-llgae")  # models whose ascent on b is a loop through a decoder network
ENCODED = ("autoencoder", "denoising-autoencoder")  # models whose b comes from an encoder, without ascent
NETWORKS = (*ASCENDING, *ENCODED)
NEAR_ZERO = ("llgae", "pca", "kmeans", "residual", "shift")  # models that can start near zero
SEVERAL = ("llgae", "kmeans", "residual", "shift")  # models of several components that closed form trains
RATED = ("llgae", "pca", "kmeans")  # models that closed form also trains for a bit rate
SEVERAL_RATED = ("llgae", "kmeans")  # those of several components
DECAYING = ("adamw", "muon")  # optimisers with weight decay
DENSE = ("mlp", "conv")  # decoders with dense layers

# Names of data sets that are accepted in place of the ones that checkpoints' names carry.
TASK_ALIASES = {"fashion-mnist": "fashion-mnist-compress"}

# Data sets for which centring auto is sample, as older configs say. It is for images:FOLDER, too.
PUBLISHED = (
    "fashion-mnist", "fashion-mnist-compress", "mnist", "kmnist", "emnist-letters", "cifar10", "svhn", "subspaces",
)  # fmt: skip

# Conditions that several keys share.
GRADIENT = when(trainer="gradient")
COLLAPSE = when(model=AFFINE)
ASCENT = when(model=ASCENDING)
ASCENT_IN_TRAINING = when(model=ASCENDING, ascent=("through", "given"))
STAGED_ASCENT = when(latent_start=("linear", "learnt"), ascent=("through", "given"))  # from an epoch on
STEPS_OF_ASCENT = (  # the ascent on b takes steps of size beta, in training or at encoding
    when(model=ASCENDING, ascent_method="gradient") | ASCENT_IN_TRAINING | when(model=ASCENDING, latent_start="zero")
)
NETWORK = when(model=NETWORKS)
STEPS = when(trainer="gradient", model=AFFINE, inference=("loop", "collapse"))
AFFINE_START = when(latent_start=("linear", "learnt"))  # the ascent on b starts at the code of a closed-form LLGAE
SECOND_ORDER = when(latent_start=("linear", "learnt"), ascent_method="bfgs")
SEVERAL_START = when(start="closed-form", model=(*SEVERAL, "soft-llgae", "gae", "deep-llgae"))
CLOSED_FORM = when(trainer="closed-form") | when(start="closed-form") | AFFINE_START
FOR_RESIDUAL = when(trainer="closed-form", model=SEVERAL_RATED, bits=UNSET, step=UNSET)
FOR_RATE = when(trainer="closed-form", model=SEVERAL_RATED, bits=GIVEN) | when(
    trainer="closed-form", model=SEVERAL_RATED, step=GIVEN
)
CLOSED_RATE = when(trainer="closed-form", model=RATED)
RATE_OF_NETWORK = when(model=ASCENDING, latent_start="learnt", decoder=DENSE, ascent="later")
RESTARTS = FOR_RESIDUAL | when(trainer="closed-form", model=("residual", "shift")) | SEVERAL_START | AFFINE_START
