"""The charts that a report and a comparison both draw, still without their curves."""

from src.pages.charts import Chart

EPOCHS = "epochs"
ACCURACY = Chart("Accuracy", EPOCHS, "top-1, %")
LOSS = Chart("Loss", EPOCHS, "cross-entropy, nats")
# Of updates, by the key of their lines in metrics.jsonl.
OF_UPDATES = {
    "lr": Chart("Learning rate", EPOCHS, "learning rate", from_zero=True),
    "grad_norm": Chart("Gradient norm", EPOCHS, "global norm, unclipped", from_zero=True),
    "loss_scale": Chart("Loss scale", EPOCHS, "loss scale", powers=2),
    "images_per_second": Chart("Training speed", EPOCHS, "images per second", from_zero=True),
}
