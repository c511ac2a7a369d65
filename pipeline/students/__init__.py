"""Light segmentation networks, one file per architecture behind one protocol (see protocol.py)."""
