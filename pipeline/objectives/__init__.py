"""What a student is trained to match, one file per objective behind one protocol (see protocol.py)."""
