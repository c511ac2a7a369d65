"""`polyp-difom report`: runs side by side on one page."""

from polyp_difom.cli.console import guarded


@guarded
def report() -> None:
    """todo"""
