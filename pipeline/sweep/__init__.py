"""Many students over one store: which trials there are, who runs them, what came out."""
