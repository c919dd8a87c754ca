"""How figures and panels look."""
