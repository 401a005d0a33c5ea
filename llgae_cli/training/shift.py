"""The target of the components of a Shift: each sample with its best shift undone."""

from collections.abc import Callable

from torch import Tensor

from llgae_cli.models import Shift
from llgae_cli.models.shift import nearest
from llgae_cli.training.closed_form import Target
from llgae_cli.training.components import Components
from llgae_cli.training.scoring import Scorer, Workspace


def undo_shifts(model: Shift) -> Target:
    """Return the target S^-1 x with the shift S that is best for x under the components of a pass.

    The pass chooses k again, among samples with their shift undone, and gets the k of the best of all (k, shift). A
    shift is orthogonal, so components that are optimal for S^-1 x are no worse for x: the objective never rises.
    """

    def target(components: Components) -> Callable[[Tensor], Tensor]:
        mu, U = components.mu, components.U
        if not (mu.any() or U.any()):
            return lambda x: x  # during initialisation, which is that of LLGAE
        grey = mu.mean()  # a constant image: no shift changes it, and it would cost digits
        workspace = Workspace()
        scorers = [Scorer(Components(mu[:, places] - grey, U[:, places]), workspace) for places in model.places]

        def undo(x: Tensor) -> Tensor:
            centred = x - grey
            return model.undo_shift(x, nearest(score.distances(centred) for score in scorers)[1])

        return undo

    return target
