"""The feature store: Zarr and numpy only, nothing of models, images or training."""

if __name__ != "polyp_difom.cache":
    raise ImportError("import this package as polyp_difom.cache")
