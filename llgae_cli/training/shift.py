"""What the components of a Shift are to explain: each sample moved back by its best shift."""

from collections.abc import Callable

from torch import Tensor

from llgae_cli.models import Shift
from llgae_cli.models.shift import nearest
from llgae_cli.training.closed_form import View
from llgae_cli.training.components import Components
from llgae_cli.training.scoring import Scorer


def moved_back(model: Shift) -> View:
    """Move samples back by the shift that is best under the components of a pass, which are then LLGAE's.

    The pass chooses k again among samples moved back and finds the same one: the best of all (k, shift). A shift is
    orthogonal, so the next components, optimal for samples moved back, are no worse for the samples as they are, and
    the objective never rises.
    """

    def view(components: Components) -> Callable[[Tensor], Tensor]:
        mu, U = components.mu, components.U
        if not (mu.any() or U.any()):
            return lambda x: x  # before the start: LLGAE's own
        grey = mu.mean()  # the same everywhere in an image: no shift moves it, and it costs digits
        scorers = [Scorer(Components(mu[:, places] - grey, U[:, places])) for places in model.places]
        for score in scorers:
            score.workspace = scorers[0].workspace

        def seen(x: Tensor) -> Tensor:
            centred = x - grey
            return model.moved_back(x, nearest(score.distances(centred) for score in scorers)[1])

        return seen

    return view
