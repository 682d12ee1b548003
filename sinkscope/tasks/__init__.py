"""Tasks: questions with known answers, in calibration and test parts that share nothing, and how a model answers them.

task = sk.tasks.load("sst2")                      # through Hugging Face datasets, or a local file
task = sk.tasks.offline("brackets")               # from the source code of the Python standard library
questions = sk.tasks.Questions.of(task.test, model)
scores = sk.tasks.evaluate(model, questions, {"none": [], "scaled": [sk.ScaleKeys(2.0)]})
sk.tasks.rate(scores["correct"])                  # value, Wilson interval, n
"""

from sinkscope.tasks.base import Item, Task
from sinkscope.tasks.benchmarks import BENCHMARKS, load, suited
from sinkscope.tasks.offline import OFFLINE, offline
from sinkscope.tasks.questions import Answers, Questions
from sinkscope.tasks.scores import collapse, evaluate, rate, scores

__all__ = [
    "BENCHMARKS", "OFFLINE", "Answers", "Item", "Questions", "Task", "collapse", "evaluate", "load", "offline", "rate",
    "scores", "suited",
]  # fmt: skip
