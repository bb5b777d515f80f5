"""Towers, projections, and the dual encoder they make."""
