"""The run folder, its files, places and profiles."""
