"""sinkscope: measure, test and explain attention sinks in transformers."""
