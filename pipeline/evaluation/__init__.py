"""Figures one can trust: what is scored, under which protocol, by which measures, and what is kept of it."""
