"""The instrument: one attention function that returns the output and exact statistics, and never keeps a map."""
