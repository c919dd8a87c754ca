"""Trials, one or many: planned, run here or on a cluster, stored, found again."""
