"""The engine: runs, sweeps, generation, and the check that an edit takes effect."""
