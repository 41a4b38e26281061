"""`python -m benchmark`: the same as the `bestattack` command."""

from benchmark.cli import main

main()
