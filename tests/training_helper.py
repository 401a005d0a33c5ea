"""What the tests of trainers share."""

from llgae_cli.training import Trainer


def run(trainer: Trainer, epochs: int = 300) -> list[float]:
    """Initialise and train; return the mean L2 of each epoch."""
    trainer.initialise()
    record = []
    while len(record) < epochs and not trainer.finished:
        record.append(trainer.epoch()["train_mean_l2"])
    return record
