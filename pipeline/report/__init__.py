"""Evaluated runs side by side on one page that opens from disk: figures, charts, pictures, origins."""
