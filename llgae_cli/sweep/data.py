"""Whether a sweep's cells fit their data: told before the first cell starts, and fetched once, not by every cell."""

from llgae_cli.errors import InputError
from llgae_cli.factory import check_fit
from llgae_cli.sweep.plan import SHOWN_ERRORS, Plan
from llgae_cli.tasks import load_task


def check_data(plan: Plan) -> None:
    """Load every task of the plan once; InputError when one cannot be had or does not fit a cell's K, E, validation."""
    shapes: dict[tuple[str, str, str], tuple[int, int]] = {}
    errors = []
    for cell in plan.cells:
        config = cell.config
        key = (config.task, str(config.data_dir), config.centring)
        if key not in shapes:
            train = load_task(config.task, config.data_dir, config.centring, config.seed).train
            shapes[key] = train.N, train.D
        try:
            check_fit(config, *shapes[key])
        except InputError as error:
            errors.append(f"cell {plan.label(cell)}: {error}")
    if errors:
        more = f"; and {len(errors) - SHOWN_ERRORS} more" if len(errors) > SHOWN_ERRORS else ""
        raise InputError("; ".join(errors[:SHOWN_ERRORS]) + more)
