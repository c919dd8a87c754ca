"""Tests, in the rooms of the library; see .github/CONTRIBUTING.md."""
