"""Sinks along training: a callback for the transformers ``Trainer``, readings of checkpoints, and losses against sinks.

    from sinkscope.training import SinkCallback, read_checkpoints

    watch = SinkCallback(texts, every=500, tokenizer=tokenizer, folder="sinks")
    Trainer(model=model, args=args, train_dataset=data, callbacks=[watch]).train()
    watch.history                              # one row per measurement
    read_checkpoints("out", texts)             # the checkpoints of a run that is over: one reading with a dim "step"

Both measure with the probes of :func:`sinkscope.run`, on any model that it reads. ``losses`` has what is added to the
training loss.
"""

from sinkscope.errors import public_names
from sinkscope.training import losses
from sinkscope.training.callback import SinkCallback, checkpoints, read_checkpoints, standard_probes, summary

__all__ = ["SinkCallback", "checkpoints", "losses", "read_checkpoints", "standard_probes", "summary"]

__dir__ = public_names(globals())
