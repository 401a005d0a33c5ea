"""The Python API: a trained model as an object on arrays, and training from Python. `llgae_cli` offers its names."""

from llgae_cli.threads import set_wait_policy

set_wait_policy()  # before torch is imported

from llgae_cli.api.codes import Codes  # noqa: E402
from llgae_cli.api.fitted_model import FittedModel, load  # noqa: E402
from llgae_cli.api.training import TrainingResult, train  # noqa: E402
from llgae_cli.codec import Codec  # noqa: E402
from llgae_cli.progress import Progress  # noqa: E402
from llgae_cli.tasks import load_task  # noqa: E402

__all__ = ["Codec", "Codes", "FittedModel", "Progress", "TrainingResult", "load", "load_task", "train"]
