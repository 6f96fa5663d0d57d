"""The subcommands of `inflight`; cli.py lists them."""
