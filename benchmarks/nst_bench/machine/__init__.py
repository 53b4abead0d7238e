"""The machine that figures were taken on: what it is, how fast it could be, and what its GPU uses."""
