"""The six notebooks in one go, their report, sweeps over their parameters."""
