"""The command line: one thin file per command, torch imported only inside the command that needs it."""

if __name__ != "polyp_difom.cli":
    raise ImportError("import this package as polyp_difom.cli")
