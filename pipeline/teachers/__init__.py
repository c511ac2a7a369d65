"""Frozen teachers, one file per family behind one protocol (see protocol.py)."""
