"""`python -m polyp_difom.cli`, which torchrun needs."""

from polyp_difom.cli.main import main

if __name__ == "__main__":
    main()
