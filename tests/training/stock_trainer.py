"""Train a RetroModule with Lightning's own Trainer, as docs/lightning.md says; run as a script it uses two processes.

python -m tests.training.stock_trainer FOLDER
"""

import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from retroflow.training.data_module import RetroData
from tests.training.jobs import tiny_config, tiny_job


class CountBatches(pl.Callback):
    """A callback of the user's own."""

    def __init__(self):
        self.losses = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))


def fit_stock(folder, *, max_steps=12, checkpoint=None, devices=1, model=None, **options):
    """Train with stock callbacks and logger; returns trainer, module and the user's callback."""
    job = tiny_job(folder, model=model, **options)
    counter = CountBatches()
    trainer = pl.Trainer(
        max_steps=max_steps,
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        accumulate_grad_batches=job.options.accumulate,
        use_distributed_sampler=False,
        logger=CSVLogger(folder),
        log_every_n_steps=1,
        callbacks=[ModelCheckpoint(dirpath=folder / "checkpoints", every_n_train_steps=4, save_top_k=-1), counter],
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    data = RetroData(job.splits.training(retrieval=True), job.options, seed=job.seed)
    trainer.fit(job.module, datamodule=data, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    return trainer, job.module, counter


if __name__ == "__main__":
    target = Path(sys.argv[1])
    _, trained, _ = fit_stock(target, devices=2, model=tiny_config(dropout=0.0))
    if trained.global_rank == 0:
        torch.save(trained.model.state_dict(), target / "weights.pt")
