"""Whether a sweep's cells fit their data: told before the first cell starts, and fetched once, not by every cell."""

from llgae_cli.errors import InputError
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
        N, D = shapes[key]
        held = round(N * config.validation)
        if config.validation and not held:
            errors.append(
                f"cell {plan.label(cell)}: validation: {config.validation:g} of {N} training samples is less than one"
            )
        N -= held
        if config.K > N:
            errors.append(f"cell {plan.label(cell)}: K: {config.K} components for {N} training samples")
        if config.embed_dim > D:
            errors.append(
                f"cell {plan.label(cell)}: embed-dim: {config.embed_dim} is more than the {D} values of a sample"
            )
    if errors:
        more = f"; and {len(errors) - SHOWN_ERRORS} more" if len(errors) > SHOWN_ERRORS else ""
        raise InputError("; ".join(errors[:SHOWN_ERRORS]) + more)
