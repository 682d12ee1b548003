"""Surveys: statistics over a corpus of any length, in one pass that can be stopped, resumed and shared out.

found = sk.survey(model, "corpus.jsonl", [sk.KeyMass(), sk.Entropy()], checkpoint="survey.state")
part = sk.survey(model, "corpus.jsonl", [sk.KeyMass()], shard="1/4"); whole = sk.merge([part, ...])
"""

from sinkscope.engine.survey.driver import survey
from sinkscope.engine.survey.merge import merge
from sinkscope.engine.survey.reader import SurveySettings

__all__ = ["SurveySettings", "merge", "survey"]
