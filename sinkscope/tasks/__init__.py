"""Tasks: questions with known answers, in calibration and test parts that share nothing, and how a model answers them.

task = sk.tasks.load("sst2")                      # through Hugging Face datasets, or a local file
task = sk.tasks.offline("brackets")               # from the source code of the Python standard library
task = sk.tasks.in_chat(sk.tasks.english("topic"), model)   # made here, through the model's chat template
questions = sk.tasks.Questions.of(task.test, model)
scores = sk.tasks.evaluate(model, questions, {"none": [], "scaled": [sk.ScaleKeys(2.0)]})
sk.tasks.rate(scores["correct"])                  # value, Wilson interval, n
"""

from typing import TYPE_CHECKING

from sinkscope.errors import public_names, unknown_name
from sinkscope.tasks.base import Item, Task
from sinkscope.tasks.benchmarks import BENCHMARKS, load, suited
from sinkscope.tasks.chat import in_chat
from sinkscope.tasks.english import ENGLISH, english
from sinkscope.tasks.needles import NeedleTests, needle_tests
from sinkscope.tasks.offline import OFFLINE, offline
from sinkscope.tasks.questions import Answers, Questions
from sinkscope.tasks.scores import collapse, evaluate, rate, scores

__all__ = [
    "BENCHMARKS", "ENGLISH", "OFFLINE", "Answers", "Item", "NeedleTests", "Questions", "Task", "collapse", "english",
    "evaluate", "in_chat", "load", "needle_tests", "offline", "rate", "scores", "suited",
]  # fmt: skip

if not TYPE_CHECKING:  # a type checker shall complain of a name that does not exist
    __getattr__ = unknown_name(__name__, __all__)
    __dir__ = public_names(globals())
